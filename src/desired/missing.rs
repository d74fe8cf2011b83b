use super::{Desired, Observed};

impl Desired {
    /// What of this state is not in the kernel, or is there with another value.
    /// Settings are not looked at.
    pub fn missing_from(&self, have: &Observed) -> Desired {
        let links = self.links.iter().filter(|(name, _)| !have.links.get(name).is_some_and(|link| link.up));
        let neighbours = self.neighbours.iter().filter(|&(key, mac)| have.neighbours.get(key) != Some(mac));
        let fdb =
            self.fdb.iter().filter(|&(key, dst)| !have.fdb.get(key).is_some_and(|dsts| dsts.contains(dst)));
        let routes = self.routes.iter().filter(|&(dst, nexthop)| {
            have.routes.get(dst).and_then(|route| have.target(route)) != Some(*nexthop)
        });
        Desired {
            links: links.map(|(name, link)| (*name, link.clone())).collect(),
            addresses: self.addresses.difference(&have.addresses).copied().collect(),
            neighbours: neighbours.map(|(key, mac)| (*key, *mac)).collect(),
            fdb: fdb.map(|(key, dst)| (*key, *dst)).collect(),
            routes: routes.map(|(dst, nexthop)| (*dst, *nexthop)).collect(),
            sysctls: Default::default(),
        }
    }

    /// What both have, with the same value: of all that is missing and one peer's
    /// share of the state, what is missing of that peer.
    pub fn shared_with(&self, other: &Desired) -> Desired {
        let links = self.links.iter().filter(|(name, link)| other.links.get(name) == Some(link));
        let neighbours = self.neighbours.iter().filter(|(key, mac)| other.neighbours.get(key) == Some(mac));
        let fdb = self.fdb.iter().filter(|(key, dst)| other.fdb.get(key) == Some(dst));
        let routes = self.routes.iter().filter(|(dst, nexthop)| other.routes.get(dst) == Some(nexthop));
        let sysctls = self.sysctls.iter().filter(|(key, value)| other.sysctls.get(*key) == Some(value));
        Desired {
            links: links.map(|(name, link)| (*name, link.clone())).collect(),
            addresses: self.addresses.intersection(&other.addresses).copied().collect(),
            neighbours: neighbours.map(|(key, mac)| (*key, *mac)).collect(),
            fdb: fdb.map(|(key, dst)| (*key, *dst)).collect(),
            routes: routes.map(|(dst, nexthop)| (*dst, *nexthop)).collect(),
            sysctls: sysctls.map(|(key, value)| (key.clone(), value.clone())).collect(),
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
