//! Hurts a host while its containers talk, and tells how long they noticed.

use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use netns_harness::PingReport;
use serde_json::Value;

use super::BackendChoice;
use super::fabric::{Fabric, Node};
use super::voice::Voice;

/// What was broken and how the ping that ran meanwhile fared.
pub struct Healed {
    pub what: String,
    pub ping: PingReport,
}

struct Injury {
    what: String,
    tool: &'static str,
    args: Vec<String>,
    /// What must be there again.
    restored: Restored,
}

enum Restored {
    Route(IpNetwork),
    Fdb { mac: String },
}

/// One wound after the other on the first host, on the way to the second.
pub fn show(fabric: &Fabric, voice: &Voice) -> anyhow::Result<Vec<Healed>> {
    let [near, far, ..] = &fabric.nodes[..] else { bail!("two hosts are needed") };
    let injuries = injuries(fabric.backend, near, far)?;
    injuries.into_iter().map(|injury| heal(fabric, near, far, injury, voice)).collect()
}

fn injuries(backend: BackendChoice, near: &Node, far: &Node) -> anyhow::Result<Vec<Injury>> {
    let subnet = far.subnet().context("the second host has no IPv4 subnet")?;
    let route = |what: &str, tool, args: &str| Injury {
        what: what.to_owned(),
        tool,
        args: args.split(' ').map(str::to_owned).collect(),
        restored: Restored::Route(subnet),
    };
    let mut injuries = vec![route("route deleted", "ip", &format!("route del {subnet}"))];
    if backend == BackendChoice::Vxlan {
        let mac = fdb_mac(near, far)?;
        let args = format!("fdb del {mac} dev flannel.1 dst {}", far.host.ip4());
        let fdb = Injury { restored: Restored::Fdb { mac }, ..route("FDB entry deleted", "bridge", &args) };
        injuries.push(fdb);
        injuries.push(route("flannel.1 deleted", "ip", "link del flannel.1"));
    }
    Ok(injuries)
}

/// Breaks it under a ping a millisecond, and waits until it stands again.
fn heal(fabric: &Fabric, near: &Node, far: &Node, injury: Injury, voice: &Voice) -> anyhow::Result<Healed> {
    let (from, to) = (&near.containers[0], &far.containers[0]);
    let Injury { what, tool, args, restored } = injury;
    voice.step(&format!("{what} on host1"), |_| {
        let flood = from.netns.flood(to.ips[0], 1000)?;
        thread::sleep(Duration::from_millis(100));
        near.host.run(tool, &args)?;
        fabric.wait(&format!("weft to undo: {tool} {}", args.join(" ")), || is_restored(near, &restored))?;
        let before = flood.received();
        fabric.wait(&format!("pings to pass again after: {what}"), || flood.received() > before)?;
        thread::sleep(Duration::from_millis(100));
        let ping = flood.stop()?;
        let line = format!("{what} on host1: {}", told(&ping));
        Ok((Healed { what: what.clone(), ping }, line))
    })
}

/// How long traffic stood still, to the grain of one ping a millisecond.
pub fn told(ping: &PingReport) -> String {
    match ping.longest_gap.as_millis() {
        0 => "healed, not one ping lost".to_owned(),
        ms => format!("healed, traffic paused {ms} ms"),
    }
}

fn is_restored(near: &Node, restored: &Restored) -> bool {
    let there =
        |shown: Result<Value, netns_harness::Error>| shown.ok().and_then(|v| Some(!v.as_array()?.is_empty()));
    match restored {
        Restored::Route(subnet) => there(near.host.ip_json(&format!("route show {subnet}"))).unwrap_or(false),
        Restored::Fdb { mac } => {
            near.host.bridge_json("fdb show dev flannel.1").is_ok_and(|fdb| has_mac(&fdb, mac))
        }
    }
}

fn has_mac(fdb: &Value, mac: &str) -> bool {
    fdb.as_array().is_some_and(|entries| entries.iter().any(|entry| entry["mac"] == *mac))
}

/// The peer's VTEP MAC as this host has it: the FDB entry that leads to the
/// peer's address.
fn fdb_mac(near: &Node, far: &Node) -> anyhow::Result<String> {
    let fdb = near.host.bridge_json("fdb show dev flannel.1")?;
    let peer = far.host.ip4().to_string();
    let entries = fdb.as_array().context("bridge fdb")?;
    let entry = entries.iter().find(|entry| entry["dst"] == *peer);
    let mac = entry.and_then(|entry| entry["mac"].as_str());
    mac.map(str::to_owned).with_context(|| format!("host1 has no FDB entry to {peer}"))
}
