use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Destinations, LinkKind, LinkSpec, Nexthop, Op, ROUTE_PROTOCOL};
use crate::model::{Family, IfName, Mac};

/// The part of the kernel's state that `diff` looks at: whatever could be ours
/// or stand in our way, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links that matter: of our names, and the underlay.
    pub links: BTreeMap<IfName, ObservedLink>,
    /// Addresses of the links in `links`.
    pub addresses: BTreeSet<(IfName, IpNetwork)>,
    /// Permanent neighbours of our links.
    pub neighbours: BTreeMap<(IfName, IpAddr), Mac>,
    /// FDB entries with a destination on our links. Only the all-zero and
    /// multicast MACs can have several.
    pub fdb: BTreeMap<(IfName, Mac), Destinations>,
    /// Those that packets were sent to shortly before this was read.
    pub in_use: BTreeSet<(IfName, Mac)>,
    /// Every nexthop object of the namespace: ids are one number space.
    pub nexthops: BTreeMap<u32, ObservedNexthop>,
    /// Unicast routes of the main table with the default metric, by destination.
    pub routes: BTreeMap<IpNetwork, ObservedRoute>,
    /// By path below `/proc/sys`; a file that does not exist is left out.
    pub sysctls: BTreeMap<String, String>,
    /// The kernel has nexthop objects (Linux 5.3).
    pub nexthop_objects: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLink {
    /// 0 for a link that was recorded as made and not seen since.
    pub index: u32,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// What it is, where that is a kind we make.
    pub kind: Option<LinkKind>,
    /// `None` where it was not asked for; `diff` sets it where one is wanted.
    pub tx_checksum: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedNexthop {
    /// `None` for groups, blackholes and whatever else is not ours to know.
    pub nexthop: Option<Nexthop>,
    pub protocol: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedRoute {
    /// `None` where the route has several next hops, no gateway or no device,
    /// or is reported with `nexthop_id` alone.
    pub nexthop: Option<Nexthop>,
    /// The nexthop object it uses; 0 for none.
    pub nexthop_id: u32,
    pub protocol: u8,
}

impl Observed {
    /// Where a route leads: what its nexthop object says, else what it says
    /// itself.
    pub fn target(&self, route: &ObservedRoute) -> Option<Nexthop> {
        match self.nexthops.get(&route.nexthop_id) {
            Some(object) => object.nexthop,
            None => route.nexthop,
        }
    }

    /// What the state is once `op` is applied, with all that the kernel does on
    /// its own account and tells nobody.
    pub fn record(&mut self, op: &Op) {
        self.record_all([op]);
    }

    /// `record` for each of `ops` in turn. Removing many nexthops in a row
    /// costs one walk over the routes.
    pub fn record_all<'a>(&mut self, ops: impl IntoIterator<Item = &'a Op>) {
        let mut dead_nexthops = BTreeSet::new();
        for op in ops {
            if let Op::DelNexthop { id } = op {
                dead_nexthops.insert(*id);
                continue;
            }
            self.remove_nexthops(&std::mem::take(&mut dead_nexthops));
            self.record_one(op);
        }
        self.remove_nexthops(&dead_nexthops);
    }

    /// A link went down, by whoever's hand. Measured on Linux 6.18: nexthops on
    /// it, routes over it, its neighbours and IPv6 addresses are gone for good,
    /// most of them without a notification; IPv4 addresses and permanent FDB
    /// entries stay.
    pub fn link_down(&mut self, name: IfName) {
        if let Some(link) = self.links.get_mut(&name) {
            link.up = false;
        }
        self.remove_routes_over(name);
        self.neighbours.retain(|(dev, _), _| *dev != name);
        self.addresses.retain(|(dev, addr)| *dev != name || Family::of_net(*addr) == Family::V4);
    }

    fn record_one(&mut self, op: &Op) {
        match op {
            Op::DelRoute { dst, protocol } => {
                if self.routes.get(dst).is_some_and(|route| route.protocol == *protocol) {
                    self.routes.remove(dst);
                }
            }
            Op::DelLink { name } => self.link_gone(*name),
            Op::AddLink { name, spec } => {
                self.links.insert(*name, ObservedLink::made(spec));
            }
            Op::SetLink { name, spec } => self.link_set(*name, spec),
            Op::AddAddress { dev, addr } => {
                self.addresses.insert((*dev, *addr));
            }
            Op::DelAddress { dev, addr } => {
                self.addresses.remove(&(*dev, *addr));
            }
            Op::SetSysctl { key, value } => {
                self.sysctls.insert(key.clone(), value.clone());
            }
            Op::SetNeighbour { dev, ip, mac } => {
                self.neighbours.insert((*dev, *ip), *mac);
            }
            Op::DelNeighbour { dev, ip } => {
                self.neighbours.remove(&(*dev, *ip));
            }
            Op::SetFdb { dev, mac, dst } => {
                self.fdb.insert((*dev, *mac), Destinations::of(*dst));
            }
            Op::DelFdb { dev, mac, dst } => self.remove_fdb((*dev, *mac), dst),
            Op::SetNexthop { id, nexthop } => self.set_nexthop(*id, *nexthop),
            Op::DelNexthop { id } => self.remove_nexthops(&BTreeSet::from([*id])),
            Op::SetRoute { dst, nexthop, id } => {
                let route = ObservedRoute {
                    nexthop: Some(*nexthop),
                    nexthop_id: id.unwrap_or(0),
                    protocol: ROUTE_PROTOCOL,
                };
                self.routes.insert(*dst, route);
            }
        }
    }

    /// A link that was down has lost what `link_down` says, even where an old
    /// look at it says otherwise. A new MAC drops every neighbour, the permanent
    /// ones too (`neigh_changeaddr()` in net/core/neighbour.c).
    fn link_set(&mut self, name: IfName, spec: &LinkSpec) {
        let Some(link) = self.links.get(&name) else { return };
        if !link.up {
            self.link_down(name);
        } else if link.mac != Some(spec.mac) {
            self.neighbours.retain(|(dev, _), _| *dev != name);
        }
        if let Some(link) = self.links.get_mut(&name) {
            let tx_checksum = spec.tx_checksum.or(link.tx_checksum);
            *link = ObservedLink { index: link.index, tx_checksum, ..ObservedLink::made(spec) };
        }
    }

    fn link_gone(&mut self, name: IfName) {
        self.link_down(name);
        self.links.remove(&name);
        self.addresses.retain(|(dev, _)| *dev != name);
        self.fdb.retain(|(dev, _), _| *dev != name);
        self.sysctls.retain(|key, _| !key.split('/').any(|part| part == name.as_str()));
        // A tunnel goes with its underlay (vxlan_handle_lowerdev_unregister()).
        let tunnels: Vec<_> = self.links.iter().filter(|(_, link)| link.stands_on(name)).collect();
        for tunnel in tunnels.into_iter().map(|(tunnel, _)| *tunnel).collect::<Vec<_>>() {
            self.link_gone(tunnel);
        }
    }

    fn remove_routes_over(&mut self, name: IfName) {
        let on_link = |nexthop: Option<Nexthop>| nexthop.is_some_and(|nexthop| nexthop.dev == name);
        let dead =
            self.nexthops.iter().filter(|(_, object)| on_link(object.nexthop)).map(|(id, _)| *id).collect();
        self.remove_nexthops(&dead);
        self.routes.retain(|_, route| !on_link(route.nexthop));
    }

    fn remove_nexthops(&mut self, dead: &BTreeSet<u32>) {
        if dead.is_empty() {
            return;
        }
        for id in dead {
            self.nexthops.remove(id);
        }
        self.routes.retain(|_, route| !dead.contains(&route.nexthop_id));
    }

    fn remove_fdb(&mut self, key: (IfName, Mac), dst: &IpAddr) {
        let Some(dsts) = self.fdb.get_mut(&key) else { return };
        dsts.remove(dst);
        if dsts.is_empty() {
            self.fdb.remove(&key);
        }
    }

    /// Routes that use the object follow it.
    fn set_nexthop(&mut self, id: u32, nexthop: Nexthop) {
        let object = ObservedNexthop { nexthop: Some(nexthop), protocol: ROUTE_PROTOCOL };
        let Some(old) = self.nexthops.insert(id, object) else { return };
        if old.nexthop == object.nexthop {
            return;
        }
        for route in self.routes.values_mut().filter(|route| route.nexthop_id == id) {
            route.nexthop = Some(nexthop);
        }
    }
}

impl ObservedLink {
    fn made(spec: &LinkSpec) -> ObservedLink {
        ObservedLink {
            index: 0,
            mac: Some(spec.mac),
            mtu: spec.mtu,
            up: true,
            kind: Some(spec.kind.clone()),
            tx_checksum: spec.tx_checksum,
        }
    }

    fn stands_on(&self, underlay: IfName) -> bool {
        match &self.kind {
            Some(LinkKind::Vxlan(vxlan)) => vxlan.underlay == underlay,
            None => false,
        }
    }
}
