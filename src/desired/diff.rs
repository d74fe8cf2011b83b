use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::ownership::KERNEL_PROTOCOL;
use super::{Desired, LinkSpec, NEXTHOP_IDS, Nexthop, Observed, ObservedLink, ObservedRoute, Op};
use super::{Ownership, Plan, ROUTE_PROTOCOL};
use crate::model::{Family, IfName};

/// The plan that leads from `have` to `want` and touches nothing foreign.
///
/// Linear in the number of entries, up to a logarithm, and deterministic. A
/// state that has all that is wanted, and nothing of ours besides, gives an
/// empty plan.
pub fn diff(have: &Observed, want: &Desired, own: &Ownership) -> Plan {
    let links = links(have, want);
    // What a changed link takes along is missing to all that follows.
    let have = &*after(have, &links);
    let (kept, stale_links) = own_links(have, want, own);
    let routes = routes(have, want, own, &stale_links);

    let mut ops = routes.stale;
    ops.extend(links);
    ops.extend(new_addresses(have, want));
    ops.extend(sysctls(have, want));
    ops.extend(new_neighbours(have, want));
    ops.extend(new_fdb(have, want));
    ops.extend(routes.new_nexthops);
    ops.extend(routes.new);
    ops.extend(routes.stale_nexthops);
    ops.extend(stale_fdb(have, want, &kept));
    ops.extend(stale_neighbours(have, want, &kept));
    ops.extend(stale_addresses(have, want, own, &kept));
    ops.extend(stale_links.into_iter().map(|name| Op::DelLink { name }));
    Plan { ops }
}

fn links(have: &Observed, want: &Desired) -> Vec<Op> {
    let mut ops = Vec::new();
    for (&name, spec) in &want.links {
        let add = || Op::AddLink { name, spec: spec.clone() };
        match have.links.get(&name) {
            None => ops.push(add()),
            Some(link) if !can_become(link, spec) => ops.extend([Op::DelLink { name }, add()]),
            Some(link) if !is_as(link, spec) => ops.push(Op::SetLink { name, spec: spec.clone() }),
            Some(_) => {}
        }
    }
    ops
}

fn can_become(link: &ObservedLink, spec: &LinkSpec) -> bool {
    link.kind.as_ref().is_some_and(|kind| kind.can_become(&spec.kind))
}

fn is_as(link: &ObservedLink, spec: &LinkSpec) -> bool {
    link.up
        && link.kind.as_ref() == Some(&spec.kind)
        && link.mac == Some(spec.mac)
        && link.mtu == spec.mtu
        && (spec.tx_checksum.is_none() || link.tx_checksum == spec.tx_checksum)
}

fn after<'a>(have: &'a Observed, ops: &[Op]) -> Cow<'a, Observed> {
    if ops.is_empty() {
        return Cow::Borrowed(have);
    }
    let mut have = have.clone();
    have.record_all(ops);
    Cow::Owned(have)
}

/// Our links that stay, and those that go. What stands on the latter goes with
/// them and needs no ops of its own.
fn own_links(have: &Observed, want: &Desired, own: &Ownership) -> (BTreeSet<IfName>, BTreeSet<IfName>) {
    let ours = own.links.iter().copied().filter(|name| have.links.contains_key(name));
    ours.partition(|name| want.links.contains_key(name))
}

fn new_addresses(have: &Observed, want: &Desired) -> Vec<Op> {
    want.addresses.difference(&have.addresses).map(|&(dev, addr)| Op::AddAddress { dev, addr }).collect()
}

/// What flannel removes, too (compat: EnsureV4AddressOnLink in pkg/ip/iface.go):
/// IPv4 addresses of the network, IPv6 addresses but for link-local ones, and
/// only of a family that has an address of its own on the link.
fn stale_addresses(have: &Observed, want: &Desired, own: &Ownership, kept: &BTreeSet<IfName>) -> Vec<Op> {
    let served: BTreeSet<_> = want.addresses.iter().map(|&(dev, addr)| (dev, Family::of_net(addr))).collect();
    let ours = |dev: IfName, addr: IpNetwork| {
        let reach = match addr {
            IpNetwork::V4(_) => own.covers(addr),
            IpNetwork::V6(v6) => !v6.ip().is_unicast_link_local(),
        };
        reach && kept.contains(&dev) && served.contains(&(dev, Family::of_net(addr)))
    };
    let extra = have.addresses.difference(&want.addresses).copied();
    extra.filter(|&(dev, addr)| ours(dev, addr)).map(|(dev, addr)| Op::DelAddress { dev, addr }).collect()
}

fn sysctls(have: &Observed, want: &Desired) -> Vec<Op> {
    let missing = want.sysctls.iter().filter(|&(key, value)| have.sysctls.get(key) != Some(value));
    missing.map(|(key, value)| Op::SetSysctl { key: key.clone(), value: value.clone() }).collect()
}

fn new_neighbours(have: &Observed, want: &Desired) -> Vec<Op> {
    let missing = want.neighbours.iter().filter(|&(key, mac)| have.neighbours.get(key) != Some(mac));
    missing.map(|(&(dev, ip), &mac)| Op::SetNeighbour { dev, ip, mac }).collect()
}

fn stale_neighbours(have: &Observed, want: &Desired, kept: &BTreeSet<IfName>) -> Vec<Op> {
    let stale = |key: &(IfName, _)| kept.contains(&key.0) && !want.neighbours.contains_key(key);
    let keys = have.neighbours.keys().copied().filter(stale);
    keys.map(|(dev, ip)| Op::DelNeighbour { dev, ip }).collect()
}

