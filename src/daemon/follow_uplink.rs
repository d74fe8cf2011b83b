//! The uplink is chosen at start; what becomes of it is followed. An address or
//! an MTU that changes goes to the kernel, to the store and to `subnet.env`
//! without a restart.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::config::DaemonArgs;
use super::health;
use super::join::{Joined, choose_uplink, listed};
use super::leases::Leases;
use super::write_subnet_env;
use crate::backends::{Backend, Identity, Node};
use crate::kernel::{Events, Monitor, News, host};
use crate::model::{Family, NetworkConfig, SubnetKey};
use crate::reconciler::Target;

/// A change seldom comes alone: an address goes before the next one comes.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks while there is nothing to use.
const RETRY: Duration = Duration::from_secs(1);
/// Another interface than before has to be chosen for so long: a default route
/// that is away for a moment moves nobody.
const MOVE: Duration = Duration::from_secs(3);

/// What follows the uplink.
#[derive(Debug)]
pub struct Uplink {
    args: DaemonArgs,
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    identity: Identity,
    own: SubnetKey,
    target: Target,
    leases: Arc<Leases>,
    trouble: watch::Sender<Option<String>>,
    /// Another interface that was chosen, and since when.
    moving: Option<(Node, Instant)>,
}

impl Uplink {
    /// Tells besides why what was last known is kept, while that is so.
    pub fn new(
        args: &DaemonArgs,
        joined: &Joined,
        target: Target,
        leases: Arc<Leases>,
    ) -> (Uplink, watch::Receiver<Option<String>>) {
        let (trouble, told) = watch::channel(None);
        let uplink = Uplink {
            args: args.clone(),
            network: joined.network.clone(),
            backend: joined.backend.clone(),
            identity: joined.identity.clone(),
            own: joined.held.stored.lease.key,
            target,
            leases,
            trouble,
            moving: None,
        };
        (uplink, told)
    }

    /// Looks whenever the kernel tells of a link, an address or a default route, and now and then.
    /// Fails only where it tells no more.
    pub async fn follow(mut self, mut events: Monitor) -> anyhow::Result<()> {
        loop {
            health::beat();
            let begun = Instant::now();
            let looked = tokio::task::block_in_place(|| self.look());
            self.report(looked);
            // Looking takes a small part of the time, whatever pods come and go.
            sleep(SETTLE.max(begun.elapsed() * 10)).await;

            let calm = self.trouble.borrow().is_none() && self.moving.is_none();
            let rest = if calm { self.args.audit_interval() } else { RETRY };
            if let Ok(ready) = timeout(rest, events.ready()).await {
                ready?;
                sleep(SETTLE).await;
            }
            // All that was told is in the look that follows.
            while events.next(News::OfLinks).is_some() {}
        }
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let current = self.target.get().1.node.clone();
        let choice = choose_uplink(&self.args, &host::read()?, &self.network, Some(&current))?;
        let node = choice.node;
        if node == current {
            self.moving = None;
            return Ok(());
        }
        if node.uplink != current.uplink && !self.is_settled(&node) {
            return Ok(());
        }
        refuse_link_local(&node, &current)?;
        self.backend.check(&node)?;
        self.adopt(node, &choice.because)
    }

    fn adopt(&mut self, node: Node, because: &str) -> anyhow::Result<()> {
        self.moving = None;
        // First what may fail: it is tried again as long as the rest is not done.
        write_subnet_env(&self.args, &self.network, &self.own, self.backend.mtu(&node))?;
        info!(
            uplink = %node.uplink, mtu = node.uplink_mtu,
            address = %listed(&node.address), public = %listed(&node.public_ip),
            "the uplink changed ({because}): following it"
        );
        self.leases.set_attrs(self.backend.attrs(&node, &self.identity));
        self.target.update(|inputs| inputs.node = node);
        Ok(())
    }

    /// Whether another interface has been the choice for a while.
    fn is_settled(&mut self, node: &Node) -> bool {
        match &self.moving {
            Some((before, since)) if before == node => since.elapsed() >= MOVE,
            _ => {
                self.moving = Some((node.clone(), Instant::now()));
                false
            }
        }
    }

    fn report(&mut self, looked: anyhow::Result<()>) {
        let Node { uplink, public_ip, .. } = &self.target.get().1.node;
        let keeping =
            |error| format!("{error:#}: keeping {uplink} and {} as they were last known", listed(public_ip));
        let trouble = looked.err().map(keeping);
        let before = self.trouble.send_replace(trouble.clone());
        match &trouble {
            Some(why) if before != trouble => warn!("{why}"),
            None if before.is_some() => info!("the uplink is usable again"),
            _ => {}
        }
    }
}

/// While a host is renumbered, its link-local address may be all it has.
fn refuse_link_local(node: &Node, current: &Node) -> anyhow::Result<()> {
    let is_link_local = |node: &Node, family| match node.address.get(family) {
        Some(std::net::IpAddr::V4(ip)) => ip.is_link_local(),
        Some(std::net::IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        None => false,
    };
    for family in Family::BOTH {
        if is_link_local(node, family) && !is_link_local(current, family) {
            bail!("{} has only a link-local {family} address left", node.uplink);
        }
    }
    Ok(())
}
