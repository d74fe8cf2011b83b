use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnetwork::IpNetwork;

use super::ownership::KERNEL_PROTOCOL;
use super::{
    Desired, Destinations, LinkSpec, NEXTHOP_IDS, Nexthop, Observed, ObservedLink, ObservedRoute, Op,
};
use super::{Ownership, Plan, ROUTE_PROTOCOL, Touched};
use crate::model::{Family, IfName, Mac};

/// The plan that leads from `have` to `want` and touches nothing foreign.
///
/// Linear in the number of entries, and deterministic. A state that has all
/// that is wanted, and nothing of ours besides, gives an empty plan.
pub fn diff(have: &Observed, want: &Desired, own: &Ownership) -> Plan {
    let links = links(have, want);
    // What a changed link takes along is missing to all that follows.
    plan(&after(have, &links), want, own, links, None)
}

/// Of that plan, the links that are made or changed: for a state of which no more
/// than the links is known.
pub fn diff_of_links(have: &Observed, want: &Desired) -> Plan {
    Plan { ops: links(have, want) }
}

/// `diff` for the links as they are: what is to stand on them, not how they are
/// to be.
pub fn diff_on_links(have: &Observed, want: &Desired, own: &Ownership) -> Plan {
    plan(have, want, own, Vec::new(), None)
}

/// `diff` where `have` had all that was wanted until that changed under
/// `touched`: the same plan, without a look at the rest.
pub fn diff_at(have: &Observed, want: &Desired, own: &Ownership, touched: &Touched) -> Plan {
    plan(have, want, own, Vec::new(), Some(touched))
}

fn plan(have: &Observed, want: &Desired, own: &Ownership, links: Vec<Op>, touched: Option<&Touched>) -> Plan {
    let (kept, stale_links) = own_links(have, want, own);
    let sysctls = compare(&have.sysctls, &want.sysctls, None, |old, new| old == new);
    let at = touched.map(|touched| &touched.neighbours);
    let neighbours = compare(&have.neighbours, &want.neighbours, at, |old, new| old == new);
    let at = touched.map(|touched| &touched.fdb);
    let fdb = compare(&have.fdb, &want.fdb, at, |old, new| old.is(new));
    let routes = routes(have, want, own, touched.map(|touched| &touched.routes), &stale_links);

    let mut ops = routes.stale;
    let new = routes.new_nexthops.len() + routes.new.len();
    ops.reserve_exact(new + neighbours.missing.len() + fdb.missing.len() + 64);
    ops.extend(links);
    ops.extend(new_addresses(have, want));
    ops.extend(sysctls.missing.iter().map(|&(key, value)| set_sysctl(key, value)));
    ops.extend(fdb.missing.iter().map(|&(&(dev, mac), &dst)| Op::SetFdb { dev, mac, dst }));
    let ways = ops.len();
    ops.extend(neighbours.missing.iter().map(|&(&(dev, ip), &mac)| Op::SetNeighbour { dev, ip, mac }));
    ops.extend(routes.new_nexthops);
    ops.extend(routes.new);
    by_peer(have, want, &mut ops[ways..]);
    ops.extend(routes.stale_nexthops);
    ops.extend(fdb.extra.iter().filter(|((dev, _), _)| kept.contains(dev)).flat_map(|&entry| del_fdb(entry)));
    let extra = neighbours.extra.iter().filter(|((dev, _), _)| kept.contains(dev));
    ops.extend(extra.map(|&(&(dev, ip), _)| Op::DelNeighbour { dev, ip }));
    ops.extend(stale_addresses(have, want, own));
    ops.extend(stale_links.into_iter().map(|name| Op::DelLink { name }));
    Plan { ops }
}

/// What of `want` is missing or has another value, and what is there besides.
struct Delta<'a, K, A, B> {
    missing: Vec<(&'a K, &'a B)>,
    extra: Vec<(&'a K, &'a A)>,
}

/// One walk over both, or a look at the keys given.
fn compare<'a, K: Ord, A, B>(
    have: &'a BTreeMap<K, A>,
    want: &'a BTreeMap<K, B>,
    at: Option<&'a BTreeSet<K>>,
    mut same: impl FnMut(&A, &B) -> bool,
) -> Delta<'a, K, A, B> {
    let mut delta = Delta { missing: Vec::new(), extra: Vec::new() };
    let mut have = entries(have, at).peekable();
    for (key, new) in entries(want, at) {
        while let Some(entry) = have.next_if(|(other, _)| *other < key) {
            delta.extra.push(entry);
        }
        let stands = have.next_if(|(other, _)| *other == key).is_some_and(|(_, old)| same(old, new));
        if !stands {
            delta.missing.push((key, new));
        }
    }
    delta.extra.extend(have);
    delta
}

