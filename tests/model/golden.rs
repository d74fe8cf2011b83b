//! Bytes and defaults taken from flannel v0.28.9.

use weft::model::{Family, LeaseAttrs, NetworkConfig, SubnetEnv, SubnetKey};

#[test]
fn leases_are_written_as_flannel_writes_them() {
    for json in [
        r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:d6:9e:dd:59:cc"}}"#,
        r#"{"PublicIP":"192.168.77.1","PublicIPv6":"fd77::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:d6:9e:dd:59:cc"},"BackendV6Data":{"VNI":1,"VtepMAC":"c2:9e:cf:6d:40:2d"}}"#,
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","BackendType":"host-gw"}"#,
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null}"#,
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"host-gw","BackendData":null}"#,
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"a\u003c\u0026\u003e\u2028\b\f\u0001\"\\/é","BackendData":"\u003c\u0026\u003e\u2029 [ \" ]"}"#,
    ] {
        assert_eq!(LeaseAttrs::parse(json.as_bytes()).unwrap().to_json(), json);
    }
}

#[test]
fn leases_are_read_as_go_reads_them() {
    let written =
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}"#;
    for json in [
        r#" {"publicip":"10.0.0.1","BACKENDTYPE":"vxlan","Extra":[{}],"BackendData": { "VNI" : 1 } }"#,
        r#"{"PublicIP":"10.9.9.9","publicIP":"10.0.0.1","BackendType":"vxlan","BackendType":null,"BackendData":{"VNI":1}}"#,
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":"::","BackendType":"vxlan","bac\u212aenddata":{"VNI":1}}"#,
    ] {
        assert_eq!(LeaseAttrs::parse(json.as_bytes()).unwrap().to_json(), written);
    }

    for nothing in ["{}", "null", r#"{"PublicIP":"0.0.0.0"}"#] {
        assert!(LeaseAttrs::parse(nothing.as_bytes()).unwrap().public_ip.is_empty(), "{nothing}");
    }
}

#[test]
fn subnet_keys_are_flannels() {
    for key in [
        "10.5.1.0-24",
        "10.5.1.0-24&fd00:5:1::-64",
        "0.0.0.0-1",
        "fd00:5:1::-64",
        "10.5.0.0-24&::ffff:a00:0-112",
    ] {
        assert_eq!(key.parse::<SubnetKey>().unwrap().to_string(), key);
    }
    let v6_only: SubnetKey = "0.0.0.0-0&fd00:5:1::-64".parse().unwrap();
    assert_eq!(v6_only.to_string(), "fd00:5:1::-64");
}

#[test]
fn subnet_env_is_written_as_flannel_writes_it() {
    let dual = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48"}"#;
    let env = |config: &str, key: &str, mtu, ip_masq| {
        let config = NetworkConfig::parse(config).unwrap();
        SubnetEnv::new(&config, &key.parse().unwrap(), mtu, ip_masq).to_string()
    };

    assert_eq!(
        env(r#"{"Network":"10.5.0.0/16"}"#, "10.5.41.0-24", 1450, false),
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.41.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(
        env(dual, "10.5.41.0-24&fd00:5:0:29::-64", 1430, true),
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.41.1/24\n\
         FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:29::1/64\n\
         FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    );
}

#[test]
fn subnet_env_is_read_with_all_its_readers_take() {
    let env = SubnetEnv::parse(
        "# by hand\r\n\nexport FLANNEL_NETWORK=\"10.5.0.0/16, 10.6.0.9/16,10.5.1.0/16\" # two\r\n\
         FLANNEL_SUBNET = '10.5.41.1/24'\nFLANNEL_MTU=1400\nFLANNEL_MTU=1450 # measured\n\
         FLANNEL_NEWER=?\nno assignment\nFLANNEL_IPMASQ=true",
    )
    .unwrap();

    assert_eq!(
        env.to_string(),
        "FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\nFLANNEL_SUBNET=10.5.41.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    assert_eq!(env.subnet_key().unwrap().to_string(), "10.5.41.0-24");
}

#[test]
fn configs_get_flannels_defaults() {
    for (json, summary) in [
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "10.5.0.0/16 in /24s from 10.5.1.0 to 10.5.255.0; backend vxlan",
        ),
        (
            r#"{"network":"10.5.7.9/16","SUBNETLEN":20,"Backend":{"type":"Host-GW","X":[]}}"#,
            "10.5.0.0/16 in /20s from 10.5.16.0 to 10.5.240.0; backend host-gw",
        ),
        (r#"{"Network":"10.5.0.0/22"}"#, "10.5.0.0/22 in /24s from 10.5.1.0 to 10.5.3.0; backend udp"),
        (r#"{"Network":"10.5.0.0/23"}"#, "10.5.0.0/23 in /25s from 10.5.0.128 to 10.5.1.128; backend udp"),
        (r#"{"Network":"10.5.0.0/28"}"#, "10.5.0.0/28 in /30s from 10.5.0.4 to 10.5.0.12; backend udp"),
        (
            r#"{"Network":"255.255.0.0/16"}"#,
            "255.255.0.0/16 in /24s from 255.255.1.0 to 255.255.255.0; backend udp",
        ),
        (
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0","SubnetMax":"10.5.9.0","SubnetLen":null,"Backend":{}}"#,
            "10.5.0.0/16 in /24s from 10.5.0.0 to 10.5.9.0; backend ",
        ),
        (
            r#"{"Network":"10.5.0.0/16","SubnetMin":"0.0.0.0","SubnetLen":0,"EnableIPv4":null,"Backend":null}"#,
            "10.5.0.0/16 in /24s from 10.5.1.0 to 10.5.255.0; backend ",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":null}"#,
            "fd00:5::/48 in /64s from fd00:5:0:1:: to fd00:5:0:ffff::; backend udp",
        ),
        (
            r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/63","IPv6SubnetMax":"::"}"#,
            "10.5.0.0/16 in /24s from 10.5.1.0 to 10.5.255.0; \
             fd00:5::/63 in /65s from fd00:5:0:0:8000:: to fd00:5:0:1:8000::; backend udp",
        ),
    ] {
        let config = NetworkConfig::parse(json).unwrap_or_else(|e| panic!("{json}: {e}"));
        assert_eq!(config.to_string(), summary, "{json}");
    }
}

#[test]
fn a_pool_counts_what_lies_between_its_bounds() {
    let json = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.2.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;
    let pool = *NetworkConfig::parse(json).unwrap().pools.get(Family::V4).unwrap();

    let subnets: Vec<_> = (0..9).map_while(|i| pool.nth(i)).map(|net| net.to_string()).collect();
    assert_eq!(subnets, ["10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24"]);
    assert_eq!(pool.subnets(), 3);
    for outside in ["10.5.1.0/24", "10.5.5.0/24", "10.5.2.0/23", "10.5.2.0/25", "10.5.2.1/24", "::/24"] {
        assert!(!pool.contains_subnet(outside.parse().unwrap()), "{outside}");
    }
}

#[test]
fn a_config_keeps_the_backends_secrets_to_itself() {
    let json = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"hush"}}"#;
    let config = NetworkConfig::parse(json).unwrap();

    assert!(config.backend.options.get().contains("hush"));
    for shown in [format!("{config} {config:?}"), serde_json::to_string(&config).unwrap()] {
        assert!(!shown.contains("hush"), "{shown}");
    }
}
