//! How a node joins the fabric: store, network config, uplink, identity, lease.
//! Whatever is not there yet is waited for, with a message.

use std::fmt::Display;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::config::DaemonArgs;
use super::health;
use super::uplink::{self, Choice, Request};
use crate::backends::{self, Backend, Identity, Node};
use crate::kernel::host::{self, Host};
use crate::model::{ConfigError, Family, IfName, Mac, NetworkConfig, PerFamily, SubnetKey};
use crate::reconciler::{Inputs, Target};
use crate::subnet::store::{Store, StoreError};
use crate::subnet::{Held, Snapshot, StoredLease, Want, alloc, env_file};

/// Between two tries to reach what is away, give or take half.
const RETRY: Duration = Duration::from_secs(1);
/// Between two messages about the same wait.
const REMIND: Duration = Duration::from_secs(60);

/// A node that is part of the fabric.
#[derive(Debug)]
pub struct Joined {
    pub network: NetworkConfig,
    pub backend: Arc<dyn Backend>,
    pub node: Node,
    pub identity: Identity,
    pub held: Held,
    /// What was asked for, to ask for again.
    pub want: Want,
    /// The listing that the lease was chosen from: where the watch begins.
    pub snapshot: Snapshot,
}

impl Joined {
    /// What the reconciler begins with: the listing's leases without our own, so
    /// that a restart looks for no less than the kernel has.
    pub fn target(&self) -> Target {
        let own = self.held.stored.lease.key;
        let others = self.snapshot.leases.iter().filter(|stored| stored.lease.key != own);
        Target::new(Inputs {
            node: self.node.clone(),
            identity: self.identity.clone(),
            own,
            peers: others.map(|stored| (stored.lease.key, stored.lease.attrs.clone())).collect(),
        })
    }
}

pub async fn join(args: &DaemonArgs, store: &dyn Store) -> anyhow::Result<Joined> {
    let (network, backend) = network_config(args, store).await?;
    health::waiting_for("an uplink");
    let host = host::read()?;
    let Choice { node, because } = choose_uplink(args, &host, &network, None)?;
    info!(uplink = %node.uplink, mtu = node.uplink_mtu, address = %listed(&node.address), public = %listed(&node.public_ip), "{because}");
    backend.check(&node)?;
    lease(store, network, backend, &host, node, previous_subnet(args)).await
}

/// A subnet for `node` of `host`, and who it is among the others. `previous` is
/// what `subnet.env` remembers.
pub async fn lease(
    store: &dyn Store,
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    host: &Host,
    node: Node,
    previous: Option<SubnetKey>,
) -> anyhow::Result<Joined> {
    health::waiting_for("a lease");
    let snapshot = patiently("leases", || store.snapshot()).await?;
    let identity = identity(&*backend, host, &node, &snapshot);
    let want =
        Want { config: network.clone(), attrs: backend.attrs(&node, &identity), previous, no_other: false };
    let snapshot = match left_behind(&*backend, host, &node, &snapshot, previous) {
        Some(own) => {
            take_along(store, own, &want).await?;
            patiently("leases", || store.snapshot()).await?
        }
        None => snapshot,
    };
    let held = patiently("a lease", || store.acquire(&snapshot, &want)).await?;
    info!(subnet = %held.stored.lease.key, backend = backend.kind(), "this node's subnet");
    Ok(Joined { network, backend, node, identity, held, want, snapshot })
}

/// Our own lease under an address that this host had before: it is the subnet
/// that we remember, and publishes the MAC of the tunnel that still stands here.
fn left_behind<'a>(
    backend: &dyn Backend,
    host: &Host,
    node: &Node,
    snapshot: &'a Snapshot,
    previous: Option<SubnetKey>,
) -> Option<&'a StoredLease> {
    if snapshot.leases.iter().any(|s| alloc::is_own(&node.public_ip, &s.lease.attrs.public_ip)) {
        return None;
    }
    let stored = snapshot.leases.iter().find(|stored| Some(stored.lease.key) == previous)?;
    let published = backend.published_identity(&stored.lease.attrs).mac;
    let here = backend.devices().map(|_, device| mac_of(host, device)).flatten();
    (!published.is_empty() && published == here).then_some(stored)
}

async fn take_along(store: &dyn Store, own: &StoredLease, want: &Want) -> Result<(), StoreError> {
    let (before, now) = (listed(&own.lease.attrs.public_ip), listed(&want.attrs.public_ip));
    info!(subnet = %own.lease.key, "this host was {before} and is {now}: its lease goes along");
    let held = Held { stored: own.clone(), ttl: None };
    // Where it is ours no more, the next listing says so.
    patiently("our lease", || store.update(&held, &want.attrs)).await.map(drop)
}

