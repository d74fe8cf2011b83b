use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::json;

use crate::node::{Node, Outcome, V4, run};

/// While it waits for subnet.env it can be looked at.
#[test]
fn capabilities_that_are_not_needed_are_dropped_first() {
    let mut node = Node::new("cni-caps", V4);
    fs::remove_file(node.host.dir().join("subnet.env")).unwrap();
    node.conf["subnetWait"] = json!(20);
    let pod = node.pod("a");
    let mut waiting = node.start("ADD", "a", "eth0", Some(&pod.path()), None);
    let status = |key: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", waiting.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let (net_admin, sys_ptrace, sys_admin) = (1 << 12, 1 << 19, 1 << 21);
    let needed = net_admin | sys_ptrace | sys_admin;
    let deadline = Instant::now() + Duration::from_secs(10);
    while status("CapEff:") != needed && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((status("CapEff:"), status("CapPrm:")), (needed, needed));
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

/// Opening /proc/PID/ns/net takes the right to trace a process that may do more.
#[test]
fn a_namespace_may_be_named_by_a_process() {
    let node = Node::new("cni-pidns", V4);
    let pod = node.pod("a");
    let mut holder = pod.command("sleep").arg("60").spawn().unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    node.call("ADD", "a", "eth0", Some(&path), None).result();
    assert_eq!(pod.ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0);
    node.call("DEL", "a", "eth0", Some(&path), None).result();
    node.assert_empty();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_plugin_is_looked_for_in_absolute_folders_of_cni_path_alone() {
    let mut node = Node::new("cni-path", V4);
    let bin = node.host.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let plugin = bin.join("elsewhere");
    fs::write(&plugin, "#!/bin/sh\necho '{}'\n").unwrap();
    run(std::process::Command::new("chmod").arg("+x").arg(&plugin));
    node.conf["delegate"]["type"] = json!("elsewhere");
    let pod = node.pod("a");
    for path in [String::new(), ".".into(), "../bin".into(), "/nowhere::.".into()] {
        node.path = path;
        let mut program = node.host.command(&node.plugin);
        program.current_dir(&bin);
        let plugin = node.start_program(program, &node.conf, "ADD", "a", "eth0", Some(&pod.path()));
        let (code, text) = Outcome::of(plugin).error();
        assert!(code == 7 && text.contains("CNI_PATH"), "{text}");
    }
    node.path = format!("/nowhere:{}", bin.display());
    node.add("a", &pod).result();
}

#[test]
fn the_wait_for_the_subnet_is_bounded_as_configured() {
    let mut node = Node::new("cni-bounded", V4);
    fs::remove_file(node.host.dir().join("subnet.env")).unwrap();
    let pod = node.pod("a");
    for (seconds, least) in [(0, Duration::ZERO), (1, Duration::from_secs(1))] {
        node.conf["subnetWait"] = json!(seconds);
        let start = Instant::now();
        let (code, text) = node.add("a", &pod).error();
        assert!(code == 11 && text.contains("subnet.env"), "{text}");
        assert!(start.elapsed() >= least, "{seconds} s: {:?}", start.elapsed());
    }
}
