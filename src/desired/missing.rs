use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::{Desired, Nexthop, Observed};

impl Desired {
    /// What of this state is not in the kernel, or is there with another value.
    /// Settings are not looked at.
    pub fn missing_from(&self, have: &Observed) -> Desired {
        let leads_there = |dst: &IpNetwork, nexthop: &Nexthop| {
            have.routes.get(dst).and_then(|route| have.target(route)) == Some(*nexthop)
        };
        Desired {
            links: some(&self.links, |name, _| have.links.get(name).is_none_or(|link| !link.up)),
            addresses: self.addresses.difference(&have.addresses).copied().collect(),
            neighbours: some(&self.neighbours, |key, mac| have.neighbours.get(key) != Some(mac)),
            fdb: some(&self.fdb, |key, dst| have.fdb.get(key).is_none_or(|dsts| !dsts.contains(dst))),
            routes: some(&self.routes, |dst, nexthop| !leads_there(dst, nexthop)),
            sysctls: BTreeMap::new(),
        }
    }

    /// What both have, with the same value: of all that is missing and one peer's
    /// share of the state, what is missing of that peer.
    pub fn shared_with(&self, other: &Desired) -> Desired {
        Desired {
            links: common(&self.links, &other.links),
            addresses: self.addresses.intersection(&other.addresses).copied().collect(),
            neighbours: common(&self.neighbours, &other.neighbours),
            fdb: common(&self.fdb, &other.fdb),
            routes: common(&self.routes, &other.routes),
            sysctls: common(&self.sysctls, &other.sysctls),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Desired::default()
    }

    /// Each entry by a name to show a person: `route 10.1.2.0/24 via 10.1.2.0 dev
    /// flannel.1 onlink`.
    pub fn names(&self) -> Vec<String> {
        let links = self.links.keys().map(|name| format!("link {name}"));
        let addresses = self.addresses.iter().map(|(dev, addr)| format!("address {addr} dev {dev}"));
        let neighbours =
            self.neighbours.iter().map(|((dev, ip), mac)| format!("neighbour {ip} lladdr {mac} dev {dev}"));
        let fdb = self.fdb.iter().map(|((dev, mac), dst)| format!("fdb {mac} dst {dst} dev {dev}"));
        let routes = self.routes.iter().map(|(dst, nexthop)| format!("route {dst} {nexthop}"));
        let settings = self.sysctls.iter().map(|(key, value)| format!("{key} = {value}"));
        links.chain(addresses).chain(neighbours).chain(fdb).chain(routes).chain(settings).collect()
    }
}

fn some<K: Ord + Clone, V: Clone>(map: &BTreeMap<K, V>, keep: impl Fn(&K, &V) -> bool) -> BTreeMap<K, V> {
    let kept = map.iter().filter(|&(key, value)| keep(key, value));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn common<K: Ord + Clone, V: Clone + PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> BTreeMap<K, V> {
    some(a, |key, value| b.get(key) == Some(value))
}
