//! Programs that manage a host's network and do not know what is ours.

use std::fs;
use std::path::Path;

/// The name of the process (15 characters at most, as `comm` has it), and how to
/// make it leave what is ours alone.
const KNOWN: &[(&str, &str)] = &[
    (
        "systemd-network",
        "systemd-networkd: give it a .network file with Name=flannel* and Unmanaged=yes, and ManageForeignRoutes=no",
    ),
    ("NetworkManager", "NetworkManager: set unmanaged-devices=interface-name:flannel* in its [keyfile]"),
    ("firewalld", "firewalld: it flushes rules when it reloads"),
    ("dhcpcd", "dhcpcd: set denyinterfaces flannel* in dhcpcd.conf"),
    ("connmand", "ConnMan: set NetworkInterfaceBlacklist=flannel in main.conf"),
    ("wickedd", "wicked: give it no ifcfg file for flannel*"),
    ("zebra", "FRR: it removes routes that look like its own at start"),
    ("flanneld", "flanneld: run it or weft, not both"),
    ("calico-node", "Calico: run it or weft as the network, not both"),
    ("cilium-agent", "Cilium: run it or weft as the network, not both"),
];

/// Those that run in this process's network namespace.
pub fn running() -> Vec<String> {
    let namespace = |pid: &Path| fs::read_link(pid.join("ns/net")).ok();
    let Some(ours) = namespace(Path::new("/proc/self")) else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |pid: &Path| {
        let comm = fs::read_to_string(pid.join("comm")).ok()?;
        KNOWN.iter().find(|(known, _)| *known == comm.trim())
    };
    let found = processes.filter_map(|pid| Some((name(&pid)?, pid)));
    let mut found: Vec<_> = found
        .filter(|(_, pid)| namespace(pid).as_ref() == Some(&ours))
        .map(|((_, hint), _)| (*hint).to_owned())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}
