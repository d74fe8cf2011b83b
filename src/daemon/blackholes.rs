//! Keeps the blackhole routes, as the kernel tells of routes that drop packets.

use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::health;
use crate::kernel::netlink::{Connection, NetlinkError};
use crate::kernel::{Events, Monitor, News, blackhole};
use crate::model::SubnetKey;
use crate::reconciler::{Healing, Ledger};

/// A look costs a walk over all routes: what comes together is looked at once.
const SETTLE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Blackholes {
    /// Those that have one.
    subnets: Vec<IpNetwork>,
    /// `None` where the kernel does not tell; then they are looked at.
    events: Option<Monitor>,
    audit: Duration,
    repairs: Ledger,
}

impl Blackholes {
    /// Puts them in place for this node's subnet, or takes away what an earlier run
    /// left of them; what cannot be done now is tried again by `run`.
    pub fn start(wanted: bool, own: &SubnetKey, audit: Duration) -> Blackholes {
        let subnets = if wanted { own.nets().map(|(_, net)| net).collect() } else { Vec::new() };
        // Before the first look, so that no change is missed.
        let events = Monitor::of_blackholes().inspect_err(|error| warn!("{error}: looking now and then"));
        let blackholes =
            Blackholes { subnets, events: events.ok(), audit, repairs: Ledger::new("blackhole") };
        if let Err(error) = blackholes.ensure() {
            warn!("{error}");
        }
        blackholes
    }

    pub fn healing(&self) -> watch::Receiver<Healing> {
        self.repairs.healing()
    }

    /// Puts back what others remove, for ever.
    pub async fn run(mut self) {
        if self.subnets.is_empty() {
            return health::idle(std::future::pending()).await;
        }
        loop {
            health::beat();
            self.repairs.forget_quiet();
            let told = async {
                match &mut self.events {
                    Some(events) => events.ready().await,
                    None => std::future::pending().await,
                }
            };
            if let Ok(Err(error)) = health::idle(timeout(self.audit, told)).await {
                warn!("{error}: looking every {} s", self.audit.as_secs());
                self.events = None;
            }
            sleep(SETTLE).await;
            if let Some(events) = &mut self.events {
                // All that was told is in the look that follows.
                while events.next(News::OfLinks).is_some() {}
            }
            match self.ensure() {
                Ok(changed) => self.repairs.repaired(&changed),
                Err(error) => warn!("{error}"),
            }
            if let Some(due) = self.repairs.due() {
                sleep_until(due).await;
            }
        }
    }

    /// What had to be changed.
    fn ensure(&self) -> Result<Vec<String>, NetlinkError> {
        let changed = blackhole::ensure(&mut Connection::open()?, &self.subnets)?;
        if !changed.is_empty() {
            info!("set right: {}", changed.join(", "));
        }
        Ok(changed)
    }
}
