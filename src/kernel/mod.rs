//! What touches the kernel. The netlink transaction layer is synchronous and
//! shared with the CNI plugin; the rest is the daemon's: `Rtnl` reads and
//! writes, `Monitor` listens, `Fake` stands in for both in tests.

pub mod netlink;

#[cfg(feature = "daemon")]
pub mod blackhole;
#[cfg(feature = "daemon")]
mod entry;
#[cfg(feature = "daemon")]
pub mod fake;
#[cfg(feature = "daemon")]
mod filter;
#[cfg(feature = "daemon")]
pub mod firewall;
#[cfg(feature = "daemon")]
pub mod host;
#[cfg(feature = "daemon")]
pub mod inventory;
#[cfg(feature = "daemon")]
mod learn;
#[cfg(feature = "daemon")]
mod monitor;
#[cfg(feature = "daemon")]
pub mod nexthop;
#[cfg(feature = "daemon")]
mod offload;
#[cfg(feature = "daemon")]
mod request;
#[cfg(feature = "daemon")]
pub mod rivals;
#[cfg(feature = "daemon")]
mod rtnl;
#[cfg(feature = "daemon")]
mod sysctl;
#[cfg(feature = "daemon")]
mod view;

#[cfg(feature = "daemon")]
pub use entry::{Entry, Hop, LinkEntry, VxlanEntry};
#[cfg(feature = "daemon")]
pub use learn::{Effect, View};
#[cfg(feature = "daemon")]
pub use monitor::Monitor;
#[cfg(feature = "daemon")]
pub use rtnl::{Nexthops, Rtnl};
#[cfg(feature = "daemon")]
pub use view::{Events, Glance, Kernel, KernelEvent, News, Scope};
