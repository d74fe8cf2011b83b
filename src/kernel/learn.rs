//! How what the kernel tells becomes part of what is known of it. A dump is
//! learnt entry by entry just as notifications are.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entry, Glance, Hop, KernelEvent, LinkEntry, Scope, VxlanEntry};
use crate::desired::{
    Destinations, LinkKind, Nexthop, Observed, ObservedLink, ObservedNexthop, ObservedRoute, Op, VxlanSpec,
};
use crate::model::IfName;

/// What an event means for what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Known already (most often the echo of a change of ours), or no concern.
    Nothing,
    /// What is known has been corrected.
    Corrected,
    /// More has changed than the kernel tells: look at everything again.
    Stale,
}

/// What is known of the kernel, and kept up by what it tells.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub have: Observed,
    scope: Scope,
    /// Links in scope as the kernel told of them last.
    told: BTreeMap<u32, LinkEntry>,
    /// Links that changed since that was last asked.
    shaken: BTreeSet<IfName>,
}

impl View {
    /// Links are known anew, and what stands on them not at all until `renew`.
    pub fn renew_links(&mut self, links: BTreeMap<IfName, ObservedLink>) {
        self.have = Observed { links, ..Observed::default() };
    }

    /// Known anew, from a fresh look at what is in `scope`.
    pub fn renew(&mut self, scope: Scope, have: Observed) {
        self.scope = scope;
        self.have = have;
    }

    /// Links that were told of as changed since the last call.
    pub fn take_shaken(&mut self) -> BTreeSet<IfName> {
        std::mem::take(&mut self.shaken)
    }

    pub fn learn(&mut self, event: &KernelEvent) -> Effect {
        match event {
            KernelEvent::Resync(_) => {
                self.told.clear();
                Effect::Stale
            }
            KernelEvent::Setting => Effect::Nothing,
            KernelEvent::Added(Entry::Link(link)) => self.link(link),
            KernelEvent::Added(entry) => added(&mut self.have, entry),
            KernelEvent::Removed(Entry::Link(link)) => self.link_removed(link),
            KernelEvent::Removed(entry) => removed(&mut self.have, entry),
        }
    }

