use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use proptest::prelude::*;
use serde_json::value::RawValue;
use weft::model::{BackendData, Family, LeaseAttrs, NetworkConfig, PerFamily, SubnetEnv, SubnetKey};

proptest! {
    #[test]
    fn a_subnet_key_survives_its_text(nets in per_family(subnet)) {
        let key = SubnetKey::new(nets).unwrap();
        prop_assert_eq!(key.to_string().parse::<SubnetKey>(), Ok(key));
    }

    #[test]
    fn backend_data_stays_as_it_stood_and_reads_the_same_in_any_spelling(text in vtep_text()) {
        let data = BackendData::from(RawValue::from_string(text.clone()).unwrap());
        let usual = BackendData::from(data.vtep().unwrap());

        prop_assert_eq!(&data.text(), &text);
        prop_assert_eq!(data.vtep(), usual.vtep());
        prop_assert_eq!(data == usual, text.replace(' ', "") == usual.text());
    }

    #[test]
    fn a_lease_survives_its_json(attrs in lease_attrs()) {
        let json = attrs.to_json();
        let parsed = LeaseAttrs::parse(json.as_bytes()).unwrap();
        prop_assert_eq!(&parsed, &attrs);
        prop_assert_eq!(parsed.to_json(), json);
    }

    #[test]
    fn a_subnet_env_survives_its_text(
        networks in per_family(|family| prop::collection::btree_set(subnet(family), 1..4)),
        subnet in per_family(subnet),
        mtu in 68_u32..=65535,
        ip_masq: bool,
    ) {
        let networks = networks.map(|_, set| set.into_iter().collect());
        let env = SubnetEnv { networks, subnet, mtu, ip_masq };
        prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env.clone()));
        prop_assert_eq!(env.subnet_key().map(|key| key.nets().collect()), Some(subnet));
    }

    /// The n-th subnets tile the pool: they begin at its minimum, each starts
    /// where the one before ends, and the last one is at its maximum.
    #[test]
    fn the_subnets_of_a_pool_tile_it(network in prop_oneof![subnet(Family::V4), subnet(Family::V6)], len: u8, i: u128) {
        let Some(config) = config_of(network, len) else { return Ok(()) };
        let pool = *config.pools.get(Family::of_net(network)).unwrap();
        let last = pool.subnets() - 1;
        let i = i % (last + 1);
        let net = pool.nth(i).unwrap();

        prop_assert!(pool.contains_subnet(net));
        prop_assert!(pool.network.contains(net.ip()) && pool.network.contains(net.broadcast()));
        prop_assert_eq!(pool.nth(0).unwrap().ip(), pool.subnet_min);
        prop_assert_eq!(pool.nth(last).unwrap().ip(), pool.subnet_max);
        prop_assert_eq!(pool.nth(last + 1), None);
        match pool.nth(i + 1) {
            Some(next) => prop_assert_eq!(number(next.ip()), number(net.broadcast()) + 1),
            None => prop_assert_eq!(net.broadcast(), pool.network.broadcast()),
        }
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(token(), 0..24).prop_map(|tokens| tokens.concat().into_bytes()),
    ]) {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(attrs) = LeaseAttrs::parse(&bytes) {
            prop_assert_eq!(LeaseAttrs::parse(attrs.to_json().as_bytes()), Ok(attrs));
        }
        if let Ok(config) = NetworkConfig::parse(&text) {
            prop_assert!(config.pools.iter().all(|(_, pool)| pool.nth(pool.subnets() - 1).is_some()));
        }
        if let Ok(env) = SubnetEnv::parse(&text) {
            prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env));
        }
        if let Ok(key) = text.parse::<SubnetKey>() {
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn config_of(network: IpNetwork, len: u8) -> Option<NetworkConfig> {
    let v6 = network.is_ipv6();
    let infix = if v6 { "IPv6" } else { "" };
    let len = len % (if v6 { 128 } else { 32 });
    NetworkConfig::parse(&format!(
        r#"{{"EnableIPv4":{},"EnableIPv6":{v6},"{infix}Network":"{network}","{infix}SubnetLen":{len}}}"#,
        !v6
    ))
    .ok()
}

fn addr(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<Ipv4Addr>().prop_map(IpAddr::from).boxed(),
        // Few bits, so that runs of zeroes and IPv4-mapped addresses come up.
        Family::V6 => prop_oneof![
            any::<Ipv6Addr>(),
            (any::<u128>(), any::<u128>(), any::<u128>()).prop_map(|(a, b, c)| Ipv6Addr::from(a & b & c)),
            any::<Ipv4Addr>().prop_map(|v4| v4.to_ipv6_mapped()),
        ]
        .prop_map(IpAddr::from)
        .boxed(),
    }
}

