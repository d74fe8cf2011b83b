//! What must be true, worked out from the store alone and by other means than the
//! daemon's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft::desired::{Destinations, Nexthop, Observed, ObservedRoute, ROUTE_PROTOCOL};
use weft::model::{Family, IfName, LeaseAttrs, Mac, SubnetKey};

use super::kernel::uplink;
use super::node::{Member, Node};
use super::store::{State, Writer};

/// Whether `node` is as it should be while nothing goes on; the first thing that
/// is not.
pub fn settled(node: &Node, state: &State) -> Result<(), String> {
    let Some(member) = node.member() else { return Err("has not joined".into()) };
    let own = member.leases.own().stored.lease.key;
    holds_or_says_so(node, &member, own, state)?;
    let want = Fabric::of(node, &member, own, state);
    // Also of what may be there or not.
    if let Some(failed) = member.reconciler.state().borrow().failed.first() {
        return Err(format!("is yet to try again: {failed}"));
    }
    node.fake.with(|have| want.is_there(have))
}

/// A node believes that it holds its subnet just where the store says so.
fn holds_or_says_so(node: &Node, member: &Member, own: SubnetKey, state: &State) -> Result<(), String> {
    let lost = member.leases.lost();
    let mut ours = false;
    let mut other = None;
    for (key, attrs, record) in state.leases().filter(|(key, _, _)| key.overlaps(&own)) {
        if !is_of(node, attrs) {
            other = Some(record.writer);
        } else if key == own {
            ours = state.is_alive(record.kv.lease) && *attrs == member.attrs;
        }
    }
    // Once its lease has expired, a record that nobody can read is for a person.
    if state.spoilt().any(|key| key.overlaps(&own)) {
        other = other.or(Some(Writer::Vandal));
    }
    match (ours, other, lost) {
        (true, _, None) | (false, Some(_), Some(_)) => Ok(()),
        (true, _, Some(lost)) => Err(format!("holds {own} and says: {lost}")),
        (false, other, lost) => {
            Err(format!("{own} is not its own in the store ({other:?}), it says {lost:?}"))
        }
    }
}

fn is_of(node: &Node, attrs: &LeaseAttrs) -> bool {
    node.host.public_ip.v4.is_some() && attrs.public_ip.v4 == node.host.public_ip.v4
}

/// What joins a node to the others.
#[derive(Default, Debug)]
struct Fabric {
    links: BTreeMap<IfName, Option<Mac>>,
    addresses: BTreeSet<(IfName, IpNetwork)>,
    neighbours: BTreeMap<(IfName, IpAddr), Mac>,
    fdb: BTreeMap<(IfName, Mac), Destinations>,
    routes: BTreeMap<IpNetwork, Nexthop>,
    /// Subnets whose record was spoilt, claimed by no healthy one: what was last known
    /// of them may stay.
    spoilt: BTreeSet<IpNetwork>,
}

impl Fabric {
    fn of(node: &Node, member: &Member, own: SubnetKey, state: &State) -> Fabric {
        let mut fabric = Fabric::default();
        for (family, dev) in member.backend.devices().iter() {
            let mac = mac_of(&member.attrs, family);
            let Some(net) = own.net(family) else { continue };
            fabric.links.insert(*dev, mac);
            fabric.addresses.insert((*dev, IpNetwork::from(net.ip())));
        }
        let peers: Vec<_> = state
            .leases()
            .filter(|(_, attrs, _)| !is_of(node, attrs))
            .map(|(key, attrs, _)| (key, attrs))
            .collect();
        // By whoever it is, a record for this node's own subnet is no peer's.
        let claimed = |spoilt: &SubnetKey| peers.iter().any(|(key, _)| *key != own && key.overlaps(spoilt));
        let unclaimed = state.spoilt().filter(|spoilt| !claimed(spoilt));
        fabric.spoilt =
            unclaimed.flat_map(|key| key.nets().map(|(_, net)| net).collect::<Vec<_>>()).collect();
        for family in Family::BOTH {
            let Some(own) = own.net(family) else { continue };
            let of_peers = peers.iter().filter_map(|(key, attrs)| {
                Some((*key, key.net(family)?, *attrs.public_ip.get(family)?, mac_of(attrs, family)))
            });
            let of_peers: Vec<_> = of_peers.filter(|(_, net, ..)| !overlap(*net, own)).collect();
            let wins =
                |key, net| of_peers.iter().all(|(other, theirs, ..)| !outdoes((*other, *theirs), (key, net)));
            let dev = member.backend.devices().get(family).copied();
            for &(_, net, ip, mac) in of_peers.iter().filter(|(key, net, ..)| wins(*key, *net)) {
                fabric.join(node, dev, net, ip, mac);
            }
        }
        fabric
    }

