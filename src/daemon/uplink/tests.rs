use super::*;
use crate::kernel::host::HostAddress;

const V4: &[Family] = &[Family::V4];

#[test]
fn the_default_route_chooses() {
    let choice = choose(&host(), &Request::default(), V4, None).unwrap();
    assert_eq!(choice.node.uplink.as_str(), "eth0");
    assert_eq!(choice.node.public_ip.v4, Some(ip("192.168.7.2")));
    assert_eq!(choice.node.on_link, [net("192.168.7.0/24"), net("fd77::/64")]);
}

#[test]
fn the_first_flag_that_exists_wins() {
    let request = Request { ifaces: vec!["eth9".into(), "eth1".into(), "eth0".into()], ..Default::default() };
    assert_eq!(choose(&host(), &request, V4, None).unwrap().node.uplink.as_str(), "eth1");
    let request = Request { ifaces: vec!["10.9.0.3".into()], ..Default::default() };
    assert_eq!(choose(&host(), &request, V4, None).unwrap().node.address.v4, Some(ip("10.9.0.3")));
}

#[test]
fn deprecated_and_temporary_addresses_are_passed_over() {
    let choice = choose(&host(), &Request::default(), &Family::BOTH, None).unwrap();
    assert_eq!(choice.node.address.v6, Some(ip("fd77::2")));
}

#[test]
fn a_public_address_finds_its_owner_and_is_published() {
    let public_ip = PerFamily { v4: Some(ip("10.9.0.3")), v6: None };
    let choice = choose(&host(), &Request { public_ip, ..Default::default() }, V4, None).unwrap();
    assert_eq!(choice.node.uplink.as_str(), "eth1");
    let request = Request {
        public_ip: PerFamily { v4: Some(ip("1.2.3.4")), v6: None },
        ifaces: vec!["eth0".into()],
        ..Default::default()
    };
    let node = choose(&host(), &request, V4, None).unwrap().node;
    assert_eq!((node.address.v4, node.public_ip.v4), (Some(ip("192.168.7.2")), Some(ip("1.2.3.4"))));
}

#[test]
fn a_pattern_matches_addresses_before_names() {
    let by = |patterns: &[&str], families: &[Family]| {
        let patterns = patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect();
        choose(&host(), &Request { patterns, ..Default::default() }, families, None)
    };
    let node = by(&["eth1|192\\.168"], V4).unwrap().node;
    assert_eq!((node.uplink.as_str(), node.address.v4), ("eth0", Some(ip("192.168.7.2"))));
    assert_eq!(by(&["^eth1$"], V4).unwrap().node.uplink.as_str(), "eth1");
    let choice = by(&["^172", "^10"], V4).unwrap();
    assert_eq!(choice.node.uplink.as_str(), "eth1");
    assert!(choice.because.contains("--iface-regex ^172: no address"), "{}", choice.because);
    // Dual stack: both addresses of one link, or its name.
    let node = by(&["^(192|fd77)"], &Family::BOTH).unwrap().node;
    assert_eq!(node.address.v6, Some(ip("fd77::2")));
    let error = by(&["^192"], &Family::BOTH).unwrap_err().to_string();
    assert!(error.contains("eth0 192.168.7.2 fd77::2 fe80::1, eth1 10.9.0.3"), "{error}");
}

#[test]
fn what_reaches_an_address_is_taken_with_its_source() {
    let reach = Reach { link: 2, source: Some(ip("fd77::2")) };
    let request = Request { can_reach: Some((ip("fd99::9"), Some(reach))), ..Default::default() };
    let node = choose(&host(), &request, &Family::BOTH, None).unwrap().node;
    assert_eq!((node.uplink.as_str(), node.address.v6), ("eth0", Some(ip("fd77::2"))));
    let request = Request { can_reach: Some((ip("fd99::9"), None)), ..Default::default() };
    assert_eq!(choose(&host(), &request, V4, None), Err(UplinkError::Unreachable(ip("fd99::9"))));
}

#[test]
fn an_interface_that_lacks_a_family_is_passed_over_for_the_next() {
    let request = Request { ifaces: vec!["eth1".into(), "eth0".into()], ..Default::default() };
    let choice = choose(&host(), &request, &Family::BOTH, None).unwrap();
    assert_eq!(choice.node.uplink.as_str(), "eth0");
    assert!(choice.because.contains("eth1 has no usable IPv6 address"), "{}", choice.because);
}

#[test]
fn dual_stack_wants_one_interface_for_both() {
    let public_ip = PerFamily { v4: Some(ip("10.9.0.3")), v6: Some(ip("fd77::2")) };
    let request = Request { public_ip, ..Default::default() };
    let error = choose(&host(), &request, &Family::BOTH, None).unwrap_err();
    assert_eq!(error, UplinkError::TwoOwners("eth1".parse().unwrap(), "eth0".parse().unwrap()));
    let mut host = host();
    host.routes.retain(|route| route.metric != 0 || !route.dst.is_ipv4());
    let error = choose(&host, &Request::default(), &Family::BOTH, None).unwrap_err();
    assert_eq!(error, UplinkError::TwoDefaults("eth1".parse().unwrap(), "eth0".parse().unwrap()));
}

#[test]
fn an_address_in_use_is_kept_while_it_is_good() {
    let mut host = host();
    let node = choose(&host, &Request::default(), V4, None).unwrap().node;
    let of_the_node = |a: &&HostAddress| a.net == net("192.168.7.2/24");
    let mut newcomer = *host.links[0].addresses.iter().find(of_the_node).unwrap();
    newcomer.net = net("192.168.7.1/24");
    host.links[0].addresses.insert(0, newcomer);
    let again = choose(&host, &Request::default(), V4, Some(&node)).unwrap().node;
    assert_eq!(again.address.v4, Some(ip("192.168.7.2")));
    for address in &mut host.links[0].addresses {
        address.unusable |= address.net == net("192.168.7.2/24");
    }
    let again = choose(&host, &Request::default(), V4, Some(&node)).unwrap().node;
    assert_eq!(again.address.v4, Some(ip("192.168.7.1")));
}

#[test]
fn refusals_name_the_way_out() {
    let missing = Request { ifaces: vec!["eth9".into()], ..Default::default() };
    let error = choose(&host(), &missing, V4, None).unwrap_err().to_string();
    assert!(error.contains("eth9") && error.contains("eth0, eth1"), "{error}");
    let error = choose(&Host::default(), &Request::default(), V4, None).unwrap_err().to_string();
    assert!(error.contains("give --iface"), "{error}");
    let v6_less = Request { ifaces: vec!["eth1".into()], ..Default::default() };
    assert!(matches!(
        choose(&host(), &v6_less, &Family::BOTH, None),
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
    let route = |dst: &str, link, metric| HostRoute { dst: net(dst), link, via: None, metric, protocol: 2 };
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
