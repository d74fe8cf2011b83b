//! The plugin in real namespaces, called as a runtime calls it. Needs root.
#![allow(clippy::unwrap_used)] // clippy.toml's leave covers #[test] functions only, not their helpers

mod bandwidth;
mod crash;
mod firewall;
mod gc;
mod hostile;
mod integrated;
mod ipam;
mod kills;
mod loopback;
mod node;
mod portmap;
mod ports;
mod protocol;
mod removal;
mod sctp;
mod security;
mod tuning;
#[path = "../common/uml.rs"]
mod uml;
mod vlan;
mod wiring;
