//! Writes down what the node knows, for a start while the store is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::health;
use super::leases::Leases;
use crate::subnet::checkpoint::{self, Boot, Checkpoint, CheckpointError};

/// Between two writes: a lone change is written at once, and those of a crowd
/// together.
const REST: Duration = Duration::from_secs(1);
/// Writing takes one part in so many of the time, however many leases there are.
const SHARE: u32 = 100;

/// Until `stop`, and then once more where something is not written yet.
pub async fn keep(
    path: PathBuf,
    config: Box<str>,
    leases: Arc<Leases>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut failing = false;
    loop {
        let stopped = tokio::select! {
            biased;
            () = health::idle(leases.changed()) => false,
            () = stop.cancelled() => true,
        };
        if stopped {
            return Ok(());
        }
        let begun = Instant::now();
        let written = tokio::task::block_in_place(|| write(&path, &config, &leases));
        if let Err(error) = &written
            && !failing
        {
            warn!("{error}: a restart while the store is away will not heal what breaks");
        }
        failing = written.is_err();
        let rest = REST.max(SHARE * begun.elapsed());
        tokio::select! {
            () = health::idle(sleep(rest)) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// What there is to write down.
#[derive(Clone, Debug)]
pub enum Known {
    /// The store has not told of all leases: what was known before is as good.
    NotYet,
    /// Our subnet is another's by now.
    NoMore,
    Now(Box<Checkpoint>),
}

impl Known {
    pub fn of(leases: &Leases, config: &str) -> Known {
        if leases.lost().is_some() {
            return Known::NoMore;
        }
        let (mut own, peers) = {
            let table = leases.table();
            if !table.is_listed() {
                return Known::NotYet;
            }
            (table.own().clone(), table.peers().clone())
        };
        own.ttl = own.ttl.and(leases.store.facts().expires_in());
        Known::Now(Box::new(Checkpoint { config: config.into(), own, peers }))
    }
}

fn write(path: &Path, config: &str, leases: &Leases) -> Result<(), CheckpointError> {
    let checkpoint = match Known::of(leases, config) {
        Known::NotYet => return Ok(()),
        Known::NoMore => return checkpoint::remove(path),
        Known::Now(checkpoint) => checkpoint,
    };
    let boot = Boot::now().map_err(|cause| CheckpointError::Io { path: path.into(), cause })?;
    checkpoint::write(path, &checkpoint, &boot)
}
