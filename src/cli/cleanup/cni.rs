//! What the CNI plugin keeps beyond its containers.

use std::fs;
use std::path::{Path, PathBuf};

use netlink_packet_route::link::InfoKind;
use serde_json::Value;

use super::Broom;
use crate::desired::Op;
use crate::kernel::inventory::{self, Device};
use crate::kernel::netlink::Connection;
use crate::kernel::{Nexthops, Rtnl};

/// A network of ours, with flannel's defaults where its config says nothing.
struct Network {
    bridge: String,
    /// One file a container.
    records: PathBuf,
    /// host-local's addresses.
    addresses: PathBuf,
}

pub async fn sweep(conf_dir: &Path, broom: &mut Broom) {
    let devices = Connection::open().and_then(|mut connection| inventory::devices(&mut connection));
    let devices = broom.found(devices);
    let networks = networks(conf_dir, broom);
    let bridge_of = |network: &Network| {
        let is_it = |device: &&Device| {
            device.name.as_str() == network.bridge && device.kind == Some(InfoKind::Bridge)
        };
        devices.iter().find(is_it)
    };
    let in_use =
        |network: &Network| bridge_of(network).is_some_and(|bridge| !ports(bridge, &devices).is_empty());
    let (busy, idle): (Vec<_>, Vec<_>) = networks.into_iter().partition(in_use);
    for bridge in busy.iter().filter_map(bridge_of) {
        broom.fail(format!(
            "bridge {} has ports {}: remove these containers first; its records stay too",
            bridge.name,
            ports(bridge, &devices).join(", ")
        ));
    }
    for network in &idle {
        if let Some(bridge) = bridge_of(network) {
            let op = Op::DelLink { name: bridge.name };
            broom.remove(format!("link {}", bridge.name), async { remove_link(&op) }).await;
        }
        // Networks may share a folder.
        if !busy.iter().any(|other| other.records == network.records) {
            broom.remove_tree(&network.records).await;
        }
        broom.remove_tree(&network.addresses).await;
    }
}

fn ports(bridge: &Device, devices: &[Device]) -> Vec<String> {
    let ports = devices.iter().filter(|device| device.controller == Some(bridge.index));
    ports.map(|port| port.name.to_string()).collect()
}

fn remove_link(op: &Op) -> anyhow::Result<()> {
    super::apply(&mut Rtnl::open(None, Nexthops::Never)?, op)
}

/// Of the configs in `dir`, or the one of flannel's own conflist.
fn networks(dir: &Path, broom: &mut Broom) -> Vec<Network> {
    let mut networks = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_config =
            path.extension().is_some_and(|ext| ext == "conf" || ext == "conflist" || ext == "json");
        if !is_config {
            continue;
        }
        let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()));
        let config: Value = serde_json::from_slice(&broom.found(text)).unwrap_or_default();
        let plugins = config["plugins"].as_array().cloned().unwrap_or_else(|| vec![config.clone()]);
        let name = config["name"].as_str().unwrap_or_default();
        networks.extend(plugins.iter().filter_map(|plugin| Network::of(name, plugin)));
    }
    if networks.is_empty() {
        networks.extend(Network::of("cbr0", &serde_json::json!({"type": "flannel"})));
    }
    networks
}

impl Network {
    fn of(name: &str, plugin: &Value) -> Option<Network> {
        let ours = matches!(plugin["type"].as_str(), Some("flannel" | "weft" | "weft-cni"));
        if !ours || !is_name(name) {
            return None;
        }
        let path = |value: &Value, default: &str| {
            value.as_str().filter(|path| path.starts_with('/')).unwrap_or(default).to_owned()
        };
        let addresses = path(&plugin["ipam"]["dataDir"], "/var/lib/cni/networks");
        Some(Network {
            bridge: plugin["delegate"]["bridge"].as_str().unwrap_or("cni0").to_owned(),
            records: path(&plugin["dataDir"], "/var/lib/cni/flannel").into(),
            addresses: Path::new(&addresses).join(name),
        })
    }
}

/// As the CNI specification wants it: it becomes a folder's name.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(fits)
}