fn new_fdb(have: &Observed, want: &Desired) -> Vec<Op> {
    let stands = |key, dst| have.fdb.get(key).is_some_and(|dsts| dsts.len() == 1 && dsts.contains(dst));
    let missing = want.fdb.iter().filter(|&(key, dst)| !stands(key, dst));
    missing.map(|(&(dev, mac), &dst)| Op::SetFdb { dev, mac, dst }).collect()
}

/// Setting the entry of a wanted MAC replaces its destination, so only MACs
/// that nobody has any more are left over.
fn stale_fdb(have: &Observed, want: &Desired, kept: &BTreeSet<IfName>) -> Vec<Op> {
    let stale = have.fdb.iter().filter(|(key, _)| kept.contains(&key.0) && !want.fdb.contains_key(key));
    let each = |(&(dev, mac), dsts): (&(IfName, _), &BTreeSet<_>)| {
        dsts.iter().map(|&dst| Op::DelFdb { dev, mac, dst }).collect::<Vec<_>>()
    };
    stale.flat_map(each).collect()
}

#[derive(Default)]
struct RouteOps {
    stale: Vec<Op>,
    new_nexthops: Vec<Op>,
    new: Vec<Op>,
    stale_nexthops: Vec<Op>,
}

fn routes(have: &Observed, want: &Desired, own: &Ownership, stale_links: &BTreeSet<IfName>) -> RouteOps {
    let mut ops = RouteOps::default();
    let mut ids = NexthopIds::new(have);
    for (&dst, &nexthop) in &want.routes {
        let old = have.routes.get(&dst);
        if let Some(old) = old.filter(|old| ids.stands(have, old, nexthop)) {
            ids.in_use.insert(old.nexthop_id);
            continue;
        }
        // Whoever made a route to a subnet that is leased to a peer: the lease
        // says where it leads. That is also how a route of Go flannel's, equal
        // but untagged, becomes ours by one atomic replacement.
        let id = ids.take(nexthop, &mut ops.new_nexthops);
        ops.new.push(Op::SetRoute { dst, nexthop, id });
    }
    for (&dst, route) in have.routes.iter().filter(|(dst, _)| !want.routes.contains_key(dst)) {
        if is_ours(have, dst, route, own) {
            ops.stale.push(Op::DelRoute { dst, protocol: route.protocol });
        } else {
            // Taking the nexthop away would take the foreign route along.
            ids.in_use.insert(route.nexthop_id);
        }
    }
    let on_stale_link = |nexthop: Option<Nexthop>| nexthop.is_some_and(|hop| stale_links.contains(&hop.dev));
    let ours = have.nexthops.iter().filter(|(_, object)| object.protocol == ROUTE_PROTOCOL);
    let stale = ours.filter(|(id, object)| !ids.in_use.contains(id) && !on_stale_link(object.nexthop));
    ops.stale_nexthops = stale.map(|(&id, _)| Op::DelNexthop { id }).collect();
    ops
}

/// A route carries our number, or leads into the fabric's networks over a link
/// of ours. What the kernel made follows its address and is never removed.
fn is_ours(have: &Observed, dst: IpNetwork, route: &ObservedRoute, own: &Ownership) -> bool {
    let over_own_link = || have.target(route).is_some_and(|nexthop| own.links.contains(&nexthop.dev));
    match route.protocol {
        ROUTE_PROTOCOL => true,
        KERNEL_PROTOCOL => false,
        _ => own.covers(dst) && over_own_link(),
    }
}

/// Nexthop objects by value. An object is never changed to another value, as
/// routes that use it would follow at once: a new one is made, the routes are
/// moved, the old one goes.
struct NexthopIds<'a> {
    by_value: BTreeMap<Nexthop, u32>,
    /// Ids that nobody uses, lowest first; `None` where the kernel has no
    /// nexthop objects.
    free: Option<Box<dyn Iterator<Item = u32> + 'a>>,
    in_use: BTreeSet<u32>,
}

impl<'a> NexthopIds<'a> {
    fn new(have: &'a Observed) -> NexthopIds<'a> {
        let mut by_value = BTreeMap::new();
        for (&id, object) in have.nexthops.iter().filter(|(_, object)| object.protocol == ROUTE_PROTOCOL) {
            if let Some(nexthop) = object.nexthop {
                by_value.entry(nexthop).or_insert(id);
            }
        }
        let free = NEXTHOP_IDS.filter(|id| !have.nexthops.contains_key(id));
        let free = have.nexthop_objects.then(|| Box::new(free) as Box<_>);
        NexthopIds { by_value, free, in_use: BTreeSet::new() }
    }

    /// Whether `route` is ours and leads to `nexthop`. A plain route is left as
    /// it is where there are nexthop objects: it works, and one that was made
    /// for want of free ids would otherwise be written again for ever. One by
    /// way of another's object is not: its owner may change it.
    fn stands(&self, have: &Observed, route: &ObservedRoute, nexthop: Nexthop) -> bool {
        route.protocol == ROUTE_PROTOCOL
            && have.target(route) == Some(nexthop)
            && (route.nexthop_id == 0 || self.by_value.get(&nexthop) == Some(&route.nexthop_id))
    }

    /// The id of the object for `nexthop`, made in `ops` if need be; `None`
    /// where the route has to do without.
    fn take(&mut self, nexthop: Nexthop, ops: &mut Vec<Op>) -> Option<u32> {
        let free = self.free.as_mut()?;
        let id = match self.by_value.get(&nexthop) {
            Some(&id) => id,
            None => {
                let id = free.next()?;
                ops.push(Op::SetNexthop { id, nexthop });
                self.by_value.insert(nexthop, id);
                id
            }
        };
        self.in_use.insert(id);
        Some(id)
    }
}
