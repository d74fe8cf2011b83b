//! weft: an overlay network fabric.
//!
//! Leases come in from a store, a pure function turns them into the kernel
//! state this node should have, one reconciler makes the kernel so, and a
//! plugin hands the node's subnet out to containers. `ARCHITECTURE.md` tells
//! the whole way.
//!
//! The modules without a feature gate are pure: no clock, no randomness, no
//! I/O. Building with `--no-default-features` proves it.

pub mod backends;
pub mod desired;
pub mod firewall;
pub mod model;
pub mod shared_map;
pub mod subnet;

#[cfg(feature = "netlink")]
pub mod kernel;

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod reconciler;
