//! A node's kernel as the reconciler of one life of the daemon uses it. It minds
//! that nothing foreign is touched and that no peer's route is taken away while
//! the peer's lease stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use ipnetwork::IpNetwork;
use tokio::time::Instant;
use weft::desired::{NEXTHOP_IDS, Nexthop, Observed, ObservedLink, ObservedNexthop, ObservedRoute, Op};
use weft::kernel::fake::Fake;
use weft::kernel::netlink::{Cause, NetlinkError};
use weft::kernel::{Events, Glance, Kernel, KernelEvent, News, Scope};
use weft::model::{IfName, Mac};

use super::store::{Model, Record, Writer, subnet_of};
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

/// What ends a life of the daemon in the midst of its work.
#[derive(Clone, Debug)]
pub struct Life {
    alive: Arc<AtomicBool>,
    /// So many more ops are done; negative: no end is set.
    ops_left: Arc<AtomicI64>,
}

impl Life {
    pub fn new() -> Life {
        Life { alive: Arc::new(AtomicBool::new(true)), ops_left: Arc::new(AtomicI64::new(-1)) }
    }

    pub fn end(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    pub fn end_after(&self, ops: i64) {
        self.ops_left.store(ops, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        !self.alive.load(Ordering::Relaxed)
    }

    /// Whether one more op is done.
    fn spend(&self) -> bool {
        match self.ops_left.load(Ordering::Relaxed) {
            0 => self.end(),
            left if left > 0 => self.ops_left.store(left - 1, Ordering::Relaxed),
            _ => {}
        }
        !self.is_over()
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
}

impl Kernel for SimKernel {
    fn links(&mut self, scope: &Scope) -> Result<BTreeMap<IfName, ObservedLink>, NetlinkError> {
        if self.life.is_over() {
            return Err(self.dead());
        }
        self.fake.links(scope)
    }

    fn observe(&mut self, scope: &Scope) -> Result<Observed, NetlinkError> {
        if self.life.is_over() {
            return Err(self.dead());
        }
        self.fake.observe(scope)
    }

    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, NetlinkError> {
        if self.life.is_over() {
            return Err(self.dead());
        }
        self.fake.glance(scope)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>> {
        ops.iter().map(|op| self.one(op)).collect()
    }
}

impl SimKernel {
    fn one(&mut self, op: &Op) -> Result<(), NetlinkError> {
        if !self.life.spend() {
            return Err(self.dead());
        }
        self.judge(op);
        let stood = self.fake.with(|state| foreign_stands(&self.before, state));
        let result = self.fake.apply(std::slice::from_ref(op)).remove(0);
        self.verdict.note(self.node as u64, || {
            let failed = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            format!("    node {}: {op} {failed}", self.node)
        });
        if stood && !self.fake.with(|state| foreign_stands(&self.before, state)) {
            self.verdict.violated(|| format!("node {}: {op}: something of others is gone", self.node));
        }
        result
    }

    /// A route that leads where a lease says stays while that lease stands as it
    /// was taken, and when its record is spoilt under the eyes of a daemon.
    fn judge(&self, op: &Op) {
        let Op::DelRoute { dst, .. } = op else { return };
        let via = |have: &Observed| have.target(have.routes.get(dst)?).map(|hop| hop.via);
        let Some(via) = self.fake.with(via) else { return };
        let state = self.model.lock();
        let leads = |record: &Record| {
            let Some((key, attrs)) = record.lease() else { return false };
            matches!(record.writer, Writer::Node(other) if other != self.node)
                && key.nets().any(|(_, net)| net == *dst)
                && (via == dst.ip() || attrs.public_ip.iter().any(|(_, ip)| *ip == via))
        };
        let standing = state.now.records.values().filter(|_| !state.disturbed_all);
        let standing = standing.filter(|record| !state.disturbed.contains(&record.kv.key));
        let spoilt = state.spoils.values().filter(|(_, at)| *at > self.since).map(|(record, _)| record);
        // Of two families one may have been part of another lease before.
        let reused = |record: &Record| {
            let others = state.disturbed.iter().filter(|key| **key != record.kv.key);
            others.filter_map(|key| subnet_of(key)).any(|key| key.nets().any(|(_, net)| net == *dst))
        };
        let led = standing.chain(spoilt).find(|record| leads(record) && !reused(record));
        if let Some(record) = led {
            let what = || format!("node {}: {op}, though the lease of {:?} stands", self.node, record.writer);
            self.verdict.violated(what);
        }
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
