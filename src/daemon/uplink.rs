//! Which interface other nodes reach this one by (flannel
//! pkg/ipmatch/match.go), and what else this host reaches. A pure function of
//! what `kernel::host` read.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use thiserror::Error;

use crate::backends::Node;
use crate::kernel::host::{Host, HostLink, HostRoute};
use crate::model::{Family, IfName, PerFamily, Pool};

/// What a person asked for; all empty takes the default route's interface.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names or addresses, the first that exists wins.
    pub ifaces: Vec<String>,
    /// The interface that the kernel would reach a given address by.
    pub can_reach: Option<(IpAddr, Option<u32>)>,
    pub public_ip: PerFamily<IpAddr>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum UplinkError {
    #[error("--iface {wanted}: no such interface or address: this host has {have}")]
    NoSuchInterface { wanted: String, have: String },
    #[error("--iface-can-reach {0}: the kernel has no route to it")]
    Unreachable(IpAddr),
    #[error("no {0} default route, and no --iface or --public-ip names an interface: give --iface")]
    NoDefaultRoute(Family),
    #[error("the default routes of IPv4 and IPv6 leave by {0} and {1}: choose one with --iface")]
    TwoDefaults(IfName, IfName),
    #[error("no interface owns --public-ip {0}: give --iface beside it")]
    NobodyOwns(IpAddr),
    #[error(
        "interface {0} has no usable {1} address, which the network config asks for: add one or choose another with --iface"
    )]
    NoAddress(IfName, Family),
    #[error("interface {0} has MTU 0")]
    NoMtu(IfName),
}

/// The link to take, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub node: Node,
    pub because: String,
}

/// flannel's rules in flannel's order: flags, then the owner of the public
/// address, then the default route.
pub fn choose(host: &Host, request: &Request, families: &[Family]) -> Result<Choice, UplinkError> {
    let (link, address, because) = find(host, request, families)?;
    if link.mtu == 0 {
        return Err(UplinkError::NoMtu(link.name));
    }
    let mut own = PerFamily::default();
    for &family in families {
        let named = address.filter(|ip| Family::of(*ip) == family);
        let ip = named.or_else(|| best(link, family)).ok_or(UplinkError::NoAddress(link.name, family))?;
        own.set(family, Some(ip));
    }
    let public_ip =
        families.iter().filter_map(|f| Some((*f, *request.public_ip.get(*f).or(own.get(*f))?))).collect();
    let on_link: BTreeSet<_> =
        link.addresses.iter().filter(|a| !a.link_local).map(|a| masked(a.net)).collect();
    let on_link = on_link.into_iter().collect();
    let node = Node { uplink: link.name, uplink_mtu: link.mtu, address: own, public_ip, on_link };
    Ok(Choice { node, because })
}

/// The first network of this host that `pool` overlaps, in words. `own` names
/// links whose addresses and routes are the fabric's.
pub fn overlap(
    host: &Host,
    pool: &Pool,
    own: impl Fn(&HostRoute, Option<&HostLink>) -> bool,
) -> Option<String> {
    let link = |index: u32| host.links.iter().find(|link| link.index == index);
    let meets = |net: IpNetwork| {
        Family::of_net(net) == Family::of_net(pool.network)
            && (net.contains(pool.network.ip()) || pool.network.contains(net.ip()))
    };
    host.routes
        .iter()
        .filter(|route| route.dst.prefix() > 0 && meets(route.dst) && !own(route, link(route.link)))
        .map(|route| match link(route.link) {
            Some(link) => format!("route {} dev {}", route.dst, link.name),
            None => format!("route {}", route.dst),
        })
        .next()
}

fn find<'a>(
    host: &'a Host,
    request: &Request,
    families: &[Family],
) -> Result<(&'a HostLink, Option<IpAddr>, String), UplinkError> {
    for wanted in &request.ifaces {
        if let Some((link, ip)) = named(host, wanted) {
            return Ok((link, ip, format!("--iface {wanted} names it")));
        }
    }
    if let Some((target, found)) = request.can_reach {
        let link = found.and_then(|index| by_index(host, index)).ok_or(UplinkError::Unreachable(target))?;
        return Ok((link, None, format!("it reaches {target}")));
    }
    if let Some(wanted) = request.ifaces.first() {
        let have = host.links.iter().map(|link| link.name.to_string()).collect::<Vec<_>>().join(", ");
        return Err(UplinkError::NoSuchInterface { wanted: wanted.clone(), have });
    }
    if let Some((_, ip)) = request.public_ip.iter().next() {
        let link = owner(host, *ip).ok_or(UplinkError::NobodyOwns(*ip))?;
        return Ok((link, Some(*ip), format!("it owns {ip}")));
    }
    let mut chosen: Option<&HostLink> = None;
    for &family in families {
        let link = default_link(host, family).ok_or(UplinkError::NoDefaultRoute(family))?;
        match chosen {
            Some(other) if other.index != link.index => {
                return Err(UplinkError::TwoDefaults(other.name, link.name));
            }
            _ => chosen = Some(link),
        }
    }
    let link = chosen.ok_or(UplinkError::NoDefaultRoute(Family::V4))?;
    Ok((link, None, "the default route leaves by it".to_owned()))
}

fn named<'a>(host: &'a Host, wanted: &str) -> Option<(&'a HostLink, Option<IpAddr>)> {
    match wanted.parse::<IpAddr>() {
        Ok(ip) => owner(host, ip).map(|link| (link, Some(ip))),
        Err(_) => host.links.iter().find(|link| link.name.as_str() == wanted).map(|link| (link, None)),
    }
}

fn owner(host: &Host, ip: IpAddr) -> Option<&HostLink> {
    host.links.iter().find(|link| link.addresses.iter().any(|a| a.net.ip() == ip))
}

