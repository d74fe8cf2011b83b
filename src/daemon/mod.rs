//! Composition: a node joins the fabric, then a handful of loops keep it there
//! until a signal comes. Forwarding stays in place when they end.

pub mod admin;
pub mod config;
mod join;
mod leases;
mod seed;
pub mod status;
pub mod uplink;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::config::{DaemonArgs, StoreChoice};
use self::join::{Joined, patiently};
use self::leases::Leases;
use self::status::StatusSource;
use crate::kernel::host;
use crate::model::SubnetEnv;
use crate::subnet::env_file;
use crate::subnet::store::Store;
use crate::subnet::store::builtin::{self, Keeper};
use crate::subnet::store::etcd::EtcdStore;

/// How long the loops may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT. Called as flanneld, flannel's
/// defaults hold.
pub async fn run(args: DaemonArgs, as_flanneld: bool) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut tasks = Tasks::new(stop.clone())?;
    let started = tokio::select! {
        started = start(&args, as_flanneld, &mut tasks) => started,
        () = stop.cancelled() => Ok(()),
    };
    if let Err(error) = started {
        stop.cancel();
        tasks.drain().await;
        return Err(error);
    }
    tasks.run().await
}

async fn start(args: &DaemonArgs, as_flanneld: bool, tasks: &mut Tasks) -> anyhow::Result<()> {
    let store = open_store(args, as_flanneld, tasks).await?;
    info!(version = env!("CARGO_PKG_VERSION"), store = store.describe(), "weft");
    let joined = join::join(args, &*store).await?;
    write_subnet_env(args, &joined)?;
    Ok(())
}
