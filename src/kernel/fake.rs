//! A kernel in memory, for tests of the reconciler: state as `Observed::record`
//! says ops change it, faults on demand. A faithful one also refuses what the
//! kernel refuses and tells what it tells, no more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::netlink::{Cause, NetlinkError};
use super::{Entry, Events, Glance, Hop, Kernel, KernelEvent, LinkEntry, News, Scope, VxlanEntry};
use crate::desired::{LinkKind, Nexthop, Observed, ObservedLink, ObservedRoute, Op};
use crate::model::{Family, IfName};

/// A handle on the fake kernel: the same one for the reconciler, as `Kernel`
/// and `Events`, and for the test.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    inner: Arc<Mutex<Inner>>,
    told: Arc<Notify>,
}

/// What a fault does to an op: `Some` errno makes it fail.
pub type Fault = Box<dyn FnMut(&Op) -> Option<i32> + Send>;

#[derive(Default)]
struct Inner {
    state: Observed,
    fault: Option<Fault>,
    events: VecDeque<KernelEvent>,
    tried: Vec<Op>,
    observed: usize,
    /// How many notifications its socket holds, where it is faithful.
    room: Option<usize>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Fake {
    pub fn new(state: Observed) -> Fake {
        let fake = Fake::default();
        fake.lock().state = state;
        fake
    }

    /// One that echoes every change, its own and others', and keeps `room`
    /// notifications: one more, and all are lost (`ENOBUFS`).
    pub fn faithful(state: Observed, room: usize) -> Fake {
        let fake = Fake::new(state);
        fake.lock().room = Some(room);
        fake
    }

    pub fn state(&self) -> Observed {
        self.lock().state.clone()
    }

    /// What `look` makes of the state.
    pub fn with<T>(&self, look: impl FnOnce(&Observed) -> T) -> T {
        look(&self.lock().state)
    }

    /// Do `op` by another's hand. `false` where the kernel refuses.
    pub fn meddle(&self, op: &Op) -> bool {
        let done = self.lock().carry_out(op).is_ok();
        self.told.notify_one();
        done
    }

    /// Set a link up or down by another's hand. Nothing but the link is told of.
    pub fn set_up(&self, name: IfName, up: bool) {
        let mut inner = self.lock();
        match inner.state.links.get_mut(&name) {
            Some(link) if up => link.up = true,
            Some(_) => inner.state.link_down(name),
            None => return,
        }
        inner.tell_link(name);
        drop(inner);
        self.told.notify_one();
    }

    /// Lose what has been told and not read.
    pub fn overrun(&self) {
        let mut inner = self.lock();
        inner.overrun();
        drop(inner);
        self.told.notify_one();
    }

    /// A new socket: what was told before is not on it.
    pub fn reopen(&self) {
        self.lock().events.clear();
    }

    /// Change the state by another's hand, and tell `events` of it.
    pub fn disturb(&self, change: impl FnOnce(&mut Observed), events: impl IntoIterator<Item = KernelEvent>) {
        let mut inner = self.lock();
        change(&mut inner.state);
        inner.events.extend(events);
        self.told.notify_one();
    }

    /// Ops for which `fault` gives an error number fail with it.
    pub fn fail(&self, fault: impl FnMut(&Op) -> Option<i32> + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// The ops tried since the last call, failed ones too.
    pub fn take_tried(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().tried)
    }

    /// How often the state has been read.
    pub fn observed(&self) -> usize {
        self.lock().observed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for Fake {
    fn links(&mut self, scope: &Scope) -> Result<BTreeMap<IfName, ObservedLink>, NetlinkError> {
        Ok(within(&self.lock().state, scope).links)
    }

    fn observe(&mut self, scope: &Scope) -> Result<Observed, NetlinkError> {
        let mut inner = self.lock();
        inner.observed += 1;
        Ok(within(&inner.state, scope))
    }

    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, NetlinkError> {
        let mut sysctls = self.lock().state.sysctls.clone();
        sysctls.retain(|key, _| scope.sysctls.contains(key));
        Ok(Some(Glance { sysctls, ..Glance::default() }))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>> {
        let mut inner = self.lock();
        let results = ops.iter().map(|op| inner.apply(op)).collect();
        drop(inner);
        self.told.notify_one();
        results
    }
}

impl Inner {
    fn apply(&mut self, op: &Op) -> Result<(), NetlinkError> {
        self.tried.push(op.clone());
        if let Some(errno) = self.fault.as_mut().and_then(|fault| fault(op)) {
            return Err(Cause::Errno { errno, message: String::new() }.of(op));
        }
        self.carry_out(op).map_err(|errno| Cause::Errno { errno, message: String::new() }.of(op))
    }

    fn carry_out(&mut self, op: &Op) -> Result<(), i32> {
        if self.room.is_none() {
            self.record(op);
            return Ok(());
        }
        refusal(&self.state, op).map_or(Ok(()), Err)?;
        let removed = removed_by(&self.state, op);
        self.record(op);
        for entry in removed {
            self.tell(KernelEvent::Removed(entry));
        }
        match op {
            Op::AddLink { name, .. } | Op::SetLink { name, .. } => self.tell_link(*name),
            _ => {
                if let Some(entry) = added_by(&self.state, op) {
                    self.tell(KernelEvent::Added(entry));
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, op: &Op) {
        self.state.record(op);
        match op {
            // The kernel numbers what it makes, and gives it its files.
            Op::AddLink { name, .. } => {
                let next = self.state.links.values().map(|link| link.index).max().unwrap_or(0) + 1;
                if let Some(link) = self.state.links.get_mut(name) {
                    link.index = next;
                }
                if self.room.is_some() {
                    self.state.sysctls.insert(format!("net/ipv6/conf/{name}/accept_ra"), "1".to_owned());
                }
            }
            Op::DelAddress { dev, .. } if self.room.is_some() => self.state.without_ipv4(*dev),
            _ => {}
        }
    }

    fn tell_link(&mut self, name: IfName) {
        if let Some(entry) = link_entry(&self.state, name) {
            self.tell(KernelEvent::Added(entry));
        }
    }

    fn tell(&mut self, event: KernelEvent) {
        match self.room {
            Some(room) if self.events.len() >= room => self.overrun(),
            _ => self.events.push_back(event),
        }
    }

    fn overrun(&mut self) {
        self.events.clear();
        self.events.push_back(KernelEvent::Resync("notifications were lost: ENOBUFS".to_owned()));
    }
}

/// What a look at no more than `scope` shows.
fn within(state: &Observed, scope: &Scope) -> Observed {
    let mut seen = state.clone();
    seen.links.retain(|name, _| scope.links().any(|link| link == *name));
    let known = |hop: Option<Nexthop>| hop.filter(|hop| seen.links.contains_key(&hop.dev));
    for object in seen.nexthops.values_mut() {
        object.nexthop = known(object.nexthop);
    }
    for route in seen.routes.values_mut() {
        route.nexthop = known(route.nexthop);
    }
    seen.addresses.retain(|(dev, _)| seen.links.contains_key(dev));
    seen.neighbours.retain(|(dev, _), _| scope.tunnels.contains(dev));
    seen.fdb.retain(|(dev, _), _| scope.tunnels.contains(dev));
    seen.sysctls.retain(|key, _| scope.sysctls.contains(key));
    seen
}

/// The error number that the kernel gives for `op` in this state.
fn refusal(state: &Observed, op: &Op) -> Option<i32> {
    let down = |dev: &IfName| match state.links.get(dev) {
        None => Some(libc::ENODEV),
        Some(link) => (!link.up).then_some(libc::ENETDOWN),
    };
    let absent = |dev: &IfName| (!state.links.contains_key(dev)).then_some(libc::ENODEV);
    match op {
        Op::AddLink { name, .. } if state.links.contains_key(name) => Some(libc::EEXIST),
        Op::AddLink { spec, .. } => {
            let LinkKind::Vxlan(vxlan) = &spec.kind;
            absent(&vxlan.underlay)
        }
        Op::SetLink { name, .. } => absent(name),
        Op::AddAddress { dev, .. } | Op::SetNeighbour { dev, .. } | Op::SetFdb { dev, .. } => absent(dev),
        Op::SetNexthop { nexthop, .. } => down(&nexthop.dev),
        Op::SetRoute { id: Some(id), .. } => (!state.nexthops.contains_key(id)).then_some(libc::EINVAL),
        Op::SetRoute { nexthop, .. } => down(&nexthop.dev),
        Op::SetSysctl { key, .. } => (!state.sysctls.contains_key(key)).then_some(libc::ENOENT),
        // Gone is gone.
        Op::DelRoute { .. }
        | Op::DelLink { .. }
        | Op::DelAddress { .. }
        | Op::DelNeighbour { .. }
        | Op::DelFdb { .. }
        | Op::DelNexthop { .. } => None,
    }
}

/// What the kernel says is gone by `op`: by far not all that is.
fn removed_by(state: &Observed, op: &Op) -> Vec<Entry> {
    let index = |dev: &IfName| state.links.get(dev).map(|link| link.index);
    let entry = match op {
        Op::DelRoute { dst, protocol } => {
            let route = state.routes.get(dst).filter(|route| route.protocol == *protocol);
            route.map(|route| route_entry(state, *dst, route))
        }
        Op::DelLink { name } => {
            let stacked = state.links.iter().filter(
                |(_, link)| matches!(&link.kind, Some(LinkKind::Vxlan(vxlan)) if vxlan.underlay == *name),
            );
            let names = stacked.map(|(name, _)| *name).chain([*name]);
            return names.filter_map(|name| link_entry(state, name)).collect();
        }
        Op::DelAddress { dev, addr } if state.addresses.contains(&(*dev, *addr)) => {
            index(dev).map(|link| Entry::Address { link, addr: *addr })
        }
        Op::DelNeighbour { dev, ip } => state
            .neighbours
            .get(&(*dev, *ip))
            .and_then(|mac| Some(Entry::Neighbour { link: index(dev)?, ip: *ip, mac: Some(*mac) })),
        Op::DelFdb { dev, mac, dst } if state.fdb.get(&(*dev, *mac)).is_some_and(|d| d.contains(dst)) => {
            index(dev).map(|link| Entry::Fdb { link, mac: *mac, dst: Some(*dst), in_use: false })
        }
        Op::DelNexthop { id } => state.nexthops.get(id).map(|object| Entry::Nexthop {
            id: *id,
            hop: object.nexthop.and_then(|hop| hop_entry(state, hop)),
            protocol: object.protocol,
        }),
        _ => None,
    };
    entry.into_iter().collect()
}

/// What the kernel says is there after `op`; links apart.
fn added_by(state: &Observed, op: &Op) -> Option<Entry> {
    let index = |dev: &IfName| state.links.get(dev).map(|link| link.index);
    match op {
        Op::AddAddress { dev, addr } => Some(Entry::Address { link: index(dev)?, addr: *addr }),
        Op::SetNeighbour { dev, ip, mac } => {
            Some(Entry::Neighbour { link: index(dev)?, ip: *ip, mac: Some(*mac) })
        }
        Op::SetFdb { dev, mac, dst } => {
            Some(Entry::Fdb { link: index(dev)?, mac: *mac, dst: Some(*dst), in_use: false })
        }
        Op::SetNexthop { id, .. } => state.nexthops.get(id).map(|object| Entry::Nexthop {
            id: *id,
            hop: object.nexthop.and_then(|hop| hop_entry(state, hop)),
            protocol: object.protocol,
        }),
        Op::SetRoute { dst, .. } => state.routes.get(dst).map(|route| route_entry(state, *dst, route)),
        _ => None,
    }
}

fn link_entry(state: &Observed, name: IfName) -> Option<Entry> {
    let ObservedLink { index, mac, mtu, up, kind, .. } = state.links.get(&name)?;
    let vxlan = kind.as_ref().and_then(|LinkKind::Vxlan(vxlan)| {
        Some(VxlanEntry {
            vni: vxlan.vni,
            underlay: state.links.get(&vxlan.underlay)?.index,
            local: vxlan.local,
            port: vxlan.port,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        })
    });
    let (index, mtu, up) = (*index, *mtu, *up);
    Some(Entry::Link(LinkEntry { index, name, mac: *mac, mtu, up, running: up, vxlan }))
}

fn route_entry(state: &Observed, dst: ipnetwork::IpNetwork, route: &ObservedRoute) -> Entry {
    let hop = route.nexthop.and_then(|hop| hop_entry(state, hop));
    Entry::Route { dst, hop, nexthop_id: route.nexthop_id, protocol: route.protocol }
}

fn hop_entry(state: &Observed, hop: Nexthop) -> Option<Hop> {
    let link = state.links.get(&hop.dev)?.index;
    Some(Hop { link, via: hop.via, onlink: hop.onlink })
}

impl Observed {
    /// With its last IPv4 address a link loses its IPv4 routes, untold
    /// (`fib_disable_ip()` in net/ipv4/fib_frontend.c).
    fn without_ipv4(&mut self, dev: IfName) {
        let is_v4 = |addr: &ipnetwork::IpNetwork| Family::of_net(*addr) == Family::V4;
        if self.addresses.iter().any(|(on, addr)| *on == dev && is_v4(addr)) {
            return;
        }
        let over = |hop: Option<Nexthop>| hop.is_some_and(|hop| hop.dev == dev && hop.via.is_ipv4());
        self.routes.retain(|_, route| !over(route.nexthop));
        self.nexthops.retain(|_, object| !over(object.nexthop));
    }
}

impl Events for Fake {
    async fn ready(&mut self) -> Result<(), NetlinkError> {
        while self.lock().events.is_empty() {
            self.told.notified().await;
        }
        Ok(())
    }

    fn next(&mut self, news: News) -> Option<KernelEvent> {
        let mut inner = self.lock();
        if news == News::OfLinks {
            inner.events.retain(KernelEvent::is_of_links);
        }
        inner.events.pop_front()
    }
}
