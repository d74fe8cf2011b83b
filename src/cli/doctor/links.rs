//! Links and routes: the bridge, MTUs, and networks that overlap.

use ipnetwork::IpNetwork;

use super::Check;
use super::facts::{Facts, gateway};
use crate::daemon::uplink;
use crate::desired::ROUTE_PROTOCOL;
use crate::kernel::host::{HostLink, HostRoute};

/// The bridge that the flannel conflist makes.
const BRIDGE: &str = "cni0";

pub(super) fn bridge(facts: &Facts<'_>) -> Check {
    let mut check = Check::new("bridge", "cni0 is the gateway of this node's subnet");
    let (Some(link), Some(own)) = (facts.link(BRIDGE), facts.own()) else {
        check.seen = "there is no cni0 yet: the first container brings it".to_owned();
        return check;
    };
    for (family, net) in own.nets() {
        let global = link.addresses.iter().filter(|address| !address.link_local);
        let mut here =
            global.map(|address| address.net).filter(|addr| addr.is_ipv4() == net.is_ipv4()).peekable();
        let expected = gateway(net);
        if here.peek().is_some() && !here.clone().any(|addr| addr.ip() == expected) {
            let found: Vec<_> = here.map(|addr| addr.to_string()).collect();
            check.problem(
                format!("{BRIDGE} has {} and not {expected}/{}", found.join(", "), net.prefix()),
                format!("the {family} subnet has changed under it: new containers are refused, and those of the old subnet are cut off"),
                format!("remove this node's containers and then the bridge (ip link del {BRIDGE}): the next container brings it anew"),
            );
        }
    }
    check
}

pub(super) fn overlap(facts: &Facts<'_>) -> Check {
    let mut check = Check::new("overlap", "no network of this host lies in the fabric's");
    let Ok(fabric) = &facts.fabric else {
        check.seen = "not looked at, for want of the network config".to_owned();
        return check;
    };
    let leased: Vec<IpNetwork> = match &facts.snapshot {
        Ok(snapshot) => {
            snapshot.leases.iter().flat_map(|stored| stored.lease.key.nets()).map(|(_, net)| net).collect()
        }
        Err(_) => Vec::new(),
    };
    let own: Vec<IpNetwork> = facts.own().iter().flat_map(|key| key.nets()).map(|(_, net)| net).collect();
    let is_ours = |route: &HostRoute, link: Option<&HostLink>| {
        route.protocol == ROUTE_PROTOCOL
            || link.is_some_and(|link| fabric.is_tunnel(link.name))
            || leased.contains(&route.dst)
            || own.iter().any(|net| net.contains(route.dst.ip()) && net.prefix() <= route.dst.prefix())
    };
    for (_, pool) in fabric.network.pools.iter() {
        if let Some(conflict) = uplink::overlap(&facts.host, pool, is_ours) {
            check.problem(
                format!("the fabric's network {} overlaps {conflict}", pool.network),
                "one of the two is cut off: packets for it go the other's way",
                "give the fabric a network that nobody uses (`Network` in its config), before nodes have joined, or renumber the other",
            );
        }
    }
    check
}

pub(super) fn mtu(facts: &Facts<'_>) -> Check {
    let mut check = Check::new("mtu", "tunnel and bridge leave room for the encapsulation");
    let Ok(fabric) = &facts.fabric else {
        check.seen = "not looked at, for want of the network config".to_owned();
        return check;
    };
    let hang = "large packets are lost while small ones pass: connections open and then hang";
    for (name, overhead) in fabric.tunnels() {
        let room = fabric.node.uplink_mtu.saturating_sub(overhead);
        if let Some(link) = facts.link(name.as_str()).filter(|link| link.mtu > room) {
            check.problem(
                format!("{name} has an MTU of {}, the uplink {} leaves {room}", link.mtu, fabric.node.uplink),
                hang,
                format!("start the daemon, which follows the uplink, or: ip link set {name} mtu {room}"),
            );
        }
    }
    let most = fabric.backend.mtu(&fabric.node);
    if let Some(bridge) = facts.link(BRIDGE).filter(|link| link.mtu > most) {
        check.problem(
            format!("{BRIDGE} has an MTU of {}, the fabric leaves {most}", bridge.mtu),
            hang,
            "make the containers anew, after which the bridge has the MTU of subnet.env; a fixed `mtu` in the CNI config is to go",
        );
    }
    check
}
