use serde_json::json;

use crate::node::{Node, V4};

#[test]
fn results_have_the_shape_of_the_configs_version() {
    let mut node = Node::new("cni-versions", V4);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        node.conf["cniVersion"] = json!(version);
        let pod = node.pod(&version.replace('.', "-"));
        let result = node.add("a", &pod).result();
        let old = version < "1";
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"], if old { json!("4") } else { json!(null) }, "{version}");
        assert_eq!(result.get("dns"), old.then_some(&json!({})), "{version}");
        assert_eq!(result["interfaces"][2]["sandbox"], json!(pod.path()), "{version}");
        node.del("a", &pod).result();
    }
    node.conf["cniVersion"] = json!("0.2.0");
    let pod = node.pod("oldest");
    let result = node.add("a", &pod).result();
    assert_eq!((&result["ip4"]["gateway"], result.get("interfaces")), (&json!("10.5.17.1"), None));
    node.del("a", &pod).result();
}

#[test]
fn version_needs_no_config() {
    let node = Node::new("cni-version", V4);
    let result = node.call("VERSION", "", "", None, None).result();
    let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(result["supportedVersions"], all);
}

#[test]
fn errors_have_the_specifications_codes_and_name_what_is_wrong() {
    let mut node = Node::new("cni-errors", V4);
    let plain = node.conf.clone();
    let pod = node.pod("a");
    let cases = [
        ("/cniVersion", json!("7.0.0"), 1, "7.0.0"),
        ("/delegate/vlan", json!(4095), 7, "vlan: 4095"),
        ("/delegate/vlanTrunk", json!([{ "minID": 7 }]), 7, "vlanTrunk[0].maxID"),
        ("/delegate/disableContainerInterface", json!(true), 7, "ipam.type"),
        ("/subnetWait", json!(601), 7, "subnetWait: 601"),
        ("/delegate/mtu", json!("big"), 7, "mtu: \\\"big\\\""),
        ("/delegate/mtu", json!(67), 7, "mtu: 67"),
        ("/runtimeConfig", json!({ "mac": "ff:ff:ff:ff:ff:ff" }), 7, "a unicast MAC"),
        ("/delegate/promiscMode", json!(true), 7, "promiscMode: true"),
        ("/delegate/bridge", json!("a/b"), 7, "bridge: \\\"a/b\\\""),
        ("/delegate/type", json!("../evil"), 7, "type: \\\"../evil\\\""),
        ("/delegate/ipMasqBackend", json!("ebtables"), 7, "ipMasqBackend: \\\"ebtables\\\""),
        ("/delegate/ipam", json!({}), 7, "delegate.ipam"),
        ("/name", json!("a/../b"), 7, "name"),
        ("/ipam/routes", json!([{ "dst": "nowhere" }]), 7, "ipam.routes[0]"),
        ("/runtimeConfig", json!({ "mac": "zz" }), 7, "runtimeConfig.mac"),
        (
            "/runtimeConfig",
            json!({ "ipRanges": [[{ "subnet": "10.5.17.3/24" }]] }),
            7,
            "runtimeConfig.ipRanges[0][0].subnet",
        ),
    ];
    for (pointer, value, code, part) in cases {
        node.conf = plain.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        node.conf.pointer_mut(parent).unwrap()[key] = value;
        if key == "ipMasqBackend" {
            node.conf["delegate"]["ipMasq"] = json!(true);
        }
        let (got, text) = node.add("a", &pod).error();
        assert!(got == code && text.contains(part), "{pointer}: {got} {text}");
    }
    node.conf = plain;
    node.args = "K8S_POD_NAME=x".into();
    assert_eq!(node.add("a", &pod).error().0, 4);
    node.args.clear();
    assert_eq!(node.call("ADD", "../x", "eth0", Some(&pod.path()), None).error().0, 4);
    assert_eq!(node.call("ADD", "x", "eth0", None, None).error().0, 4);
    assert_eq!(node.call("JUMP", "x", "eth0", None, None).error().0, 4);
    assert_eq!(node.call("ADD", "x", "eth0", Some(&node.host.path()), None).error().0, 8);
    assert_eq!(node.call("ADD", "x", "eth0", Some("/dev/null".as_ref()), None).error().0, 8);
    node.conf["cniVersion"] = json!("0.3.1");
    assert_eq!(node.call("CHECK", "x", "eth0", Some(&pod.path()), None).error().0, 1);
    node.assert_empty();
}

#[test]
fn a_missing_subnet_file_is_to_be_tried_again_and_status_says_so_at_once() {
    let mut node = Node::new("cni-subnet", V4);
    node.conf["cniVersion"] = json!("1.1.0");
    assert!(node.call("STATUS", "", "", None, None).ok);
    std::fs::remove_file(node.host.dir().join("subnet.env")).unwrap();
    let (code, text) = node.call("STATUS", "", "", None, None).error();
    assert!(code == 50 && text.contains("subnet.env"), "{text}");
    let (code, text) = node.add("a", &node.pod("a")).error();
    assert!(code == 11 && text.contains("subnet.env") && text.contains("daemon"), "{text}");
    node.set_subnet("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=x\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
    let (code, text) = node.add("a", &node.pod("b")).error();
    assert!(code == 6 && text.contains("FLANNEL_SUBNET") && text.contains("line 2"), "{text}");
}
