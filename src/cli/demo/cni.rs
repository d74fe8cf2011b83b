//! Drives the CNI plugin as a container runtime does (CNI spec 1.1.0, sections
//! 2 and 3): a conflist on disk, parameters in the environment, the plugin's
//! configuration on standard input.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use netns_harness::{Host, Netns};
use serde_json::{Value, json};

/// The plugin's executable: as named, or beside our own.
pub fn find(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("own executable")?.with_file_name("weft-cni"),
    };
    if !path.is_file() {
        bail!(
            "{}: the CNI plugin is not there: build it with `cargo build -p weft-cni`, or name it with --cni-bin",
            path.display()
        );
    }
    path.canonicalize().with_context(|| path.display().to_string())
}

/// Writes the conflist a node would have in /etc/cni/net.d: flannel's own, with
/// paths in the host's directory since all hosts share one file system.
pub fn write_conflist(host: &Host) -> anyhow::Result<()> {
    let dir = host.dir();
    let conflist = json!({
        "name": "cbr0",
        "cniVersion": "1.0.0",
        "plugins": [{
            "type": "flannel",
            "subnetFile": dir.join("subnet.env"),
            "dataDir": dir.join("cni/flannel"),
            "ipam": { "dataDir": dir.join("cni/networks") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        }],
    });
    let path = conflist_path(host);
    fs::write(&path, format!("{conflist:#}\n")).with_context(|| path.display().to_string())
}

/// ADD: gives the container its `eth0`; returns its addresses.
pub fn add(plugin: &Path, host: &Host, container: &Netns) -> anyhow::Result<Vec<IpAddr>> {
    let path = conflist_path(host);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let list: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut config = list["plugins"][0].clone();
    for key in ["name", "cniVersion"] {
        config[key] = list[key].clone();
    }
    let mut child = host
        .command(plugin)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", container.name())
        .env("CNI_NETNS", container.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", plugin.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| plugin.display().to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that ends early says why in its answer.
        let _ = stdin.write_all(config.to_string().as_bytes());
    }
    let output = child.wait_with_output().with_context(|| plugin.display().to_string())?;
    let answer = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("CNI ADD of {}: {} {}", container.name(), answer.trim(), stderr.trim());
    }
    addresses(&answer).with_context(|| format!("CNI ADD of {}: {}", container.name(), answer.trim()))
}

fn addresses(answer: &str) -> anyhow::Result<Vec<IpAddr>> {
    let result: Value = serde_json::from_str(answer)?;
    let ips = result["ips"].as_array().context("no ips")?;
    ips.iter()
        .map(|ip| Ok(ip["address"].as_str().context("no address")?.parse::<IpNetwork>()?.ip()))
        .collect()
}

fn conflist_path(host: &Host) -> PathBuf {
    host.dir().join("10-flannel.conflist")
}
