use super::{Desired, Observed};

impl Desired {
    /// What of this state is not in the kernel or is there with another value,
    /// each by a name to show a person: `route 10.1.2.0/24 via 10.1.2.0 dev
    /// flannel.1 onlink`. Given the desired state of one peer alone it tells
    /// that peer's state.
    pub fn missing_from(&self, have: &Observed) -> Vec<String> {
        let links = self.links.keys().filter(|name| !have.links.get(name).is_some_and(|link| link.up));
        let addresses = self.addresses.difference(&have.addresses);
        let neighbours = self.neighbours.iter().filter(|&(key, mac)| have.neighbours.get(key) != Some(mac));
        let fdb =
            self.fdb.iter().filter(|&(key, dst)| !have.fdb.get(key).is_some_and(|dsts| dsts.contains(dst)));
        let routes = self.routes.iter().filter(|&(dst, nexthop)| {
            have.routes.get(dst).and_then(|route| have.target(route)) != Some(*nexthop)
        });

        let mut names: Vec<_> = links.map(|name| format!("link {name}")).collect();
        names.extend(addresses.map(|(dev, addr)| format!("address {addr} dev {dev}")));
        names.extend(neighbours.map(|((dev, ip), mac)| format!("neighbour {ip} lladdr {mac} dev {dev}")));
        names.extend(fdb.map(|((dev, mac), dst)| format!("fdb {mac} dst {dst} dev {dev}")));
        names.extend(routes.map(|(dst, nexthop)| format!("route {dst} {nexthop}")));
        names
    }
}
