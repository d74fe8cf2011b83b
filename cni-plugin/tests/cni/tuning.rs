use std::fs;

use netns_harness::Netns;
use serde_json::{Value, json};

use crate::node::{Node, V4, files};

#[test]
fn an_interface_is_tuned_checked_and_restored() {
    let node = Node::new("cni-tune", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let before = eth0(&pod);
    let tuning = tuning(
        &node,
        json!({ "mac": "0E:00:00:00:00:0a", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
            "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "2000 3000" } }),
    );
    let result = tuning.add("a", &pod, &prev).result();

    let mut expected = prev;
    expected["interfaces"][2]["mac"] = "0e:00:00:00:00:0a".into();
    assert_eq!(result, expected, "prevResult with the new MAC");
    let tuned = eth0(&pod);
    assert_eq!(
        (&tuned["address"], &tuned["mtu"], &tuned["txqlen"]),
        (&json!("0e:00:00:00:00:0a"), &json!(1300), &json!(77))
    );
    assert!(flags(&tuned).contains("\"PROMISC\"") && flags(&tuned).contains("\"ALLMULTI\""), "{tuned}");
    assert_eq!(sysctl(&pod, "ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(sysctl(&pod, "ipv4/ip_local_port_range"), "2000\t3000");
    assert_eq!(sysctl(&node.host, "ipv4/ip_local_port_range"), "32768\t60999", "the host's stays");
    // The reference plugin's file, and the network in it.
    let backup = format!(
        "{{\n \"mac\": {},\n \"promisc\": false,\n \"mtu\": 1450,\n \"allmulti\": false,\n \"txQLen\": {},\n \"network\": \"cbr0\"\n}}",
        before["address"], before["txqlen"]
    );
    assert_eq!(backups(&node), [("a_eth0.json".to_owned(), backup)]);

    assert!(tuning.check("a", &pod, &result).ok);
    for (spoil, mend, part) in [
        ("mtu 1400", "mtu 1300", "mtu is 1400, expected 1300"),
        ("promisc off", "promisc on", "promisc is false, expected true"),
        ("allmulticast off", "allmulticast on", "allmulticast is false"),
        ("txqueuelen 5", "txqueuelen 77", "txqueuelen is 5"),
        ("address 0e:00:00:00:00:0b", "address 0e:00:00:00:00:0a", "address is 0e:00:00:00:00:0b"),
    ] {
        pod.ip_batch(&[format!("link set eth0 {spoil}")]).unwrap();
        let (code, text) = tuning.check("a", &pod, &result).error();
        assert!(code == 999 && text.contains(part), "{text}");
        pod.ip_batch(&[format!("link set eth0 {mend}")]).unwrap();
    }
    pod.sysctl("ipv4/conf/eth0/arp_filter", "0").unwrap();
    let (_, text) = tuning.check("a", &pod, &result).error();
    assert!(
        text.contains("sysctl net.ipv4.conf.IFNAME.arp_filter is \\\"0\\\", expected \\\"1\\\""),
        "{text}"
    );

    tuning.del("a", &pod, &result).result();
    assert_eq!(eth0(&pod), before);
    assert_eq!(backups(&node), vec![]);
    tuning.del("a", &pod, &result).result();
    node.del("a", &pod).result();
    tuning.call("DEL", "a", "eth0", None, None).result();
}

#[test]
fn the_strongest_request_for_a_mac_wins() {
    let mut node = Node::new("cni-tune-mac", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let mut conf = json!({ "mac": "0e:00:00:00:00:01" });
    let mac = |node: &Node, conf: &Value| {
        let tuning = tuning(node, conf.clone());
        let result = tuning.add("a", &pod, &prev).result();
        assert_eq!(eth0(&pod)["address"], result["interfaces"][2]["mac"]);
        tuning.del("a", &pod, &result).result();
        result["interfaces"][2]["mac"].as_str().unwrap().to_owned()
    };
    assert_eq!(mac(&node, &conf), "0e:00:00:00:00:01");
    node.args = "IgnoreUnknown=1;MAC=0e:00:00:00:00:02".into();
    assert_eq!(mac(&node, &conf), "0e:00:00:00:00:02");
    conf["runtimeConfig"] = json!({ "mac": "0e:00:00:00:00:03" });
    assert_eq!(mac(&node, &conf), "0e:00:00:00:00:03");
    conf["args"] = json!({ "cni": { "mac": "0e:00:00:00:00:04" } });
    assert_eq!(mac(&node, &conf), "0e:00:00:00:00:04");
}

#[test]
fn a_refused_tuning_leaves_nothing_behind() {
    let node = Node::new("cni-tune-bad", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let before = eth0(&pod);
    for (conf, code, part) in [
        (json!({ "mtu": 1400, "mac": "01:00:00:00:00:01" }), 999, "address 01:00:00:00:00:01"),
        (json!({ "mtu": 1400, "mac": "x" }), 7, "mac: \\\"x\\\": expected a MAC address"),
        (json!({ "sysctl": { "kernel.hostname": "x" } }), 7, "expected a name below net"),
        (json!({ "sysctl": { "net.ipv4.no_such": "x" } }), 999, "the namespace has no such sysctl"),
        (
            json!({ "sysctl": { "net.ipv4.ip_forward": 1 } }),
            7,
            "sysctl.net.ipv4.ip_forward: 1: expected a string",
        ),
    ] {
        let (found, text) = tuning(&node, conf).add("a", &pod, &prev).error();
        assert!(found == code && text.contains(part), "{found} {text}");
        assert_eq!((eth0(&pod), backups(&node)), (before.clone(), vec![]));
    }
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for key in ["net/../../kernel/hostname", "net/ipv4/../../kernel/hostname", "../kernel/hostname"] {
        tuning(&node, json!({ "sysctl": { key: "weft" } })).add("a", &pod, &prev).error();
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), hostname);
    let (code, text) = tuning(&node, json!({})).call("ADD", "a", "eth0", Some(&pod), None).error();
    assert!(code == 7 && text.contains("prevResult: missing"), "{text}");
}

#[test]
fn an_administrator_says_which_sysctls_a_network_may_set() {
    let node = Node::new("cni-tune-list", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let etc = node.host.dir().join("etc");
    fs::create_dir_all(etc.join("cni/tuning")).unwrap();
    fs::write(etc.join("cni/tuning/allowlist.conf"), "^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n").unwrap();
    let with_list = |conf: Value| {
        let mut tuning = tuning(&node, conf);
        // A private mount of the folder over /etc, for this one process.
        let script = "mount --bind \"$1\" /etc && exec \"$2\"";
        let arguments =
            ["--mount", "sh", "-c", script, "sh", etc.to_str().unwrap(), tuning.program.to_str().unwrap()];
        tuning.arguments = arguments.into_iter().map(Into::into).collect();
        tuning.program = "unshare".into();
        tuning
    };
    with_list(json!({ "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } })).add("a", &pod, &prev).result();
    assert_eq!(sysctl(&pod, "ipv4/conf/eth0/arp_filter"), "1");
    let refused = json!({ "args": { "cni": { "sysctl": { "net.ipv4.ip_forward": "1" } } } });
    let (code, text) = with_list(refused).add("a", &pod, &prev).error();
    assert!(code == 7 && text.contains("net.ipv4.ip_forward") && text.contains("is not allowed"), "{text}");
    assert_eq!(sysctl(&pod, "ipv4/ip_forward"), "0");
}

#[test]
fn gc_removes_the_backups_of_its_own_network_alone() {
    let node = Node::new("cni-tune-gc", V4);
    let conf = json!({ "mtu": 1300 });
    let mut other = conf.clone();
    other["name"] = "other".into();
    for (id, conf) in [("a", &conf), ("b", &conf), ("c", &other)] {
        let pod = node.pod(id);
        let prev = node.add(id, &pod).result();
        tuning(&node, conf.clone()).add(id, &pod, &prev).result();
    }
    // Another plugin's, and what a killed one left.
    let dir = node.host.dir().join("tuning");
    fs::write(dir.join("d_eth0.json"), "{\"mtu\": 1500}").unwrap();
    fs::write(dir.join(".e_eth0.json"), "{").unwrap();
    tuning(&node, conf).gc(&["b"]).result();
    let left: Vec<_> = backups(&node).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["b_eth0.json", "c_eth0.json", "d_eth0.json"]);
}

fn tuning(node: &Node, mut conf: Value) -> crate::node::Chained<'_> {
    conf["dataDir"] = node.host.dir().join("tuning").to_str().unwrap().into();
    conf["type"] = "tuning".into();
    node.chained("tuning", conf)
}

fn backups(node: &Node) -> Vec<(String, String)> {
    files(&node.host.dir().join("tuning"))
}

fn eth0(pod: &Netns) -> Value {
    pod.ip_json("-d link show eth0").unwrap()[0].take()
}

fn flags(link: &Value) -> String {
    link["flags"].to_string()
}

fn sysctl(netns: &Netns, key: &str) -> String {
    let read = || fs::read_to_string(format!("/proc/sys/net/{key}"));
    netns.enter(read).unwrap().unwrap().trim_end().to_owned()
}