/// All of a map, or what it has under the keys given; ascending either way.
fn entries<'a, K: Ord, V>(
    map: &'a BTreeMap<K, V>,
    at: Option<&'a BTreeSet<K>>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let all = at.is_none().then(|| map.iter());
    let some = at.map(|keys| keys.iter().filter_map(|key| map.get_key_value(key)));
    all.into_iter().flatten().chain(some.into_iter().flatten())
}

fn links(have: &Observed, want: &Desired) -> Vec<Op> {
    let mut ops = Vec::new();
    for (&name, spec) in &want.links {
        let add = || Op::AddLink { name, spec: Box::new(spec.clone()) };
        match have.links.get(&name) {
            None => ops.push(add()),
            Some(link) if !can_become(link, spec) => ops.extend([Op::DelLink { name }, add()]),
            Some(link) if !is_as(link, spec) => ops.push(Op::SetLink { name, spec: Box::new(spec.clone()) }),
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
fn stale_addresses(have: &Observed, want: &Desired, own: &Ownership) -> Vec<Op> {
    let served: BTreeSet<_> = want.addresses.iter().map(|&(dev, addr)| (dev, Family::of_net(addr))).collect();
    let ours = |dev: IfName, addr: IpNetwork| {
        let reach = match addr {
            IpNetwork::V4(_) => own.covers(addr),
            IpNetwork::V6(v6) => !v6.ip().is_unicast_link_local(),
        };
        reach && served.contains(&(dev, Family::of_net(addr)))
    };
    let extra = have.addresses.difference(&want.addresses).copied();
    extra.filter(|&(dev, addr)| ours(dev, addr)).map(|(dev, addr)| Op::DelAddress { dev, addr }).collect()
}

fn set_sysctl(key: &str, value: &str) -> Op {
    Op::SetSysctl { key: key.to_owned(), value: value.to_owned() }
}

/// Setting the entry of a wanted MAC replaces its destination, so only MACs
/// that nobody has any more are left over.
fn del_fdb<'a>((&(dev, mac), dsts): (&(IfName, Mac), &'a Destinations)) -> impl Iterator<Item = Op> + 'a {
    dsts.iter().map(move |&dst| Op::DelFdb { dev, mac, dst })
}

/// Peer by peer, neighbour, nexthop and route of one together, so that the first
/// need not wait for the last; and those first that packets are sent to.
fn by_peer(have: &Observed, want: &Desired, ways: &mut [Op]) {
    let leads_to_use = |(dev, mac)| have.in_use.contains(&(dev, mac));
    let gateways = want.neighbours.iter().filter(|_| !have.in_use.is_empty());
    let gateways = gateways.filter(|((dev, _), mac)| leads_to_use((*dev, **mac)));
    let in_use: BTreeSet<_> = gateways.map(|(gateway, _)| *gateway).collect();
    let gateway = |op: &Op| match *op {
        Op::SetNeighbour { dev, ip, .. } => Some((dev, ip)),
        Op::SetNexthop { nexthop, .. } | Op::SetRoute { nexthop, .. } => Some((nexthop.dev, nexthop.via)),
        _ => None,
    };
    // Ops of one peer stay in their order.
    ways.sort_by_cached_key(|op| {
        let gateway = gateway(op);
        (!gateway.is_some_and(|gateway| in_use.contains(&gateway)), gateway)
    });
}

#[derive(Default)]
struct RouteOps {
    stale: Vec<Op>,
    new_nexthops: Vec<Op>,
    new: Vec<Op>,
    stale_nexthops: Vec<Op>,
}

fn routes(
    have: &Observed,
    want: &Desired,
    own: &Ownership,
    at: Option<&BTreeSet<IpNetwork>>,
    stale_links: &BTreeSet<IfName>,
) -> RouteOps {
    let mut ops = RouteOps::default();
    let mut ids_in_use = Vec::new();
    let routes = compare(&have.routes, &want.routes, at, |old, new| {
        let stands = stands(have, old, *new);
        ids_in_use.extend(stands.then_some(old.nexthop_id));
        stands
    });
    let mut objects = Nexthops::new(have, routes.missing.iter().map(|(_, nexthop)| **nexthop));
    ops.new.reserve_exact(routes.missing.len());
    for (&dst, &nexthop) in routes.missing {
        // Whoever made a route to a subnet that is leased to a peer: the lease
        // says where it leads. That is also how a route of Go flannel's, equal
        // but untagged, becomes ours by one atomic replacement.
        let id = objects.take(nexthop, &mut ops.new_nexthops);
        ids_in_use.extend(id);
        ops.new.push(Op::SetRoute { dst, nexthop, id });
    }
    for (&dst, route) in routes.extra {
        if is_ours(have, dst, route, own) {
            ops.stale.push(Op::DelRoute { dst, protocol: route.protocol });
        } else {
            // Taking the nexthop away would take the foreign route along.
            ids_in_use.push(route.nexthop_id);
        }
    }
    let left = left_behind(have, at, &mut ids_in_use);
    ops.stale_nexthops = stale_nexthops(have, left, ids_in_use, stale_links);
    ops
}

