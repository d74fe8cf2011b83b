//! A node's kernel as the reconciler of one life of the daemon uses it. It minds
//! that nothing foreign is touched and that no peer's route is taken away while
//! the peer's lease stands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tokio::time::Instant;
use weft::backends::Peers;
use weft::desired::{NEXTHOP_IDS, Nexthop, Observed, ObservedLink, ObservedNexthop, ObservedRoute, Op};
use weft::kernel::fake::Fake;
use weft::kernel::netlink::{Cause, NetlinkError};
use weft::kernel::{Events, Glance, Kernel, KernelEvent, News, Scope};
use weft::model::{IfName, LeaseAttrs, Mac, SubnetKey};

use super::life::Life;
use super::mutants::Mutant;
use super::oracle::mac_of;
use super::store::{Model, Writer, subnet_of};
use super::verdict::Invariant::*;
use super::verdict::Verdict;

/// Notifications that wait: so few that a burst runs over.
pub const ROOM: usize = 48;
const STATIC: u8 = 4;
const BGP: u8 = 186;

pub fn uplink() -> IfName {
    "eth0".parse().unwrap()
}

/// A node as it is before the daemon, with things of others, which stay.
pub fn before(address: &[IpNetwork]) -> Observed {
    let link = |index, mac: u8| ObservedLink {
        index,
        mac: Some(Mac([2, 0, 0, 0, 1, mac])),
        mtu: 1500,
        up: true,
        kind: None,
        tx_checksum: None,
    };
    let docker: IfName = "docker0".parse().unwrap();
    let via = |via: &str, dev| Some(Nexthop { dev, via: via.parse().unwrap(), onlink: false });
    let route = |nexthop, nexthop_id, protocol| ObservedRoute { nexthop, nexthop_id, protocol };
    let net = |text: &str| text.parse::<IpNetwork>().unwrap();
    let docker_hop = via("172.17.0.5", docker);
    let mut addresses: BTreeSet<_> = address.iter().map(|net| (uplink(), *net)).collect();
    addresses.insert((docker, net("172.17.0.1/16")));
    Observed {
        links: [(uplink(), link(2, 2)), (docker, link(3, 3))].into(),
        addresses,
        neighbours: [((docker, "172.17.0.9".parse().unwrap()), Mac([2, 0, 0, 0, 1, 9]))].into(),
        fdb: BTreeMap::new(),
        in_use: BTreeSet::new(),
        nexthops: [
            (1, ObservedNexthop { nexthop: docker_hop, protocol: BGP }),
            (*NEXTHOP_IDS.start(), ObservedNexthop { nexthop: docker_hop, protocol: BGP }),
        ]
        .into(),
        routes: [
            (net("172.30.0.0/16"), route(docker_hop, 0, STATIC)),
            (net("172.31.0.0/16"), route(docker_hop, 1, BGP)),
            // Inside the fabric's network, by way of another's link.
            (net("10.5.240.0/24"), route(docker_hop, 0, STATIC)),
        ]
        .into(),
        sysctls: BTreeMap::new(),
        nexthop_objects: true,
    }
}

/// What of `now` was there before and is not ours to touch.
fn foreign_stands(before: &Observed, now: &Observed) -> bool {
    let docker = before.links.keys().find(|name| name.as_str() == "docker0").unwrap();
    before
        .links
        .iter()
        .filter(|(name, _)| *name == docker)
        .all(|(name, link)| now.links.get(name) == Some(link))
        && now.links.contains_key(&uplink()) == before.links.contains_key(&uplink())
        && before.addresses.iter().all(|address| now.addresses.contains(address) || address.0 == uplink())
        && before.neighbours.iter().all(|(key, mac)| now.neighbours.get(key) == Some(mac))
        && before.nexthops.iter().all(|(id, object)| now.nexthops.get(id) == Some(object))
        && before.routes.iter().all(|(dst, route)| now.routes.get(dst) == Some(route))
}