fn mac_of(host: &Host, device: IfName) -> Option<Mac> {
    host.links.iter().find(|link| link.name == device).and_then(|link| link.mac)
}

/// Tries until it is done or refused for good.
pub async fn patiently<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut reminder = Reminder::default();
    loop {
        health::beat();
        match attempt().await {
            Err(error @ StoreError::Unavailable { .. }) => reminder.wait("the store", &error).await,
            Err(error @ StoreError::Exhausted(_)) => reminder.wait(what, &error).await,
            done => return done,
        }
    }
}

/// Says what is waited for at once and when the cause changes, then once a minute.
#[derive(Default)]
struct Reminder {
    said: Option<(Instant, String)>,
}

impl Reminder {
    async fn wait(&mut self, what: &str, cause: &(dyn Display + Sync)) {
        let text = format!("{what}: {cause}");
        health::waiting_for(&text);
        if self.said.as_ref().is_none_or(|(at, said)| at.elapsed() >= REMIND || *said != text) {
            warn!("waiting for {text}");
            self.said = Some((Instant::now(), text));
        }
        // Nodes that lost one store do not come back to it all at once.
        tokio::time::sleep(RETRY.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// The cluster's config. One that is not there, or not right, is waited for: a
/// person may put it right while we run.
async fn network_config(
    args: &DaemonArgs,
    store: &dyn Store,
) -> anyhow::Result<(NetworkConfig, Arc<dyn Backend>)> {
    let mut reminder = Reminder::default();
    loop {
        let cause = match patiently("the network config", || store.network_config()).await? {
            None => format!("{} has none yet", store.describe()),
            Some(json) => match parse(args, &json) {
                Ok((config, backend)) => return Ok((config, backend.into())),
                Err(error) => format!("{}: {error}", store.describe()),
            },
        };
        reminder.wait("a network config", &cause).await;
    }
}

/// With the backend it names: a config that asks for what we have not is as
/// wrong as one that does not parse.
pub fn parse(args: &DaemonArgs, json: &str) -> Result<(NetworkConfig, Box<dyn Backend>), ConfigError> {
    let config = NetworkConfig::parse(json)?;
    let backend = backends::from_config(&config, args.tx_checksum_off)?;
    Ok((config, backend))
}

/// What the options and the network config ask for, put to this host as it is.
pub fn choose_uplink(
    args: &DaemonArgs,
    host: &Host,
    network: &NetworkConfig,
    current: Option<&Node>,
) -> anyhow::Result<Choice> {
    let can_reach = match args.iface_can_reach {
        Some(target) => Some((target, host::reach(target)?)),
        None => None,
    };
    let request = Request {
        ifaces: args.iface.clone(),
        patterns: args.iface_regex.clone(),
        can_reach,
        public_ip: PerFamily { v4: args.public_ip.map(Into::into), v6: args.public_ipv6.map(Into::into) },
    };
    let families: Vec<Family> = network.pools.iter().map(|(family, _)| family).collect();
    Ok(uplink::choose(host, &request, &families, current)?)
}

/// `192.168.7.11, fd77::11`
pub fn listed(addresses: &PerFamily<IpAddr>) -> String {
    addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ")
}

/// Found once: in our stored lease, then on the existing device, then drawn at
/// random.
fn identity(backend: &dyn Backend, host: &Host, node: &Node, snapshot: &Snapshot) -> Identity {
    let stored = snapshot
        .leases
        .iter()
        .find(|stored| alloc::is_own(&node.public_ip, &stored.lease.attrs.public_ip))
        .map(|stored| backend.published_identity(&stored.lease.attrs))
        .unwrap_or_default();
    let mac = backend.devices().map(|family, device| {
        let known = stored.mac.get(family).copied().or_else(|| mac_of(host, device));
        known.unwrap_or_else(|| Mac::local(std::array::from_fn(|_| fastrand::u8(..))))
    });
    Identity { mac }
}

/// What `subnet.env` remembers. A broken one costs the memory, not the start.
fn previous_subnet(args: &DaemonArgs) -> Option<SubnetKey> {
    match env_file::read(&args.subnet_file) {
        Ok(env) => env.and_then(|env| env.subnet_key()),
        Err(error) => {
            warn!("{error}: starting without it");
            None
        }
    }
}