/// The nexthops that may be of no use any more: any, or those of the routes
/// `at` these destinations alone. Then those in use elsewhere are added to
/// `in_use`.
fn left_behind(have: &Observed, at: Option<&BTreeSet<IpNetwork>>, in_use: &mut Vec<u32>) -> Option<Vec<u32>> {
    let at = at?;
    let mut left: Vec<u32> = entries(&have.routes, Some(at)).map(|(_, route)| route.nexthop_id).collect();
    left.sort_unstable();
    left.dedup();
    if !left.is_empty() {
        let elsewhere = have.routes.iter().filter(|(dst, _)| !at.contains(dst));
        let ids = elsewhere.map(|(_, route)| route.nexthop_id);
        in_use.extend(ids.filter(|id| left.binary_search(id).is_ok()));
    }
    Some(left)
}

/// Whether `route` is ours and leads to `nexthop`. A plain route is left as it
/// is where there are nexthop objects: it works, and one that was made for want
/// of free ids would otherwise be written again for ever. One by way of
/// somebody else's object is not: its owner may change it.
fn stands(have: &Observed, route: &ObservedRoute, nexthop: Nexthop) -> bool {
    let object = have.nexthops.get(&route.nexthop_id);
    let target = object.map_or(route.nexthop, |object| object.nexthop);
    route.protocol == ROUTE_PROTOCOL
        && target == Some(nexthop)
        && object.is_none_or(|object| object.protocol == ROUTE_PROTOCOL)
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

/// Ours among `left`, or among all, that are not in use.
fn stale_nexthops(
    have: &Observed,
    left: Option<Vec<u32>>,
    mut in_use: Vec<u32>,
    stale_links: &BTreeSet<IfName>,
) -> Vec<Op> {
    in_use.sort_unstable();
    let left: Option<BTreeSet<u32>> = left.map(|ids| ids.into_iter().collect());
    let goes_with_link = |nexthop: Option<Nexthop>| nexthop.is_some_and(|hop| stale_links.contains(&hop.dev));
    let ours = entries(&have.nexthops, left.as_ref()).filter(|(_, object)| object.protocol == ROUTE_PROTOCOL);
    let unused = ours.filter(|(id, _)| in_use.binary_search(id).is_err());
    let stale = unused.filter(|(_, object)| !goes_with_link(object.nexthop));
    stale.map(|(&id, _)| Op::DelNexthop { id }).collect()
}

/// Nexthop objects for routes to be set. An object is never changed to another
/// value, as routes that use it would follow at once: a new one is made, the
/// routes are moved, the old one goes.
struct Nexthops<'a> {
    /// Ours by value, as far as they are asked for.
    by_value: HashMap<Nexthop, u32>,
    /// Ids that nobody uses; none where the kernel has no nexthop objects.
    free: Box<dyn Iterator<Item = u32> + 'a>,
}

impl<'a> Nexthops<'a> {
    fn new(have: &'a Observed, wanted: impl Iterator<Item = Nexthop>) -> Nexthops<'a> {
        // Above all that are in use, so that one more costs no look at these; then
        // the gaps.
        let used = || have.nexthops.range(NEXTHOP_IDS).map(|(id, _)| *id);
        let above = used().next_back().map_or(*NEXTHOP_IDS.start(), |last| last + 1);
        let mut used = used().peekable();
        let gaps = (*NEXTHOP_IDS.start()..above).filter(move |id| used.next_if_eq(id).is_none());
        let ids = (above..=*NEXTHOP_IDS.end()).chain(gaps);
        Nexthops {
            by_value: own_nexthops(have, wanted),
            free: Box::new(ids.take_while(|_| have.nexthop_objects)),
        }
    }

    /// The id of the object for `nexthop`, made in `ops` if need be; `None`
    /// where the route has to do without.
    fn take(&mut self, nexthop: Nexthop, ops: &mut Vec<Op>) -> Option<u32> {
        if let Some(&id) = self.by_value.get(&nexthop) {
            return Some(id);
        }
        let id = self.free.next()?;
        ops.push(Op::SetNexthop { id, nexthop });
        self.by_value.insert(nexthop, id);
        Some(id)
    }
}

/// Of equal ones, the lowest id.
fn own_nexthops(have: &Observed, wanted: impl Iterator<Item = Nexthop>) -> HashMap<Nexthop, u32> {
    // Not hashed: most often there is one, and each object is looked up in it.
    let wanted: BTreeSet<Nexthop> = if have.nexthops.is_empty() { BTreeSet::new() } else { wanted.collect() };
    if wanted.is_empty() {
        return HashMap::new();
    }
    let ours = have.nexthops.iter().rev().filter(|(_, object)| object.protocol == ROUTE_PROTOCOL);
    let by_value = ours.filter_map(|(&id, object)| Some((object.nexthop?, id)));
    by_value.filter(|(nexthop, _)| wanted.contains(nexthop)).collect()
}