fn by_index(host: &Host, index: u32) -> Option<&HostLink> {
    host.links.iter().find(|link| link.index == index)
}

fn default_link(host: &Host, family: Family) -> Option<&HostLink> {
    host.routes
        .iter()
        .filter(|route| route.dst.prefix() == 0 && Family::of_net(route.dst) == family)
        .min_by_key(|route| route.metric)
        .and_then(|route| by_index(host, route.link))
}

/// Global before link-local, then permanent before leased, then stable before
/// temporary; deprecated ones never.
fn best(link: &HostLink, family: Family) -> Option<IpAddr> {
    link.addresses
        .iter()
        .filter(|a| Family::of_net(a.net) == family && !a.unusable)
        .min_by_key(|a| (a.link_local, !a.permanent, a.temporary))
        .map(|a| a.net.ip())
}

fn masked(net: IpNetwork) -> IpNetwork {
    // The prefix length comes from a valid network of the same family.
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::HostAddress;

    const V4: &[Family] = &[Family::V4];

    #[test]
    fn the_default_route_chooses() {
        let choice = choose(&host(), &Request::default(), V4).unwrap();
        assert_eq!(choice.node.uplink.as_str(), "eth0");
        assert_eq!(choice.node.public_ip.v4, Some(ip("192.168.7.2")));
        assert_eq!(choice.node.on_link, [net("192.168.7.0/24"), net("fd77::/64")]);
    }

    #[test]
    fn the_first_flag_that_exists_wins() {
        let request =
            Request { ifaces: vec!["eth9".into(), "eth1".into(), "eth0".into()], ..Default::default() };
        assert_eq!(choose(&host(), &request, V4).unwrap().node.uplink.as_str(), "eth1");
        let request = Request { ifaces: vec!["10.9.0.3".into()], ..Default::default() };
        assert_eq!(choose(&host(), &request, V4).unwrap().node.address.v4, Some(ip("10.9.0.3")));
    }

    #[test]
    fn deprecated_and_temporary_addresses_are_passed_over() {
        let choice = choose(&host(), &Request::default(), &Family::BOTH).unwrap();
        assert_eq!(choice.node.address.v6, Some(ip("fd77::2")));
    }

    #[test]
    fn a_public_address_finds_its_owner_and_is_published() {
        let public_ip = PerFamily { v4: Some(ip("10.9.0.3")), v6: None };
        let choice = choose(&host(), &Request { public_ip, ..Default::default() }, V4).unwrap();
        assert_eq!(choice.node.uplink.as_str(), "eth1");
        let request = Request {
            public_ip: PerFamily { v4: Some(ip("1.2.3.4")), v6: None },
            ifaces: vec!["eth0".into()],
            ..Default::default()
        };
        let node = choose(&host(), &request, V4).unwrap().node;
        assert_eq!((node.address.v4, node.public_ip.v4), (Some(ip("192.168.7.2")), Some(ip("1.2.3.4"))));
    }

    #[test]
    fn refusals_name_the_way_out() {
        let missing = Request { ifaces: vec!["eth9".into()], ..Default::default() };
        let error = choose(&host(), &missing, V4).unwrap_err().to_string();
        assert!(error.contains("eth9") && error.contains("eth0, eth1"), "{error}");
        let error = choose(&Host::default(), &Request::default(), V4).unwrap_err().to_string();
        assert!(error.contains("give --iface"), "{error}");
        let v6_less = Request { ifaces: vec!["eth1".into()], ..Default::default() };
        assert!(matches!(
            choose(&host(), &v6_less, &Family::BOTH),
            Err(UplinkError::NoAddress(_, Family::V6))
        ));
    }

    #[test]
    fn an_overlap_is_named() {
        let pool = |network: &str| Pool {
            network: net(network),
            subnet_len: 24,
            subnet_min: ip("0.0.0.0"),
            subnet_max: ip("0.0.0.0"),
        };
        let nobody = |_: &HostRoute, _: Option<&HostLink>| false;
        assert_eq!(
            overlap(&host(), &pool("192.168.0.0/16"), nobody).as_deref(),
            Some("route 192.168.7.0/24 dev eth0")
        );
        assert_eq!(overlap(&host(), &pool("10.244.0.0/16"), nobody), None);
        assert_eq!(overlap(&host(), &pool("192.168.0.0/16"), |_, _| true), None);
    }

    fn host() -> Host {
        let address = |net_: &str| HostAddress {
            net: net(net_),
            link_local: net_.starts_with("fe80"),
            permanent: true,
            temporary: false,
            unusable: false,
        };
        let temporary = HostAddress { temporary: true, permanent: false, ..address("fd77::aaaa/64") };
        let deprecated = HostAddress { unusable: true, ..address("fd77::dead/64") };
        let link = |index, name: &str, addresses| HostLink {
            index,
            name: name.parse().unwrap(),
            mtu: 1500,
            mac: None,
            addresses,
        };
        let eth0 =
            [deprecated, temporary, address("fe80::1/64"), address("192.168.7.2/24"), address("fd77::2/64")];
        let route = |dst: &str, link, metric| HostRoute { dst: net(dst), link, metric, protocol: 2 };
        Host {
            links: vec![link(2, "eth0", eth0.to_vec()), link(3, "eth1", vec![address("10.9.0.3/24")])],
            routes: vec![
                route("0.0.0.0/0", 3, 100),
                route("0.0.0.0/0", 2, 0),
                route("::/0", 2, 1024),
                route("192.168.7.0/24", 2, 0),
                route("10.9.0.0/24", 3, 0),
            ],
        }
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn net(s: &str) -> IpNetwork {
        s.parse().unwrap()
    }
}
