//! Composition: config, lease, reconciler, readiness, drain.

pub mod config;
pub mod uplink;
pub mod admin { pub const SOCKET: &str = "/run/weft/admin.sock"; }
