//! Beside the reference plugins: `make interop CNI_BIN=…`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use netns_harness::Lab;
use serde_json::{Map, json};

use crate::cases::{Recording, all, file, recorded};
use crate::conflist::{Attachment, Conflist};
use crate::stage::{links, play};
use crate::uml::with_vlans;

/// What ours is held to is what they do. `RECORD=1` writes it anew, `CASE` is
/// the beginning of the names of those that are played.
#[test]
fn the_reference_plugins_are_as_recorded() {
    are_as_recorded(|name| !name.starts_with(VLANS));
}

#[test]
fn the_reference_bridge_is_as_recorded_with_vlans() {
    let test = "interop::the_reference_bridge_is_as_recorded_with_vlans";
    let folder = file("any");
    with_vlans(test, folder.parent(), || are_as_recorded(|name| name.starts_with(VLANS)));
}

const VLANS: &str = "vlan-";

fn are_as_recorded(concerned: impl Fn(&str) -> bool) {
    let record = env::var("RECORD").is_ok_and(|value| !value.is_empty());
    let only = env::var("CASE").unwrap_or_default();
    let mut faults = Vec::new();
    for case in all().iter().filter(|case| case.name.starts_with(&only) && concerned(&case.name)) {
        let seen = play(case, &cni_bin());
        if record {
            fs::write(file(&case.name), text(&seen)).unwrap();
        } else if seen != recorded(case) {
            faults.push(format!("{}: {}", case.name, text(&seen)));
        }
    }
    assert!(faults.is_empty(), "RECORD=1 writes them anew: {}", faults.join("\n"));
}

/// host-local's folder changes hands while containers run, and back.
#[test]
fn host_locals_folder_is_taken_over_and_given_back() {
    let lab = Lab::new("cni-handover").unwrap();
    let host = lab.host("node").unwrap();
    let ours = links(host.dir());
    let networks = host.dir().join("networks");
    let by = |path: &Path| Conflist {
        name: "net".into(),
        version: "1.0.0".into(),
        plugins: vec![json!({
            "type": "bridge", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": networks, "ranges": [[{ "subnet": "10.1.2.0/29" }]] },
        })],
        runtime: Map::new(),
        args: String::new(),
        path: path.to_owned(),
    };
    let (reference, ours) = (by(&cni_bin()), by(&ours));
    let pods: Vec<_> = (0..5).map(|n| lab.pod(&host, &format!("p{n}")).unwrap()).collect();
    let paths: Vec<_> = pods.iter().map(|pod| pod.path()).collect();
    let ids: Vec<_> = (0..5).map(|n| format!("c{n}")).collect();
    let to = |n: usize| Attachment { id: &ids[n], ifname: "eth0", netns: Some(&paths[n]) };
    let add = |by: &Conflist, n: usize| {
        let result = by.add(&host, &to(n)).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
        (result, address)
    };
    // Five addresses, the gateway's aside: 10.1.2.2 to 10.1.2.6.
    let (first, a) = add(&reference, 0);
    let (second, b) = add(&ours, 1);
    assert_eq!([a, b], ["10.1.2.2/29", "10.1.2.3/29"]);
    ours.check(&host, &to(0), &first).unwrap();
    ours.del(&host, &to(0), &first).unwrap();
    let (third, c) = add(&reference, 2);
    let (fourth, d) = add(&ours, 3);
    let (fifth, e) = add(&reference, 4);
    assert_eq!([c, d, e], ["10.1.2.4/29", "10.1.2.5/29", "10.1.2.6/29"]);
    reference.check(&host, &to(1), &second).unwrap();
    let (_, again) = add(&ours, 0);
    assert_eq!(again, "10.1.2.2/29", "the only one that is free");
    for (n, result) in [(1, &second), (3, &fourth), (0, &first)] {
        reference.del(&host, &to(n), result).unwrap();
    }
    for (n, result) in [(2, &third), (4, &fifth)] {
        ours.del(&host, &to(n), result).unwrap();
    }
    let names =
        fs::read_dir(networks.join("net")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.starts_with("10.")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// One thing a line, so that a recording can be read and compared by eye.
pub fn text(recording: &Recording) -> String {
    let mut out = String::from("{");
    for (n, (step, seen)) in recording.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(out, "{comma}\n{}: {{", json!(step)).unwrap();
        for (n, (key, value)) in seen.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(out, "{comma}\n {}: {value}", json!(key)).unwrap();
        }
        out.push('}');
    }
    out + "\n}\n"
}

fn cni_bin() -> PathBuf {
    env::var("CNI_BIN").expect("CNI_BIN: the folder with the reference plugins").into()
}
