//! Hosts and containers as network namespaces, with a switch between them.
//!
//! ```no_run
//! # fn main() -> Result<(), netns_harness::Error> {
//! use std::time::Duration;
//! let lab = netns_harness::Lab::new("readme")?;
//! let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
//! assert_eq!(h1.ping(h2.ip4(), 3)?.lost(), 0);
//! lab.cut(&h2)?;
//! assert_eq!(h1.ping(h2.ip4(), 3)?.received, 0);
//! let mut sleeper = h1.spawn("sleeper", h1.command("sleep").arg("60"))?;
//! sleeper.pause()?; // the daemon is slow; resume() wakes it
//! sleeper.terminate(Duration::from_secs(1))?;
//! # Ok(()) }
//! ```
//!
//! Everything a lab makes carries its name, `weft-LABEL.PID`: namespaces
//! `weft-LABEL.PID.NODE` in `/run/netns` and the directory `/run/weft-LABEL.PID`.
//! Devices live inside the namespaces only, so nothing of the machine's own
//! network is touched and any number of labs stand side by side.
//!
//! A lab is removed when its last handle is dropped. Should its process die
//! without that, a guard process removes it within about two seconds; what even
//! the guard could not remove, [`Lab::sweep`] does.
//!
//! The kernel is driven by iproute2 (`ip -batch` where there is much to say),
//! so what a lab consists of can be read and repeated by hand.

mod cleanup;
mod daemon;
mod error;
mod lab;
mod measure;
mod netns;
mod tool;

pub use daemon::Daemon;
pub use error::Error;
pub use lab::{Host, HostOptions, Lab};
pub use measure::{Flood, PingReport, iperf3, wait_until};
pub use netns::Netns;
