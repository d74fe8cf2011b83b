//! What another hand does to a node's kernel.

use weft::desired::{LinkSpec, Nexthop, Observed, Op, ROUTE_PROTOCOL};
use weft::model::{IfName, Mac};

use super::Fault::{self, *};
use crate::kernel::uplink;
use crate::world::World;

impl World {
    pub(super) fn meddle(&mut self, node: usize) -> String {
        let op = self.nodes[node].fake.with(|have| random_op(have, &mut self.rng));
        let Some(op) = op else { return "nothing".to_owned() };
        let done = self.nodes[node].fake.meddle(&op);
        format!("node {node}: {op} {}", if done { "" } else { "refused" })
    }

    /// More than its socket holds.
    pub(super) fn burst(&mut self, node: usize) {
        for _ in 0..80 {
            self.meddle(node);
        }
    }

    /// Changes whose notifications are lost with others.
    pub(super) fn meddle_unheard(&mut self, node: usize) {
        for _ in 0..self.rng.u8(1..4) {
            self.meddle(node);
        }
        self.nodes[node].fake.overrun();
    }

    pub(super) fn harm(&mut self, node: usize, fault: Fault) {
        let fake = &self.nodes[node].fake;
        let tunnels = fake.with(tunnels);
        match fault {
            UplinkFlap => {
                fake.set_up(uplink(), false);
                fake.set_up(uplink(), true);
            }
            TunnelDown => tunnels.into_iter().for_each(|name| fake.set_up(name, false)),
            TunnelGone => tunnels.into_iter().for_each(|name| {
                fake.meddle(&Op::DelLink { name });
            }),
            _ => tunnels.into_iter().for_each(|name| {
                fake.meddle(&Op::SetSysctl {
                    key: format!("net/ipv6/conf/{name}/accept_ra"),
                    value: "2".into(),
                });
            }),
        }
    }
}

fn tunnels(have: &Observed) -> Vec<IfName> {
    have.links.iter().filter(|(_, link)| link.kind.is_some()).map(|(name, _)| *name).collect()
}

/// Something that a person at the shell or another program might do to what is
/// ours.
fn random_op(have: &Observed, rng: &mut fastrand::Rng) -> Option<Op> {
    let tunnels = tunnels(have);
    let dev = rng.choice(tunnels).unwrap_or_else(uplink);
    let ours = |name: &IfName| name.as_str().starts_with("flannel");
    let mac = Mac::local(rng.u64(..).to_be_bytes()[..6].try_into().unwrap());
    let stray = format!("10.5.{}.0", rng.u8(..24));
    let neighbour = any(rng, have.neighbours.iter().filter(|((dev, _), _)| ours(dev)));
    let fdb = any(rng, have.fdb.iter());
    let route = any(rng, have.routes.iter().filter(|(_, route)| route.protocol == ROUTE_PROTOCOL));
    let nexthop = any(rng, have.nexthops.iter().filter(|(_, object)| object.protocol == ROUTE_PROTOCOL));
    let wrong = Nexthop { dev, via: "10.5.99.0".parse().unwrap(), onlink: true };
    Some(match rng.u8(..14) {
        0 => neighbour.map(|(&(dev, ip), _)| Op::DelNeighbour { dev, ip })?,
        1 => neighbour.map(|(&(dev, ip), _)| Op::SetNeighbour { dev, ip, mac })?,
        2 if ours(&dev) => Op::SetNeighbour { dev, ip: stray.parse().unwrap(), mac },
        3 => fdb.and_then(|(&(dev, mac), dsts)| Some(Op::DelFdb { dev, mac, dst: *dsts.iter().next()? }))?,
        4 => fdb.map(|(&(dev, mac), _)| Op::SetFdb { dev, mac, dst: "192.168.7.99".parse().unwrap() })?,
        5 if ours(&dev) => Op::SetFdb { dev, mac, dst: "192.168.7.98".parse().unwrap() },
        6 | 7 => route.map(|(dst, route)| Op::DelRoute { dst: *dst, protocol: route.protocol })?,
        8 => route.map(|(dst, _)| Op::SetRoute { dst: *dst, nexthop: wrong, id: None })?,
        9 => Op::SetRoute { dst: format!("{stray}/24").parse().unwrap(), nexthop: wrong, id: None },
        10 => nexthop.map(|(id, _)| Op::DelNexthop { id: *id })?,
        11 => nexthop.map(|(id, _)| Op::SetNexthop { id: *id, nexthop: wrong })?,
        12 => Op::SetLink { name: dev, spec: Box::new(changed(have, dev, mac, rng)?) },
        _ if ours(&dev) => {
            let addresses = have.addresses.iter().filter(|(on, _)| *on == dev);
            any(rng, addresses).map(|&(dev, addr)| Op::DelAddress { dev, addr })?
        }
        _ => return None,
    })
}

fn any<T>(rng: &mut fastrand::Rng, among: impl Iterator<Item = T>) -> Option<T> {
    let among: Vec<T> = among.collect();
    rng.choice(among)
}

fn changed(have: &Observed, dev: IfName, mac: Mac, rng: &mut fastrand::Rng) -> Option<LinkSpec> {
    let link = have.links.get(&dev)?;
    let (kind, old) = (link.kind.clone()?, link.mac?);
    let (mac, mtu) = if rng.bool() { (mac, link.mtu) } else { (old, 1280) };
    Some(LinkSpec { mac, mtu, kind, tx_checksum: None })
}
