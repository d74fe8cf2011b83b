use std::fs;

use serde_json::json;

use crate::node::{Node, V4, files, run};

#[test]
fn one_config_has_a_section_for_each_plugin() {
    let mut node = Node::new("cni-one", V4);
    let dir = node.host.dir().to_str().unwrap().to_owned();
    node.conf["type"] = "weft".into();
    node.conf["cniVersion"] = "1.1.0".into();
    node.conf["tuning"] = json!({ "mtu": 1300, "dataDir": format!("{dir}/tuning"),
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } });
    node.conf["firewall"] = json!({ "backend": "iptables", "dataDir": format!("{dir}/firewall") });
    node.conf["runtimeConfig"] = json!({ "bandwidth": { "egressRate": 8_000_000, "egressBurst": 800_000 },
        "mac": "0e:00:00:00:00:07" });
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!((interfaces.len(), &interfaces[2]["mac"]), (4, &json!("0e:00:00:00:00:07")));
    assert!(interfaces[3]["name"].as_str().unwrap().starts_with("bwp"));
    let eth0 = &pod.ip_json("link show eth0").unwrap()[0];
    assert_eq!((&eth0["mtu"], &eth0["address"]), (&json!(1300), &json!("0e:00:00:00:00:07")));
    let rules = || run(node.host.command("iptables").args(["--list-rules", "CNI-FORWARD"]));
    assert!(rules().contains("-s 10.5.17.2/32 -j ACCEPT"));
    node.call("CHECK", "a", "eth0", Some(&pod.path()), Some(&result)).result();

    // Without ADD's result and what it asked for, as a runtime that lost it would.
    node.conf["runtimeConfig"] = json!({});
    node.del("a", &pod).result();
    assert!(!rules().contains("10.5.17.2"), "{}", rules());
    for kept in ["tuning", "firewall"] {
        assert_eq!(files(&node.host.dir().join(kept)), vec![], "{kept}");
    }
    assert_eq!(node.host.ip_json("link show type ifb").unwrap(), json!([]));
    node.assert_empty();
}

#[test]
fn what_fails_late_takes_back_what_was_made_before() {
    let mut node = Node::new("cni-one-bad", V4);
    let dir = node.host.dir().to_str().unwrap().to_owned();
    node.conf["tuning"] = json!({ "mtu": 1300, "dataDir": format!("{dir}/tuning") });
    node.conf["bandwidth"] = json!({ "egressRate": 8_000_000, "egressBurst": 800_000 });
    // A file stands where firewall wants its folder.
    fs::write(node.host.dir().join("firewall"), "").unwrap();
    node.conf["firewall"] = json!({ "backend": "iptables", "dataDir": format!("{dir}/firewall") });
    let pod = node.pod("a");
    let (code, text) = node.add("a", &pod).error();
    assert!(code == 5 && text.contains("/firewall/"), "{text}");
    assert_eq!(files(&node.host.dir().join("tuning")), vec![]);
    assert_eq!(node.host.ip_json("link show type ifb").unwrap(), json!([]));
    node.assert_empty();
}