    /// What a glance at the settings tells.
    pub fn glanced(&mut self, glance: Glance) -> Effect {
        let mut changed = self.have.sysctls != glance.sysctls;
        self.have.sysctls = glance.sysctls;
        for (name, on) in glance.tx_checksum {
            if let Some(link) = self.have.links.get_mut(&name) {
                changed |= link.tx_checksum.replace(on) != Some(on);
            }
        }
        corrected(changed)
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// A link that is as it was is no news. Anything else takes more along than
    /// the kernel tells: going down or losing the carrier, its nexthops and
    /// routes; a new MAC, its neighbours.
    fn link(&mut self, link: &LinkEntry) -> Effect {
        if !self.concerns(link) || self.told.get(&link.index) == Some(link) {
            return Effect::Nothing;
        }
        self.told.insert(link.index, link.clone());
        match self.have.links.get(&link.name) {
            Some(known) if link.running && known.is_like(&self.have, link) => Effect::Nothing,
            _ => {
                self.shaken.insert(link.name);
                Effect::Stale
            }
        }
    }

    fn link_removed(&mut self, link: &LinkEntry) -> Effect {
        self.told.remove(&link.index);
        if !self.concerns(link) {
            return Effect::Nothing;
        }
        self.shaken.insert(link.name);
        Effect::Stale
    }

    /// By its name, or by its number where it had a name of ours.
    fn concerns(&self, link: &LinkEntry) -> bool {
        self.scope.links().any(|name| name == link.name) || name_of(&self.have, link.index).is_some()
    }
}

/// An entry of a dump. Of several routes to one destination the kernel uses,
/// and lists, the last added first.
pub(super) fn found(have: &mut Observed, entry: &Entry) {
    match *entry {
        Entry::Route { dst, .. } if have.routes.contains_key(&dst) => return,
        Entry::Fdb { link, mac, in_use: true, .. } => {
            have.in_use.extend(name_of(have, link).map(|dev| (dev, mac)));
        }
        _ => {}
    }
    added(have, entry);
}

fn added(have: &mut Observed, entry: &Entry) -> Effect {
    match *entry {
        Entry::Link(_) => Effect::Nothing,
        Entry::Address { link, addr } => {
            let Some(dev) = name_of(have, link) else { return Effect::Nothing };
            corrected(have.addresses.insert((dev, addr)))
        }
        Entry::Neighbour { link, ip, mac } => {
            let Some(dev) = name_of(have, link) else { return Effect::Nothing };
            corrected(match mac {
                Some(mac) => have.neighbours.insert((dev, ip), mac) != Some(mac),
                None => have.neighbours.remove(&(dev, ip)).is_some(),
            })
        }
        Entry::Fdb { link, mac, dst, .. } => {
            let Some(dev) = name_of(have, link) else { return Effect::Nothing };
            let Some(dst) = dst else {
                return corrected(have.fdb.remove(&(dev, mac)).is_some());
            };
            if !mac.is_unicast() {
                return corrected(have.fdb.entry((dev, mac)).or_default().insert(dst));
            }
            let only = Destinations::of(dst);
            corrected(have.fdb.insert((dev, mac), only.clone()) != Some(only))
        }
        Entry::Nexthop { id, hop, protocol } => {
            let object = ObservedNexthop { nexthop: nexthop_of(have, hop), protocol };
            corrected(have.nexthops.insert(id, object) != Some(object))
        }
        Entry::Route { dst, hop, nexthop_id, protocol } => {
            let route = ObservedRoute { nexthop: nexthop_of(have, hop), nexthop_id, protocol };
            let old = have.routes.insert(dst, route);
            corrected(old.is_none_or(|old| !same_route(have, &old, &route)))
        }
    }
}

fn removed(have: &mut Observed, entry: &Entry) -> Effect {
    match *entry {
        Entry::Link(_) => Effect::Nothing,
        Entry::Address { link, addr } => {
            let Some(dev) = name_of(have, link) else { return Effect::Nothing };
            // With its last IPv4 address a link loses all its routes, and the
            // kernel does not say so (fib_disable_ip() in net/ipv4/fib_frontend.c).
            if have.addresses.remove(&(dev, addr)) { Effect::Stale } else { Effect::Nothing }
        }
        Entry::Neighbour { link, ip, .. } => {
            let Some(dev) = name_of(have, link) else { return Effect::Nothing };
            corrected(have.neighbours.remove(&(dev, ip)).is_some())
        }
        Entry::Fdb { link, mac, dst, .. } => {
            let Some(dev) = name_of(have, link) else { return Effect::Nothing };
            let Some(dst) = dst else { return Effect::Nothing };
            let known = have.fdb.get(&(dev, mac)).is_some_and(|dsts| dsts.contains(&dst));
            have.record(&Op::DelFdb { dev, mac, dst });
            corrected(known)
        }
        Entry::Nexthop { id, .. } => {
            let known = have.nexthops.contains_key(&id);
            if known {
                // Its routes go with it, unannounced.
                have.record(&Op::DelNexthop { id });
            }
            corrected(known)
        }
        Entry::Route { dst, protocol, .. } => {
            let known = have.routes.get(&dst).is_some_and(|route| route.protocol == protocol);
            have.record(&Op::DelRoute { dst, protocol });
            corrected(known)
        }
    }
}

fn corrected(changed: bool) -> Effect {
    if changed { Effect::Corrected } else { Effect::Nothing }
}

impl ObservedLink {
    /// `name_of` finds the underlay's name by its number.
    pub(super) fn seen(link: &LinkEntry, name_of: impl Fn(u32) -> Option<IfName>) -> ObservedLink {
        let kind = |vxlan: &VxlanEntry| {
            Some(LinkKind::Vxlan(VxlanSpec {
                vni: vxlan.vni,
                underlay: name_of(vxlan.underlay)?,
                local: vxlan.local,
                port: vxlan.port,
                learning: vxlan.learning,
                gbp: vxlan.gbp,
            }))
        };
        ObservedLink {
            index: link.index,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            kind: link.vxlan.as_ref().and_then(kind),
            tx_checksum: None,
        }
    }

    fn is_like(&self, have: &Observed, link: &LinkEntry) -> bool {
        let seen = ObservedLink::seen(link, |index| name_of(have, index));
        ObservedLink { tx_checksum: self.tx_checksum, ..seen } == *self
    }
}

/// A route by way of a nexthop object is reported with or without what the
/// object says.
fn same_route(have: &Observed, a: &ObservedRoute, b: &ObservedRoute) -> bool {
    a.nexthop_id == b.nexthop_id && a.protocol == b.protocol && have.target(a) == have.target(b)
}

fn nexthop_of(have: &Observed, hop: Option<Hop>) -> Option<Nexthop> {
    let hop = hop?;
    Some(Nexthop { dev: name_of(have, hop.link)?, via: hop.via, onlink: hop.onlink })
}

/// Links in scope are few.
fn name_of(have: &Observed, index: u32) -> Option<IfName> {
    have.links.iter().find(|(_, link)| link.index == index).map(|(name, _)| *name)
}
