//! Network configs that a person got wrong, put to one daemon that waits.

use netns_harness::wait_until;

use crate::lab::{Fabric, SOON, VXLAN};

#[test]
fn forty_broken_configs_are_named_and_waited_out() {
    let v4 = |rest: &str| format!(r#"{{"Network":"10.42.0.0/16",{rest}}}"#);
    let v6 = |rest: &str| format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{rest}}}"#);
    let vxlan = |rest: &str| v4(&format!(r#""Backend":{{"Type":"vxlan",{rest}}}"#));
    let cases = [
        ("not JSON".into(), "not JSON: expected ident"),
        (r#"["10.42.0.0/16"]"#.into(), "expected an object"),
        (r#""vxlan""#.into(), "invalid type: string"),
        ("{} {}".into(), "trailing characters"),
        (v4(""), "trailing comma"),
        ("{}".into(), "Network: unset"),
        (r#"{"Network":null}"#.into(), "Network: null: expected an IPv4 network"),
        (r#"{"Network":""}"#.into(), r#"Network: "": expected"#),
        (r#"{"Network":10}"#.into(), "Network: 10: expected"),
        (r#"{"Network":"10.42.0.0"}"#.into(), r#"Network: "10.42.0.0": expected"#),
        (r#"{"Network":"10.42.0.0/33"}"#.into(), r#"Network: "10.42.0.0/33": expected"#),
        (r#"{"Network":"fd00::/48"}"#.into(), r#"Network: "fd00::/48": expected"#),
        (r#"{"Network":"10.42.0.0/29"}"#.into(), "at most 28"),
        (v4(r#""SubnetLen":17"#), "SubnetLen: 17: expected 18 to 30"),
        (v4(r#""SubnetLen":31"#), "SubnetLen: 31: expected 18 to 30"),
        (v4(r#""SubnetLen":-1"#), "SubnetLen: -1: expected a whole number"),
        (v4(r#""SubnetLen":"24""#), r#"SubnetLen: "24": expected a whole number"#),
        (v4(r#""SubnetMin":"""#), r#"SubnetMin: "": expected an IPv4 address"#),
        (v4(r#""SubnetMin":"10.43.0.0""#), "SubnetMin: 10.43.0.0: expected"),
        (v4(r#""SubnetMin":"10.42.1.1""#), "SubnetMin: 10.42.1.1: expected"),
        (v4(r#""SubnetMax":"fd00::""#), r#"SubnetMax: "fd00::": expected"#),
        (
            v4(r#""SubnetMin":"10.42.9.0","SubnetMax":"10.42.8.0""#),
            "SubnetMax: 10.42.8.0: expected SubnetMin",
        ),
        (v4(r#""EnableIPv4":"yes""#), r#"EnableIPv4: "yes": expected true or false"#),
        (v4(r#""EnableNFTables":{}"#), "EnableNFTables: {}: expected true or false"),
        (v4(r#""EnableIPv4":false"#), "EnableIPv4, EnableIPv6 or both"),
        (v4(r#""EnableIPv6":true"#), "IPv6Network: unset"),
        (v6(r#""IPv6Network":"10.42.0.0/16""#), r#"IPv6Network: "10.42.0.0/16": expected"#),
        (v6(r#""IPv6Network":"fd00::/125""#), "at most 124"),
        (v6(r#""IPv6Network":"fd00::/48","IPv6SubnetLen":49"#), "IPv6SubnetLen: 49: expected 50 to 126"),
        (v6(r#""IPv6Network":"fd00::/48","IPv6SubnetMin":"""#), r#"IPv6SubnetMin: "": expected"#),
        (v4(r#""Backend":"vxlan""#), r#"Backend: "vxlan": expected an object"#),
        (v4(r#""Backend":{"Type":7}"#), "Backend.Type: 7: expected a string"),
        (r#"{"Network":"10.42.0.0/16"}"#.into(), r#"Backend.Type: "udp": expected vxlan or host-gw"#),
        (v4(r#""Backend":{}"#), r#"Backend.Type: "": expected vxlan or host-gw"#),
        (v4(r#""Backend":{"Type":"magic"}"#), r#"Backend.Type: "magic": expected vxlan or host-gw"#),
        (vxlan(r#""VNI":99999999"#), "VNI: 99999999"),
        (vxlan(r#""VNI":"1""#), r#"VNI: "1""#),
        (vxlan(r#""Port":70000"#), "Port: 70000"),
        (vxlan(r#""Learning":"no""#), r#"Learning: "no""#),
        (vxlan(r#""DirectRouting":3"#), "DirectRouting: 3"),
    ];
    assert_eq!(cases.len(), 40);
    let mut fabric = Fabric::new("config", "", 1);
    fabric.start(0, &[]);
    for (config, says) in cases {
        fabric.put("config", &config);
        let named = || fabric.daemons[0].log_tail(2).contains(says);
        if let Err(error) = wait_until(SOON, &format!("{says:?} for {config}"), named) {
            panic!("{error}: {}", fabric.daemons[0].log_tail(5));
        }
    }
    assert!(fabric.daemons[0].exited().unwrap().is_none());
    fabric.put("config", VXLAN);
    fabric.wait_in_sync(0);
}
