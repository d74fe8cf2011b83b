//! The same conflists to the reference plugins, recorded, and to ours by the
//! same names. `make interop` holds the reference to its recordings; where ours
//! differs, `cases.json` says so and why.

#![cfg(test)]

mod cases;
mod conflist;
#[cfg(feature = "interop")]
mod interop;
mod snapshot;
mod stage;
#[path = "../common/uml.rs"]
mod uml;

#[test]
fn bridge() {
    compare("bridge-");
}

#[test]
fn vlans() {
    uml::with_vlans("vlans", None, || compare("vlan-"));
}

#[test]
fn host_local() {
    compare("host-local-");
}

#[test]
fn flannel() {
    compare("flannel-");
}

#[test]
fn portmap() {
    compare("portmap-");
}

#[test]
fn bandwidth() {
    compare("bandwidth-");
}

#[test]
fn firewall() {
    compare("firewall-");
}

#[test]
fn tuning() {
    compare("tuning-");
}

#[test]
fn loopback() {
    compare("loopback-");
}

#[test]
fn chains() {
    compare("chain-");
}

#[test]
fn versions() {
    compare("version-");
}

#[test]
fn refusals() {
    compare("refusal-");
}

fn compare(prefix: &str) {
    let folder = tempfile::tempdir().unwrap();
    cases::compare(prefix, &stage::links(folder.path()));
}
