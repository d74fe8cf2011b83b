use serde_json::{Value, json};

use crate::node::{Node, V4};

#[test]
fn loopback_goes_up_and_down_and_is_reported_in_each_versions_form() {
    let node = Node::new("cni-lo", V4);
    let pod = node.pod("a");
    let state = || pod.ip_json("link show lo").unwrap()[0]["flags"].to_string().contains("\"UP\"");
    pod.ip_batch(&["link set lo down"]).unwrap();
    let sandbox = pod.path().to_str().unwrap().to_owned();
    let interfaces = json!([{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": sandbox }]);
    let newest = |version: &str| {
        json!({ "cniVersion": version, "interfaces": interfaces, "ips": [
            { "interface": 0, "address": "127.0.0.1/8" }, { "interface": 0, "address": "::1/128" }] })
    };
    let older = |version: &str| {
        json!({ "cniVersion": version, "interfaces": interfaces, "dns": {}, "ips": [
            { "version": "4", "interface": 0, "address": "127.0.0.1/8" },
            { "version": "6", "interface": 0, "address": "::1/128" }] })
    };
    let oldest = |version: &str| json!({ "cniVersion": version, "dns": {}, "ip4": { "ip": "127.0.0.1/8" }, "ip6": { "ip": "::1/128" } });
    let forms: [&dyn Fn(&str) -> Value; 3] = [&oldest, &older, &newest];
    for (version, form) in
        [("0.1.0", 0), ("0.2.0", 0), ("0.3.0", 1), ("0.3.1", 1), ("0.4.0", 1), ("1.0.0", 2), ("1.1.0", 2)]
    {
        let loopback = node.chained("loopback", json!({ "cniVersion": version, "type": "loopback" }));
        let call = |command: &str, prev| loopback.call(command, "a", "eth0", Some(&pod), prev);
        assert!(!state(), "{version}");
        let result = call("ADD", None).result();
        assert_eq!(result, forms[form](version));
        assert!(state(), "{version}");
        if form == 2 {
            call("CHECK", Some(&result)).result();
            pod.ip_batch(&["link set lo down"]).unwrap();
            assert!(call("CHECK", Some(&result)).error().1.contains("is down"));
        }
        call("DEL", None).result();
        call("DEL", None).result();
    }
}

#[test]
fn loopback_passes_a_result_on_and_refuses_a_foreign_address_and_the_hosts_namespace() {
    let node = Node::new("cni-lo-odd", V4);
    let pod = node.pod("a");
    let loopback = node.chained("loopback", json!({ "type": "loopback" }));
    let prev = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth7", "mac": "0e:00:00:00:00:01" }],
        "ips": [{ "address": "10.1.2.3/24", "interface": 0 }], "dns": { "domain": "x" } });
    assert_eq!(loopback.add("a", &pod, &prev).result(), prev);
    pod.ip_batch(&["addr add 192.0.2.1/32 dev lo"]).unwrap();
    let (_, text) = loopback.call("ADD", "a", "lo", Some(&pod), None).error();
    assert!(text.contains("interface lo: has address 192.0.2.1/32"), "{text}");
    for command in ["ADD", "DEL"] {
        assert_eq!(loopback.call(command, "a", "lo", Some(&node.host), None).error().0, 8, "{command}");
    }
    assert!(node.host.ip_json("link show lo").unwrap()[0]["flags"].to_string().contains("\"UP\""));
    pod.remove().unwrap();
    loopback.call("DEL", "a", "lo", Some(&pod), None).result();
    loopback.call("DEL", "a", "lo", None, None).result();
}
