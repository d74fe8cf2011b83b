use std::fs;

use serde_json::{Value, json};

use crate::node::{DUAL, Node, Outcome, V4, run};

/// Three attachments of two networks; one stays valid.
#[test]
fn gc_removes_what_is_not_valid_and_nothing_else() {
    let mut node = Node::new("cni-gc", DUAL);
    node.conf["cniVersion"] = json!("1.1.0");
    node.conf["delegate"]["macspoofchk"] = json!(true);
    let pods = ["kept", "gone", "other"].map(|name| node.pod(name));
    for (id, pod, ifname) in
        [("kept", &pods[0], "eth0"), ("kept", &pods[0], "eth1"), ("gone", &pods[1], "eth0")]
    {
        node.call("ADD", id, ifname, Some(&pod.path()), None).result();
    }
    let first = node.conf.clone();
    node.conf["name"] = json!("second");
    node.conf["delegate"]["bridge"] = json!("cni1");
    node.set_subnet(&DUAL.replace("10.5.17.", "10.6.1.").replace(":11::", ":12::"));
    // The same container and interface in another network.
    node.call("ADD", "gone", "eth1", Some(&pods[1].path()), None).result();
    node.add("other", &pods[2]).result();
    node.conf = first;
    node.set_subnet(DUAL);
    let state = |node: &Node| {
        let second = node.host.dir().join("networks/second");
        let rules = run(node.host.command("nft").args(["list", "ruleset"]));
        let chains = rules.lines().filter(|line| line.contains("chain cni-br")).count();
        (
            node.reservations().len(),
            crate::node::files(&second).len(),
            node.veths().len(),
            node.cache().len(),
            chains,
        )
    };
    assert_eq!(state(&node), (6, 4 + 4, 5, 4 + 4, 10));

    let kept = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    gc(&node, "cni.dev/valid-attachments", &kept).result();
    // flannel's name for a container is that of its newest interface, and went with it.
    assert_eq!(state(&node), (2, 4 + 4, 3, 1 + 4, 6), "{:?}", node.cache());
    assert_eq!(
        node.reservations().iter().map(|(_, of)| of.as_str()).collect::<Vec<_>>(),
        ["kept\r\neth0"; 2]
    );
    assert_eq!(pods[0].ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0);
    assert_eq!(pods[1].ping("10.6.1.1".parse().unwrap(), 1).unwrap().lost(), 0);

    // By libcni's name for it, and with nothing valid.
    gc(&node, "cni.dev/attachments", &json!([])).result();
    assert_eq!(state(&node), (0, 4 + 4, 2, 4, 4));
    let names: Vec<_> = node.cache().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["gone", "gone:eth1", "other", "other:eth0"]);
}

#[test]
fn gc_without_a_list_removes_nothing() {
    let mut node = Node::new("cni-nolist", V4);
    node.conf["cniVersion"] = json!("1.1.0");
    let pod = node.pod("a");
    node.add("a", &pod).result();
    gc(&node, "x", &Value::Null).result();
    assert_eq!((node.reservations().len(), node.veths().len(), node.cache().len()), (1, 1, 2));
    // An empty list, as libcni writes that of a runtime without containers.
    gc(&node, "cni.dev/valid-attachments", &Value::Null).result();
    assert_eq!((node.reservations().len(), node.veths().len(), node.cache().len()), (0, 0, 0));
}

#[test]
fn gc_clears_what_crashes_left() {
    let mut node = Node::new("cni-litter", V4);
    node.conf["cniVersion"] = json!("1.1.0");
    let pod = node.pod("a");
    node.add("a", &pod).result();
    let (networks, cache) = (node.host.dir().join("networks/cbr0"), node.host.dir().join("flannel"));
    for (file, text) in [
        (networks.join("10.5.17.50"), ""),
        (networks.join("10.5.17.51"), "\0\0\0"),
        (networks.join("10.5.17.52"), "old-host-local"),
        (networks.join(".weft.tmp"), "x"),
        (cache.join("b:eth0"), "{\"na"),
        (cache.join("flannels-own"), "{\"name\":\"cbr0\",\"type\":\"bridge\"}"),
    ] {
        fs::write(file, text).unwrap();
    }
    // Not ours to judge.
    fs::write(cache.join("another"), "{\"name\":\"elsewhere\"}").unwrap();
    fs::write(cache.join("README"), "notes").unwrap();
    gc(&node, "cni.dev/valid-attachments", &json!([{ "containerID": "a", "ifname": "eth0" }])).result();
    let names: Vec<_> = node.cache().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["README", "a", "a:eth0", "another"]);
    assert_eq!(node.reservations(), [("10.5.17.2".to_owned(), "a\r\neth0".to_owned())]);
    assert!(!networks.join(".weft.tmp").exists());
}

#[test]
fn gc_is_passed_on_to_a_foreign_ipam_and_to_a_foreign_delegate() {
    let mut node = Node::new("cni-gcpass", V4);
    node.conf["cniVersion"] = json!("1.1.0");
    let bin = node.host.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let log = node.host.dir().join("log");
    let script = format!("#!/bin/sh\n{{ echo \"$CNI_COMMAND\"; cat; echo; }} >>{}\n", log.display());
    let plugin = bin.join("elsewhere");
    fs::write(&plugin, script).unwrap();
    run(std::process::Command::new("chmod").arg("+x").arg(&plugin));
    node.path = bin.display().to_string();
    let list = json!([{ "containerID": "a", "ifname": "eth0" }]);
    for field in ["/ipam", "/delegate"] {
        let plain = node.conf.clone();
        node.conf.pointer_mut(field).unwrap()["type"] = json!("elsewhere");
        gc(&node, "cni.dev/valid-attachments", &list).result();
        let said = fs::read_to_string(&log).unwrap();
        let (command, conf) = said.split_once('\n').unwrap();
        let conf: Value = serde_json::from_str(conf.trim()).unwrap();
        assert_eq!((command, &conf["cni.dev/valid-attachments"]), ("GC", &list), "{field}");
        fs::remove_file(&log).unwrap();
        node.conf = plain;
    }
}

fn gc(node: &Node, key: &str, valid: &Value) -> Outcome {
    let mut conf = node.conf.clone();
    conf[key] = valid.clone();
    node.give("GC", &conf)
}
