//! What a node that comes has to know: from the store, for which it waits with a
//! message, or from its own checkpoint.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::backends::{self, Backend};
use crate::daemon::config::DaemonArgs;
use crate::daemon::health;
use crate::model::{ConfigError, Lease, NetworkConfig, SubnetKey};
use crate::subnet::checkpoint::{self, Boot, Checkpoint};
use crate::subnet::store::{Store, StoreError};
use crate::subnet::{Held, Snapshot, StoredLease};

/// A node that knows its fabric does not wait longer for the store.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries to reach what is away, give or take half.
const RETRY: Duration = Duration::from_secs(1);
/// Between two messages about the same wait.
const REMIND: Duration = Duration::from_secs(60);

/// What the store tells a node that comes.
pub(super) struct Told {
    pub network: NetworkConfig,
    pub backend: Arc<dyn Backend>,
    pub listing: Snapshot,
}

/// What a store has not told, and why.
pub(super) struct Wanting {
    pub what: &'static str,
    pub cause: String,
}

pub(super) async fn told_at_last(args: &DaemonArgs, store: &dyn Store) -> Told {
    let (network, backend) = network_config(args, store).await;
    health::waiting_for("leases");
    let listing = patiently("leases", || store.snapshot()).await;
    Told { network, backend, listing }
}

/// The same, where the store tells it now.
pub(super) async fn told(args: &DaemonArgs, store: &dyn Store) -> Result<Told, Wanting> {
    let config = tokio::time::timeout(PATIENCE, try_network_config(args, store)).await;
    let silent = |_| Wanting { what: "the store", cause: format!("no answer in {PATIENCE:?}") };
    let (network, backend) = config.map_err(silent)??;
    let listing = store.snapshot().await;
    let listing = listing.map_err(|error| Wanting { what: "the store", cause: error.to_string() })?;
    Ok(Told { network, backend, listing })
}

/// The cluster's config. One that is not there, or not right, is waited for.
pub async fn network_config(args: &DaemonArgs, store: &dyn Store) -> (NetworkConfig, Arc<dyn Backend>) {
    let mut reminder = Reminder::default();
    loop {
        health::beat();
        match try_network_config(args, store).await {
            Ok(told) => return told,
            Err(Wanting { what, cause }) => reminder.wait(what, &cause).await,
        }
    }
}

async fn try_network_config(
    args: &DaemonArgs,
    store: &dyn Store,
) -> Result<(NetworkConfig, Arc<dyn Backend>), Wanting> {
    let json = store.network_config().await;
    let json = json.map_err(|error| Wanting { what: "the store", cause: error.to_string() })?;
    let wanting = |cause: String| Wanting { what: "a network config", cause };
    let json = json.ok_or_else(|| wanting(format!("{} has none yet", store.describe())))?;
    let parsed = parse(args, &json);
    let (config, backend) = parsed.map_err(|error| wanting(format!("{}: {error}", store.describe())))?;
    Ok((config, backend.into()))
}

/// What this node knew last, where `subnet.env` speaks of the same subnet, and the
/// lease that it had.
pub(super) fn known(args: &DaemonArgs, previous: Option<SubnetKey>) -> Option<(Told, Held)> {
    let path = checkpoint::path(&args.subnet_file);
    let read = Boot::now().map_err(|error| error.to_string());
    let read = read.and_then(|boot| checkpoint::read(&path, &boot).map_err(|error| error.to_string()));
    let checkpoint = read.inspect_err(|error| warn!("{error}: starting without it")).ok()??;
    let (network, backend) = parse(args, &checkpoint.config).ok()?;
    let (listing, own) = recalled(checkpoint, previous)?;
    Some((Told { network, backend: backend.into(), listing }, own))
}

pub(super) fn recalled(checkpoint: Checkpoint, previous: Option<SubnetKey>) -> Option<(Snapshot, Held)> {
    let Checkpoint { own, peers, .. } = checkpoint;
    if Some(own.stored.lease.key) != previous {
        return None;
    }
    let peers = peers.iter().map(|(key, attrs)| Lease { key: *key, attrs: attrs.clone() });
    let peers = peers.map(|lease| StoredLease { lease, lease_id: None, mod_revision: 0 });
    let leases = std::iter::once(own.stored.clone()).chain(peers).collect();
    Some((Snapshot { leases, ..Snapshot::default() }, own))
}

/// With the backend it names: a config that asks for what we have not is as
/// wrong as one that does not parse.
pub fn parse(args: &DaemonArgs, json: &str) -> Result<(NetworkConfig, Box<dyn Backend>), ConfigError> {
    let config = NetworkConfig::parse(json)?;
    let backend = backends::from_config(&config, args.tx_checksum_off)?;
    Ok((config, backend))
}

/// Tries until it is done. A store that refuses is waited for like one that is
/// away: a person may put it right while we run.
pub async fn patiently<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut reminder = Reminder::default();
    loop {
        health::beat();
        match attempt().await {
            Ok(done) => return done,
            Err(error @ StoreError::Exhausted(_)) => reminder.wait(what, &error).await,
            Err(error) => reminder.wait("the store", &error).await,
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