/// What leads from a node to another's subnet.
struct Way {
    writer: Writer,
    net: IpNetwork,
    ip: IpAddr,
    mac: Option<Mac>,
}

impl Way {
    /// Whether its route, its neighbour and its FDB entry are there.
    fn parts(&self, have: &Observed) -> [bool; 3] {
        let route = have.routes.get(&self.net).and_then(|route| have.target(route));
        let tunnels = || have.links.iter().filter(|(_, link)| link.kind.is_some()).map(|(name, _)| *name);
        let neighbour = |dev| have.neighbours.get(&(dev, self.net.ip())).copied();
        let leads_here = |dev, mac| have.fdb.get(&(dev, mac)).is_some_and(|dsts| dsts.contains(&self.ip));
        [
            route.is_some_and(|hop| hop.via == self.net.ip() || hop.via == self.ip),
            tunnels().any(|dev| self.mac.is_some() && neighbour(dev) == self.mac),
            tunnels().any(|dev| self.mac.is_some_and(|mac| leads_here(dev, mac))),
        ]
    }
}

/// Whether `op` may take a part of the way to a lease. Ops on links take along what
/// stands on them; their repair needs that.
fn may_sever(op: &Op, have: &Observed, key: &SubnetKey, attrs: &LeaseAttrs) -> bool {
    use Op::*;
    let leads_through = |net, id| have.routes.get(&net).is_some_and(|route| route.nexthop_id == id);
    let any = |is_it: &dyn Fn(IpNetwork) -> bool| key.nets().any(|(_, net)| is_it(net));
    match *op {
        DelRoute { dst, .. } | SetRoute { dst, .. } => any(&|net| net == dst),
        DelNexthop { id } | SetNexthop { id, .. } => any(&|net| leads_through(net, id)),
        DelNeighbour { ip, .. } | SetNeighbour { ip, .. } => any(&|net| net.ip() == ip),
        DelFdb { dev, mac, .. } | SetFdb { dev, mac, .. } => {
            let leads_to = |ip| have.fdb.get(&(dev, mac)).is_some_and(|dsts| dsts.contains(ip));
            attrs.public_ip.iter().any(|(_, ip)| leads_to(ip))
        }
        AddLink { .. } | SetLink { .. } | DelLink { .. } => false,
        AddAddress { .. } | DelAddress { .. } | SetSysctl { .. } => false,
    }
}

pub struct SimKernel {
    pub node: usize,
    pub fake: Fake,
    pub before: Arc<Observed>,
    pub life: Life,
    pub model: Model,
    pub verdict: Verdict,
    /// When this life joined.
    pub since: Instant,
    /// Where it came from the checkpoint: whom it knew then. What befell others before
    /// the store told of them it did not see.
    pub remembered: Option<Peers>,
    pub mutant: Option<Mutant>,
}

impl Kernel for SimKernel {
    fn links(&mut self, scope: &Scope) -> Result<BTreeMap<IfName, ObservedLink>, NetlinkError> {
        self.turn()?;
        self.fake.links(scope)
    }

    fn observe(&mut self, scope: &Scope) -> Result<Observed, NetlinkError> {
        self.turn()?;
        self.fake.observe(scope)
    }

    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, NetlinkError> {
        self.turn()?;
        let mut glance = self.fake.glance(scope)?;
        if self.mutant == Some(Mutant::Misreads) {
            let settings = glance.iter_mut().flat_map(|glance| glance.sysctls.values_mut());
            settings.for_each(|value| "2".clone_into(value));
        }
        Ok(glance)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>> {
        self.life.step();
        ops.iter().map(|op| self.one(op)).collect()
    }
}

impl SimKernel {
    fn turn(&self) -> Result<(), NetlinkError> {
        self.life.step();
        if self.life.is_over() { Err(self.dead()) } else { Ok(()) }
    }

