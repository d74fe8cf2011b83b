//! Configs and results with bytes changed, cut out and put in: whatever comes of
//! them is a result or an error with a code, never the end of the process.

use std::io::Write;
use std::process::Stdio;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::node::{DUAL, Node};

#[test]
fn a_spoilt_config_or_result_gets_an_answer() {
    let node = Node::new("cni-hostile", DUAL);
    let mut conf = node.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["runtimeConfig"] = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 8000, "ingressBurst": 8000 },
    });
    conf["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "cni0" }, { "name": "veth0" }, { "name": "eth0", "sandbox": "/run/netns/x" }],
        "ips": [{ "address": "10.5.17.2/24", "gateway": "10.5.17.1", "interface": 2 }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.5.17.1" }],
    });
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
    let whole = conf.to_string().into_bytes();
    let length = whole.len();
    let change = (0..length, 0..24_usize, prop::collection::vec(any::<u8>(), 0..12));
    let verbs = prop::sample::select(vec!["CHECK", "DEL", "GC", "STATUS"]);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    runner
        .run(&(verbs, change), |(verb, (at, cut, put))| {
            let mut spoilt = whole.clone();
            spoilt.splice(at..(at + cut).min(length), put);
            let mut child = node
                .host
                .command(&node.plugin)
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", "a")
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", "/run/netns/none")
                .env("CNI_PATH", "/nowhere")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&spoilt).unwrap();
            let output = child.wait_with_output().unwrap();
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let text = String::from_utf8_lossy(&spoilt).into_owned();
            prop_assert!(
                output.status.success() || answer["code"].is_u64(),
                "{verb}: {:?}: {text}",
                output.status
            );
            Ok(())
        })
        .unwrap();
}
