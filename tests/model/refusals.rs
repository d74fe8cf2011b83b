//! What is refused, with the words an operator reads: the key, its value, and
//! what is accepted.

use weft::model::{LeaseAttrs, NetworkConfig, SubnetEnv, SubnetKey};

#[test]
fn configs() {
    let network = "expected an IPv4 network in CIDR form";
    let in_16 = "expected an address inside 10.5.0.0/16 that a /24 starts at";
    let len_16 = "expected 18 to 30, for 10.5.0.0/16 to hold four subnets of four addresses or more";
    let len_48 = "expected 50 to 126, for fd00:5::/48 to hold four subnets of four addresses or more";
    let too_small = "expected a prefix length of at most 28, to hold four subnets of four addresses";
    let unset = "expected an IPv4 network longer than /0, since EnableIPv4 is true";
    let unset_v6 = "expected an IPv6 network longer than /0, since EnableIPv6 is true";
    let v6 = |rest: &str| format!(r#"{{"EnableIPv4":false,"EnableIPv6":true{rest}}}"#);
    let v4 = |rest: &str| format!(r#"{{"Network":"10.5.0.0/16"{rest}}}"#);
    let v6_16 = |rest: &str| v6(&format!(r#","IPv6Network":"fd00:5::/48"{rest}"#));
    let cases = [
        ("".into(), "not JSON: EOF while parsing a value at line 1 column 0".into()),
        ("[]".into(), "not JSON: invalid type: sequence, expected an object at line 1 column 2".into()),
        (r#""vxlan""#.into(), "not JSON: invalid type: string \"vxlan\", expected an object at line 1 column 7".into()),
        ("{} {}".into(), "not JSON: trailing characters at line 1 column 4".into()),
        (v4(","), "not JSON: trailing comma at line 1 column 26".into()),
        (v4(r#","X":nul"#), "not JSON: expected ident at line 1 column 33".into()),
        (v4(&format!(r#","X":{}"#, "[".repeat(40))), "not JSON: nested more than 32 deep".into()),
        (" ".repeat(2_000_000), "not JSON: 2000000 bytes; expected at most 1048576".into()),
        ("null".into(), format!("Network: unset: {unset}")),
        ("{}".into(), format!("Network: unset: {unset}")),
        (r#"{"Network":"0.0.0.0/0"}"#.into(), format!("Network: unset: {unset}")),
        (r#"{"Network":"10.0.0.0/0"}"#.into(), format!("Network: unset: {unset}")),
        (r#"{"Network":null}"#.into(), format!("Network: null: {network}")),
        (r#"{"Network":""}"#.into(), format!("Network: \"\": {network}")),
        (r#"{"Network":10}"#.into(), format!("Network: 10: {network}")),
        (r#"{"Network":"10.5.0.0"}"#.into(), format!("Network: \"10.5.0.0\": {network}")),
        (r#"{"Network":"10.5.0.0/33"}"#.into(), format!("Network: \"10.5.0.0/33\": {network}")),
        (r#"{"Network":"10.5.0.0/+16"}"#.into(), format!("Network: \"10.5.0.0/+16\": {network}")),
        (r#"{"Network":"10.5.0.0/255.255.0.0"}"#.into(), format!("Network: \"10.5.0.0/255.255.0.0\": {network}")),
        (r#"{"Network":"010.5.0.0/16"}"#.into(), format!("Network: \"010.5.0.0/16\": {network}")),
        (r#"{"Network":"fd00::/48"}"#.into(), format!("Network: \"fd00::/48\": {network}")),
        // A value that a later one overrides must be well-formed all the same.
        (r#"{"Network":64,"network":"10.5.0.0/16"}"#.into(), format!("Network: 64: {network}")),
        (v4(r#","EnableIPv6":"no","EnableIPv6":false"#), "EnableIPv6: \"no\": expected true or false".into()),
        (r#"{"Network":["10.5.0.0/16"]}"#.into(), format!("Network: [\"10.5.0.0/16\"]: {network}")),
        (r#"{"Network":"10.5.0.0/29"}"#.into(), format!("Network: 10.5.0.0/29: {too_small}")),
        (v4(r#","SubnetLen":17"#), format!("SubnetLen: 17: {len_16}")),
        (v4(r#","SubnetLen":31"#), format!("SubnetLen: 31: {len_16}")),
        (v4(r#","SubnetLen":4000000000"#), "SubnetLen: 4000000000: expected a whole number from 0 to 255".into()),
        (v4(r#","SubnetLen":-1"#), "SubnetLen: -1: expected a whole number from 0 to 255".into()),
        (v4(r#","SubnetLen":24.0"#), "SubnetLen: 24.0: expected a whole number from 0 to 255".into()),
        (v4(r#","SubnetLen":"24""#), "SubnetLen: \"24\": expected a whole number from 0 to 255".into()),
        (v4(r#","SubnetMin":"""#), "SubnetMin: \"\": expected an IPv4 address".into()),
        (v4(r#","SubnetMin":null"#), "SubnetMin: null: expected an IPv4 address".into()),
        (v4(r#","SubnetMin":"10.5.1.0/24""#), "SubnetMin: \"10.5.1.0/24\": expected an IPv4 address".into()),
        (v4(r#","SubnetMin":"10.6.0.0""#), format!("SubnetMin: 10.6.0.0: {in_16}")),
        (v4(r#","SubnetMin":"10.5.1.1""#), format!("SubnetMin: 10.5.1.1: {in_16}")),
        (v4(r#","SubnetMax":"10.5.1.128""#), format!("SubnetMax: 10.5.1.128: {in_16}")),
        (v4(r#","SubnetMax":"fd00::""#), "SubnetMax: \"fd00::\": expected an IPv4 address".into()),
        (
            v4(r#","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0""#),
            "SubnetMax: 10.5.8.0: expected SubnetMin (10.5.9.0) or after it".into(),
        ),
        (v4(r#","SubnetMax":"10.5.0.0""#), "SubnetMax: 10.5.0.0: expected SubnetMin (10.5.1.0) or after it".into()),
        (v4(r#","EnableIPv4":"yes""#), "EnableIPv4: \"yes\": expected true or false".into()),
        (v4(r#","enableipv6":1"#), "EnableIPv6: 1: expected true or false".into()),
        (v4(r#","EnableNFTables":{}"#), "EnableNFTables: {}: expected true or false".into()),
        (
            v4(r#","EnableIPv4":false"#),
            "EnableIPv4: false: expected EnableIPv4, EnableIPv6 or both to be true".into(),
        ),
        (v4(r#","Backend":"vxlan""#), "Backend: \"vxlan\": expected an object such as {\"Type\":\"vxlan\"}".into()),
        (v4(r#","Backend":[]"#), "Backend: []: expected an object such as {\"Type\":\"vxlan\"}".into()),
        (v4(r#","Backend":{"Type":7}"#), "Backend.Type: 7: expected a string".into()),
        (v4(r#","EnableIPv6":true"#), format!("IPv6Network: unset: {unset_v6}")),
        (v6(r#","IPv6Network":"::/0""#), format!("IPv6Network: unset: {unset_v6}")),
        (v6(r#","IPv6Network":"10.5.0.0/16""#), "IPv6Network: \"10.5.0.0/16\": expected an IPv6 network in CIDR form".into()),
        (
            v6(r#","IPv6Network":"fd00::/125""#),
            "IPv6Network: fd00::/125: expected a prefix length of at most 124, to hold four subnets of four addresses".into(),
        ),
        (v6_16(r#","IPv6SubnetLen":49"#), format!("IPv6SubnetLen: 49: {len_48}")),
        (v6_16(r#","IPv6SubnetLen":127"#), format!("IPv6SubnetLen: 127: {len_48}")),
        (v6_16(r#","IPv6SubnetMin":"""#), "IPv6SubnetMin: \"\": expected an IPv6 address".into()),
        (
            v6_16(r#","IPv6SubnetMin":"fd00:5:0:1::1""#),
            "IPv6SubnetMin: fd00:5:0:1::1: expected an address inside fd00:5::/48 that a /64 starts at".into(),
        ),
        // What a disabled family says is checked for its form.
        (v4(r#","IPv6Network":"x""#), "IPv6Network: \"x\": expected an IPv6 network in CIDR form".into()),
        (v6(r#","Network":"x""#), format!("Network: \"x\": {network}")),
    ];
    for (json, expected) in cases {
        let refusal = NetworkConfig::parse(&json).map(|config| config.to_string());
        assert_eq!(refusal.map_err(|e| e.to_string()), Err(expected), "{}", start(&json));
    }
}

#[test]
fn leases() {
    let v4 = "expected an IPv4 address";
    let v6 = "expected an IPv6 address";
    let long = "x".repeat(130);
    let cases: [(&[u8], String); 24] = [
        (b"", "not JSON: EOF while parsing a value at line 1 column 0".into()),
        (b"\xff\xfe", "not JSON: expected value at line 1 column 1".into()),
        (b"\0", "not JSON: expected value at line 1 column 1".into()),
        (b"nil", "not JSON: expected ident at line 1 column 2".into()),
        (b"[1]", "not JSON: invalid type: sequence, expected an object at line 1 column 1".into()),
        (b"true", "not JSON: invalid type: boolean `true`, expected an object at line 1 column 4".into()),
        (b"{", "not JSON: EOF while parsing an object at line 1 column 1".into()),
        (b"{'PublicIP':1}", "not JSON: key must be a string at line 1 column 2".into()),
        (br#"{"PublicIP":"10.0.0.1"}}"#, "not JSON: trailing characters at line 1 column 24".into()),
        (br#"{"BackendData":{"VNI":01}}"#, "not JSON: invalid number at line 1 column 24".into()),
        (br#"{"BackendData":}"#, "not JSON: expected value at line 1 column 16".into()),
        (br#"{"PublicIP":null}"#, format!("PublicIP: null: {v4}")),
        (br#"{"PublicIP":""}"#, format!("PublicIP: \"\": {v4}")),
        (br#"{"publicip":"10.0.0"}"#, format!("PublicIP: \"10.0.0\": {v4}")),
        (br#"{"PublicIP":"10.0.0.1/24"}"#, format!("PublicIP: \"10.0.0.1/24\": {v4}")),
        (br#"{"PublicIP":"10.0.0.1\n"}"#, format!("PublicIP: \"10.0.0.1\\n\": {v4}")),
        (br#"{"PublicIP":"node-1"}"#, format!("PublicIP: \"node-1\": {v4}")),
        (br#"{"PublicIP":167772161}"#, format!("PublicIP: 167772161: {v4}")),
        (br#"{"PublicIP":"fd77::1"}"#, format!("PublicIP: \"fd77::1\": {v4}")),
        (br#"{"PublicIP":"10.0.0.1","PublicIP":null}"#, format!("PublicIP: null: {v4}")),
        (br#"{"PublicIPv6":""}"#, format!("PublicIPv6: \"\": {v6}")),
        (br#"{"PublicIPv6":"10.0.0.1"}"#, format!("PublicIPv6: \"10.0.0.1\": {v6}")),
        (br#"{"PublicIPv6":"fe80::1%eth0"}"#, format!("PublicIPv6: \"fe80::1%eth0\": {v6}")),
        (br#"{"BackendType":["vxlan"]}"#, "BackendType: [\"vxlan\"]: expected a string".into()),
    ];
    for (json, expected) in cases {
        let refusal = LeaseAttrs::parse(json).map(|attrs| attrs.to_json());
        assert_eq!(refusal.map_err(|e| e.to_string()), Err(expected), "{}", json.escape_ascii());
    }

    let refusal = LeaseAttrs::parse(format!(r#"{{"PublicIP":"{long}"}}"#).as_bytes()).unwrap_err();
    assert_eq!(refusal.to_string(), format!("PublicIP: \"{}…: {v4}", "x".repeat(119)));
}

#[test]
fn subnet_keys() {
    let v4_form = "is not an IPv4 subnet of the form 10.5.1.0-24";
    let v6_form = "is not an IPv6 subnet of the form fd00:5:1::-64";
    let v4_len = "an IPv4 prefix length is 1 to 31";
    let v6_len = "an IPv6 prefix length is 1 to 127";
    for (key, reason) in [
        ("", format!("\"\" {v4_form}")),
        ("&", format!("\"\" {v4_form}")),
        ("config", format!("\"config\" {v4_form}")),
        ("10.5.1.0", format!("\"10.5.1.0\" {v4_form}")),
        ("10.5.1.0/24", format!("\"10.5.1.0/24\" {v4_form}")),
        ("10.5.1.0-", format!("\"10.5.1.0-\" {v4_form}")),
        ("10.5.1-24", format!("\"10.5.1-24\" {v4_form}")),
        ("10.5.1.256-24", format!("\"10.5.1.256-24\" {v4_form}")),
        ("10.5.1.0-33", format!("\"10.5.1.0-33\" {v4_form}")),
        ("10.5.1.0-+24", format!("\"10.5.1.0-+24\" {v4_form}")),
        ("10.5.1.0-24\n", "\"10.5.1.0-24\\n\" is not an IPv4 subnet of the form 10.5.1.0-24".into()),
        (" 10.5.1.0-24", format!("\" 10.5.1.0-24\" {v4_form}")),
        ("subnets/10.5.1.0-24", format!("\"subnets/10.5.1.0-24\" {v4_form}")),
        ("10x5.1.0-24", format!("\"10x5.1.0-24\" {v4_form}")),
        ("10.5.1.0-32", format!("{v4_len}, not 32")),
        ("0.0.0.0-0", format!("{v4_len}, not 0")),
        ("10.5.1.7-24", "host bits of 10.5.1.7/24 are set; the subnet is 10.5.1.0/24".into()),
        ("10.5.1.0-024", "\"10.5.1.0-024\" must be written 10.5.1.0-24".into()),
        ("10.5.1.0-24&", format!("\"\" {v6_form}")),
        ("10.5.1.0-24&10.5.2.0-24", format!("\"10.5.2.0-24\" {v6_form}")),
        ("10.5.1.0-24&fd00:5:1::", format!("\"fd00:5:1::\" {v6_form}")),
        ("10.5.1.0-24&fd00:5:1::-129", format!("\"fd00:5:1::-129\" {v6_form}")),
        ("10.5.1.0-24&fd00:5:1::-64&fd00:5:2::-64", format!("\"fd00:5:1::-64&fd00:5:2::-64\" {v6_form}")),
        ("10.5.1.0-24&fd00:5:1::-128", format!("{v6_len}, not 128")),
        ("0.0.0.0-0&::-0", format!("{v6_len}, not 0")),
        ("0.0.0.0-0&0.0.0.0-0", format!("\"0.0.0.0-0\" {v6_form}")),
        ("&fd00:5:1::-64", format!("\"\" {v4_form}")),
        ("fd00:5:1::-64&10.5.1.0-24", format!("\"fd00:5:1::-64\" {v4_form}")),
        ("fd00:5:1::1-64", "host bits of fd00:5:1::1/64 are set; the subnet is fd00:5:1::/64".into()),
        ("FD00:5:1::-64", "\"FD00:5:1::-64\" must be written fd00:5:1::-64".into()),
        ("fd00:5:1:0::-64", "\"fd00:5:1:0::-64\" must be written fd00:5:1::-64".into()),
        ("::ffff:10.5.0.0-112", "\"::ffff:10.5.0.0-112\" must be written ::ffff:a05:0-112".into()),
        ("fe80::%1-64", format!("\"fe80::%1-64\" {v6_form}")),
    ] {
        let refusal = key.parse::<SubnetKey>().map_err(|e| e.to_string());
        assert_eq!(refusal, Err(format!("{key:?} is not a subnet key: {reason}")));
    }
}

#[test]
fn subnet_envs() {
    let whole =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let networks = |family| format!("expected {family} networks in CIDR form, separated by commas");
    let subnet = |family, longest| {
        format!("expected an {family} address in CIDR form, with a prefix length of 1 to {longest}")
    };
    SubnetEnv::parse(whole).unwrap();

    for (line, expected) in [
        ("FLANNEL_NETWORK", format!("\"\": {}", networks("IPv4"))),
        ("FLANNEL_NETWORK=", format!("\"\": {}", networks("IPv4"))),
        ("FLANNEL_NETWORK=10.5.0.0", format!("\"10.5.0.0\": {}", networks("IPv4"))),
        ("FLANNEL_NETWORK=10.5.0.0/33", format!("\"10.5.0.0/33\": {}", networks("IPv4"))),
        ("FLANNEL_NETWORK=10.5.0.0/16,", format!("\"10.5.0.0/16,\": {}", networks("IPv4"))),
        (
            "FLANNEL_NETWORK=10.5.0.0/16 10.6.0.0/16",
            format!("\"10.5.0.0/16 10.6.0.0/16\": {}", networks("IPv4")),
        ),
        ("FLANNEL_NETWORK=fd00::/48", format!("\"fd00::/48\": {}", networks("IPv4"))),
        ("FLANNEL_NETWORK=\"10.5.0.0/16", format!("\"\\\"10.5.0.0/16\": {}", networks("IPv4"))),
        ("FLANNEL_IPV6_NETWORK=10.5.0.0/16", format!("\"10.5.0.0/16\": {}", networks("IPv6"))),
        ("FLANNEL_SUBNET=10.5.1.1", format!("\"10.5.1.1\": {}", subnet("IPv4", 31))),
        ("FLANNEL_SUBNET=10.5.1.1/32", format!("\"10.5.1.1/32\": {}", subnet("IPv4", 31))),
        ("FLANNEL_SUBNET=10.5.1.1/0", format!("\"10.5.1.1/0\": {}", subnet("IPv4", 31))),
        (
            "FLANNEL_SUBNET=10.5.1.1/24,10.5.2.1/24",
            format!("\"10.5.1.1/24,10.5.2.1/24\": {}", subnet("IPv4", 31)),
        ),
        ("FLANNEL_SUBNET=$(reboot)", format!("\"$(reboot)\": {}", subnet("IPv4", 31))),
        ("FLANNEL_IPV6_SUBNET=fd00::1/128", format!("\"fd00::1/128\": {}", subnet("IPv6", 127))),
        ("FLANNEL_MTU=", "\"\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=0", "\"0\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=67", "\"67\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=65536", "\"65536\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=+1450", "\"+1450\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=-1", "\"-1\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=1e3", "\"1e3\": expected 68 to 65535".into()),
        ("FLANNEL_MTU=99999999999", "\"99999999999\": expected 68 to 65535".into()),
        ("FLANNEL_IPMASQ=", "\"\": expected true or false".into()),
        ("FLANNEL_IPMASQ=True", "\"True\": expected true or false".into()),
        ("FLANNEL_IPMASQ=1", "\"1\": expected true or false".into()),
    ] {
        let key = line.split('=').next().unwrap_or_default();
        let refusal = SubnetEnv::parse(&format!("{whole}{line}\n")).map_err(|e| e.to_string());
        assert_eq!(refusal, Err(format!("line 5: {key}: {expected}")), "{line}");
    }

    for (left_out, expected) in [
        (
            "FLANNEL_NETWORK",
            "FLANNEL_NETWORK and FLANNEL_IPV6_NETWORK missing: expected a line FLANNEL_NETWORK=10.5.0.0/16",
        ),
        (
            "FLANNEL_SUBNET",
            "FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET missing: expected a line FLANNEL_SUBNET=10.5.41.1/24",
        ),
        ("FLANNEL_MTU", "FLANNEL_MTU missing: expected a line FLANNEL_MTU=1450"),
        ("FLANNEL_IPMASQ", "FLANNEL_IPMASQ missing: expected a line FLANNEL_IPMASQ=false"),
    ] {
        // A comment does not count.
        let refusal = SubnetEnv::parse(&whole.replace(left_out, &format!("#{left_out}")));
        assert_eq!(refusal.map_err(|e| e.to_string()), Err(expected.to_owned()));
    }
    let refusal = SubnetEnv::parse(&"#".repeat(2_000_000)).map_err(|e| e.to_string());
    assert_eq!(refusal, Err("2000000 bytes; expected at most 1048576".to_owned()));
}

fn start(text: &str) -> String {
    text.chars().take(200).collect()
}
