//! A weft node ends in the same state as the flanneld nodes whose pictures are
//! in tests/golden/flanneld.

#![cfg(test)]

#[path = "common/golden.rs"]
mod golden;
#[path = "common/stage.rs"]
mod stage;

use golden::{SCENES, file, play};
use netns_harness::{Daemon, Host};
use serde_json::Value;
use stage::Stage;

#[test]
fn a_weft_node_is_as_a_flanneld_node() {
    let mut differences = Vec::new();
    for scene in &SCENES {
        let path = file(scene);
        let recorded = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}: make interop records it", path.display()));
        let flanneld: Value = serde_json::from_str(&recorded).unwrap();
        compare(scene.name, &flanneld, &play(scene, weft), &mut differences);
    }
    assert_eq!(differences, KNOWN, "\n{}", differences.join("\n"));
}

/// docs/compat.md gives the reason for each.
const KNOWN: [&str; 2] = [
    "vxlan-dual / one left / subnet.env: - FLANNEL_MTU=1450 + FLANNEL_MTU=1430",
    "vxlan-dual / three peers / subnet.env: - FLANNEL_MTU=1450 + FLANNEL_MTU=1430",
];

fn weft(stage: &Stage, host: &Host) -> Daemon {
    let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
    command
        .args(["daemon", "--etcd-endpoints", &stage.url()])
        .arg("--subnet-file")
        .arg(host.dir().join("subnet.env"))
        .arg("--admin-socket")
        .arg(host.dir().join("admin.sock"));
    host.spawn("weft", &mut command).unwrap()
}

/// Collects where two pictures differ, each with its place in them.
fn compare(place: &str, flanneld: &Value, weft: &Value, out: &mut Vec<String>) {
    match (flanneld, weft) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            for (key, value) in a {
                compare(&format!("{place} / {key}"), value, &b[key], out);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            let lack = |from: &[Value], sign: char, other: &[Value], out: &mut Vec<String>| {
                let rows = from.iter().filter(|row| !other.contains(row));
                out.extend(rows.map(|row| format!("{place}: {sign} {row}")));
            };
            lack(a, '-', b, out);
            lack(b, '+', a, out);
        }
        (Value::String(a), Value::String(b)) if a.lines().count() == b.lines().count() => {
            let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
            out.extend(lines.map(|(a, b)| format!("{place}: - {a} + {b}")));
        }
        _ if flanneld == weft => {}
        _ => out.push(format!("{place}: flanneld {flanneld}, weft {weft}")),
    }
}