    fn join(&mut self, node: &Node, dev: Option<IfName>, net: IpNetwork, ip: IpAddr, mac: Option<Mac>) {
        let tunnel = dev.filter(|_| !node.host.on_link.iter().any(|link| link.contains(ip)));
        let (Some(dev), Some(mac)) = (tunnel, mac) else {
            self.routes.insert(net, Nexthop { dev: uplink(), via: ip, onlink: false });
            return;
        };
        self.neighbours.insert((dev, net.ip()), mac);
        self.fdb.insert((dev, mac), Destinations::of(ip));
        self.routes.insert(net, Nexthop { dev, via: net.ip(), onlink: true });
    }

    fn is_there(&self, have: &Observed) -> Result<(), String> {
        for (name, mac) in &self.links {
            match have.links.get(name) {
                Some(link) if link.up && link.mac == *mac && (1430..=1450).contains(&link.mtu) => {}
                other => return Err(format!("link {name} is {other:?}")),
            }
            if have.sysctls.get(&format!("net/ipv6/conf/{name}/accept_ra")).is_none_or(|value| value != "0") {
                return Err(format!("{name} accepts router advertisements"));
            }
        }
        let on_ours = |dev: &IfName| self.links.contains_key(dev);
        let addresses = have.addresses.iter().filter(|(dev, _)| on_ours(dev)).copied().collect();
        same("addresses", &self.addresses, &addresses)?;
        let (spoilt, have) = self.without_spoilt(have);
        let neighbours = have.neighbours.iter().filter(|((dev, _), _)| on_ours(dev)).map(|(k, v)| (*k, *v));
        same("neighbours", &self.neighbours, &neighbours.collect())?;
        let fdb = have.fdb.iter().filter(|((dev, _), _)| on_ours(dev)).map(|(k, v)| (*k, v.clone()));
        same("fdb", &self.fdb, &fdb.collect())?;
        let ours = |protocol: u8| protocol == ROUTE_PROTOCOL;
        let routes = have.routes.iter().filter(|(_, route)| ours(route.protocol));
        let wanted: BTreeMap<_, _> = self.routes.iter().map(|(dst, hop)| (*dst, Some(*hop))).collect();
        same("routes", &wanted, &routes.map(|(dst, route)| (*dst, have.target(route))).collect())?;
        let used: BTreeSet<_> = have.routes.values().chain(&spoilt).map(|route| route.nexthop_id).collect();
        let idle = have.nexthops.iter().find(|(id, object)| ours(object.protocol) && !used.contains(id));
        idle.map_or(Ok(()), |idle| Err(format!("nexthop that nothing uses: {idle:?}")))
    }
}

impl Fabric {
    /// What was last known of a spoilt record's owner may stay: its routes, and
    /// what is there without them.
    fn without_spoilt(&self, have: &Observed) -> (Vec<ObservedRoute>, Observed) {
        let mut have = have.clone();
        let spoilt = |dst: &IpNetwork| self.spoilt.contains(dst);
        let routes = have.routes.extract_if(.., |dst, _| spoilt(dst)).map(|(_, route)| route).collect();
        let ips: BTreeSet<_> = self.spoilt.iter().map(|net| net.ip()).collect();
        let macs: Vec<_> = have
            .neighbours
            .extract_if(.., |(_, ip), _| ips.contains(ip))
            .map(|((dev, _), mac)| (dev, mac))
            .collect();
        have.fdb.retain(|key, _| self.fdb.contains_key(key) || !macs.contains(key));
        (routes, have)
    }
}

/// Two records may share a subnet of one family: to whom it then belongs.
fn outdoes((key, net): (SubnetKey, IpNetwork), (other, theirs): (SubnetKey, IpNetwork)) -> bool {
    let longer = net.prefix() > theirs.prefix();
    key != other && overlap(net, theirs) && (longer || net == theirs && key < other)
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, want: &T, have: &T) -> Result<(), String> {
    if want == have { Ok(()) } else { Err(format!("{what}:\n  should be {want:?}\n  are       {have:?}")) }
}

pub fn mac_of(attrs: &LeaseAttrs, family: Family) -> Option<Mac> {
    let data: serde_json::Value = serde_json::from_str(&attrs.backend_data.get(family)?.text()).ok()?;
    data.get("VtepMAC")?.as_str()?.parse().ok()
}