    fn one(&mut self, op: &Op) -> Result<(), NetlinkError> {
        if !self.life.spend() {
            return Err(self.dead());
        }
        let ways = self.ways(op);
        let before: Vec<_> = self.fake.with(|have| ways.iter().map(|way| way.parts(have)).collect());
        let stood = self.fake.with(|state| foreign_stands(&self.before, state));
        let result = self.fake.apply(std::slice::from_ref(op)).remove(0);
        self.verdict.note(self.node as u64, || {
            let failed = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            format!("    node {}: {op} {failed}", self.node)
        });
        if stood && !self.fake.with(|state| foreign_stands(&self.before, state)) {
            let what = || format!("node {}: {op}: something of others is gone", self.node);
            self.verdict.violated(ForeignUntouched, what);
        }
        for (way, before) in ways.iter().zip(before) {
            let after = self.fake.with(|have| way.parts(have));
            // Without a route they may be of the lease that the node had before.
            if before[0] && before.iter().zip(after).any(|(before, after)| *before && !after) {
                let what =
                    || format!("node {}: {op}, though the lease of {:?} stands", self.node, way.writer);
                self.verdict.violated(NoPeerLost, what);
            }
        }
        result
    }

    /// What `op` may take: of the ways to the other nodes whose leases stand as they
    /// were taken, and to those whose records were spoilt under the eyes of this daemon
    /// and whose subnets nobody else claims or did.
    fn ways(&self, op: &Op) -> Vec<Way> {
        let state = self.model.lock();
        let standing = state.now.records.values().filter(|_| !state.disturbed_all);
        let standing = standing.filter(|record| !state.disturbed.contains(&record.kv.key));
        let spoilt = state.spoils.values().filter(|(_, at)| *at > self.since).map(|(record, _)| record);
        let knew = |key| self.remembered.as_ref().is_none_or(|peers| peers.contains_key(&key));
        let spoilt = spoilt.filter(|record| subnet_of(&record.kv.key).is_some_and(knew));
        let spoilt = spoilt.map(|record| (record, true));
        let mut ways = Vec::new();
        for (record, spoilt) in standing.map(|record| (record, false)).chain(spoilt) {
            let Some((key, attrs)) = &record.lease else { continue };
            let is_anothers = matches!(record.writer, Writer::Node(other) if other != self.node);
            if !is_anothers || !self.fake.with(|have| may_sever(op, have, key, attrs)) {
                continue;
            }
            // Of two families one may have been part of another lease before, or be
            // claimed by two that start at once, until the later one yields.
            let before = state.disturbed.iter().filter_map(|key| subnet_of(key));
            let others: Vec<_> = before.chain(state.leases().map(|(key, ..)| key)).collect();
            let others = || others.iter().filter(|other| *other != key);
            if spoilt && others().any(|other| other.overlaps(key)) {
                continue;
            }
            let shared = |net: IpNetwork| others().any(|other| other.nets().any(|(_, theirs)| theirs == net));
            for (family, net) in key.nets().filter(|(_, net)| !shared(*net)) {
                let Some(&ip) = attrs.public_ip.get(family) else { continue };
                ways.push(Way { writer: record.writer, net, ip, mac: mac_of(attrs, family) });
            }
        }
        ways
    }

    fn dead(&self) -> NetlinkError {
        Cause::Errno { errno: libc::EINTR, message: String::new() }.of("a daemon that was killed")
    }
}

/// Fake is both; the reconciler takes them apart.
pub struct SimEvents {
    pub fake: Fake,
    /// A mutant: it is not told that notifications were lost.
    pub deaf: bool,
}

impl Events for SimEvents {
    async fn ready(&mut self) -> Result<(), NetlinkError> {
        self.fake.ready().await
    }

    fn next(&mut self, news: News) -> Option<KernelEvent> {
        loop {
            match self.fake.next(news) {
                Some(KernelEvent::Resync(_)) if self.deaf => {}
                event => return event,
            }
        }
    }
}
