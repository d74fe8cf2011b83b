//! A weft node ends in the same state as the flanneld nodes whose pictures are
//! in tests/golden/flanneld.

#![cfg(test)]

#[path = "common/golden.rs"]
mod golden;
#[path = "common/stage.rs"]
mod stage;

use std::collections::BTreeSet;

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
    let known: BTreeSet<String> = known().into_iter().collect();
    let found: BTreeSet<String> = differences.into_iter().collect();
    assert_eq!(found, known, "\n{found:#?}");
}

/// docs/compat.md gives the reasons.
fn known() -> Vec<String> {
    let stale = |scene: &str, dst: &str, mac: &str| {
        format!(
            r#"{scene} / 3 one moved / fdb: - {{"dst":"{dst}","flags":["self"],"mac":"{mac}","state":"permanent"}}"#
        )
    };
    let mtu =
        |picture: &str| format!("vxlan-dual / {picture} / subnet.env: - FLANNEL_MTU=1450 + FLANNEL_MTU=1430");
    let (v4, v6) = (("192.168.77.3", "02:00:00:00:00:03"), ("fd77::3", "02:00:00:00:06:03"));
    vec![
        stale("vxlan", v4.0, v4.1),
        stale("vxlan-options", v4.0, v4.1),
        stale("vxlan-returning", v4.0, v4.1),
        stale("vxlan-dual", v4.0, v4.1),
        stale("vxlan-dual", v6.0, v6.1),
        mtu("1 three peers"),
        mtu("2 one left"),
        mtu("3 one moved"),
    ]
}

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
