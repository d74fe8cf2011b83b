//! flanneld and etcdctl on `weft store` in place of etcd.

use std::time::Duration;

use netns_harness::{Lab, wait_until};
use serde_json::Value;

use crate::cluster::{Node, Program};
use crate::stage::{PREFIX, Stage};

/// flanneld renews its lease a minute after it took it where the margin is a
/// minute less than the day that it was granted for.
const RENEWING: [&str; 2] = ["-subnet-lease-renew-margin", "1439"];

#[test]
fn flanneld_leases_watches_and_renews_on_weft_store() {
    let lab = Lab::new("store").unwrap();
    let mut command = lab.switch().command(env!("CARGO_BIN_EXE_weft"));
    command.args(["store", "--listen-client-urls", "http://0.0.0.0:2379", "--insecure-plain-tcp"]);
    let store = lab.switch().spawn("store", command.arg("--data-dir").arg(lab.dir().join("data"))).unwrap();
    let stage = Stage::with_store(lab, store);
    stage.put("config", r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let watched = stage.lab.switch().spawn(
        "watch",
        stage
            .lab
            .switch()
            .command("env")
            .args(["ETCDCTL_API=3", "etcdctl", "--endpoints", &stage.url()])
            .args(["watch", "--prefix", PREFIX]),
    );
    let watched = watched.unwrap();

    let mut nodes: Vec<Node> = (1..=3).map(|i| Node::new(&stage, &format!("h{i}"), 0)).collect();
    nodes[0].start(&stage, Program::Flanneld, &RENEWING);
    nodes[1].start(&stage, Program::Weft, &[]);
    nodes[2].start(&stage, Program::Flanneld, &[]);
    let all = || nodes.iter().all(|a| nodes.iter().all(|b| a.key() == b.key() || a.has_routes_to(b)));
    wait_until(Duration::from_secs(20), "routes", all).unwrap();
    let pods: Vec<_> = nodes.iter_mut().map(|node| node.pod(&stage)).collect();
    for a in &pods {
        for b in &pods {
            a.check(b);
        }
    }

    let record = |node: &Node| -> Value {
        serde_json::from_str(&stage.etcdctl(&["get", "-w", "json", &node.key()])).unwrap()
    };
    let lease = |node: &Node| record(node)["kvs"][0]["lease"].as_u64();
    let first = lease(&nodes[0]);
    assert!(first.is_some_and(|lease| lease != 0), "{:#}", record(&nodes[0]));
    wait_until(Duration::from_secs(90), "renewal by flanneld", || lease(&nodes[0]) != first).unwrap();
    let ttl = |lease: Option<u64>| {
        let text = stage.etcdctl(&["lease", "timetolive", &format!("{:x}", lease.unwrap_or_default())]);
        text.contains("granted with TTL(86400s)")
    };
    assert!(ttl(first) && ttl(lease(&nodes[0])), "the old lease is left to expire");
    let seen = watched.log_tail(1000);
    for node in &mut nodes {
        assert!(seen.contains(&node.key()), "{seen}");
        assert!(node.is_up());
        assert_eq!(node.errors(), Vec::<String>::new());
    }
    assert_eq!(seen.matches(&nodes[0].key()).count(), 2, "etcdctl saw the lease and its renewal: {seen}");

    // What flanneld watches for, its routes show.
    let gone = nodes[2].key();
    nodes[2].stop();
    stage.etcdctl(&["del", &gone]);
    let forgotten = || nodes[..2].iter().all(|node| !node.has_routes_to(&nodes[2]));
    wait_until(Duration::from_secs(20), "the routes to go", forgotten).unwrap();
}