fn subnet(family: Family) -> BoxedStrategy<IpNetwork> {
    (addr(family), 1..family.bits())
        .prop_map(|(addr, prefix)| {
            let net = IpNetwork::new(addr, prefix).unwrap();
            IpNetwork::new(net.network(), prefix).unwrap()
        })
        .boxed()
}

/// A value for IPv4, for IPv6 or for both.
fn per_family<T: std::fmt::Debug + Clone + 'static, S: Strategy<Value = T> + 'static>(
    value: impl Fn(Family) -> S,
) -> impl Strategy<Value = PerFamily<T>> {
    (value(Family::V4), value(Family::V6), 0..3).prop_map(|(v4, v6, which)| match which {
        0 => PerFamily { v4: Some(v4), v6: None },
        1 => PerFamily { v4: None, v6: Some(v6) },
        _ => PerFamily { v4: Some(v4), v6: Some(v6) },
    })
}

fn lease_attrs() -> impl Strategy<Value = LeaseAttrs> {
    let specified = |family| addr(family).prop_filter("unspecified", |addr| !addr.is_unspecified());
    let any_data = any::<(String, u32)>().prop_map(|(key, n)| {
        let json = serde_json::json!({ key.as_str(): [n, key, { "VNI": n }] });
        format!("{json:#}")
    });
    let data = prop_oneof![any_data, vtep_text()]
        .prop_map(|json| BackendData::from(RawValue::from_string(json).unwrap()))
        .boxed();
    let data = move |_| data.clone();
    (per_family(specified), any::<String>(), prop::option::of(per_family(data))).prop_map(
        |(public_ip, backend_type, data)| LeaseAttrs {
            public_ip,
            backend_type: backend_type.into(),
            backend_data: data.unwrap_or_default(),
        },
    )
}

/// VXLAN's data, in the spelling that flannel writes and in others.
fn vtep_text() -> impl Strategy<Value = String> {
    ("(0|[1-9][0-9]{0,8})", "(0e|0E)(:|-)[0-9a-f]{2}:00:00:00:01", "( )?")
        .prop_map(|(vni, mac, space)| format!(r#"{{"VNI":{space}{vni},"VtepMAC":"{mac}"}}"#))
}

/// Pieces that now and then fall into something a parser takes.
fn token() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "null",
        "true",
        "-1",
        "24",
        "1e9",
        "\"PublicIP\":",
        "\"Network\":",
        "\"SubnetLen\":",
        "\"EnableIPv6\":true,",
        "\"IPv6Network\":",
        "\"Backend\":",
        "\"10.5.0.0/16\"",
        "\"fd00::/48\"",
        "\"10.0.0.1\"",
        "\"\\ud800\"",
        "FLANNEL_NETWORK=",
        "FLANNEL_SUBNET=",
        "FLANNEL_MTU=",
        "FLANNEL_IPMASQ=",
        "10.5.0.0",
        "fd00:5::",
        "/",
        "-",
        "&",
        "\n",
        "=",
        "'",
        "#",
        " ",
        "0.0.0.0-0",
        "\u{212a}",
        "\u{0}",
    ])
}
