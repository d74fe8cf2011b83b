//! Which store, opened: for the daemon, which serves the built-in one where
//! nobody else does, and for commands, which are its clients alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use etcd_client::{Channel, Client};

use super::config::{DaemonArgs, EtcdArgs, StoreChoice};
use super::join::patiently;
use super::{Tasks, seed};
use crate::kernel::host;
use crate::subnet::store::builtin::{self, Keeper};
use crate::subnet::store::{EtcdStore, Store};

/// Seconds that a lease lives without renewal, in place of 24 hours. For tests.
const LEASE_TTL: &str = "WEFT_LEASE_TTL";

/// The daemon's store. The built-in one is served from here where nobody else
/// serves it, and gets a network config where it has none.
pub(super) async fn open(
    args: &DaemonArgs,
    as_flanneld: bool,
    tasks: &mut Tasks,
) -> anyhow::Result<Arc<dyn Store>> {
    if let StoreChoice::Etcd(config) = args.store(as_flanneld)? {
        return Ok(Arc::new(with_ttl(EtcdStore::new(config)?)?));
    }
    let dir = &args.builtin.data_dir;
    let (channel, keeper) = Keeper::start(dir, tasks.stop.clone()).await?;
    tasks.spawn("built-in store", async {
        keeper.stopped().await;
        Ok(())
    });
    let prefix = args.etcd.prefix();
    let channel = Channel::Tonic(channel);
    let store = with_ttl(EtcdStore::from_channel(channel.clone(), &prefix, described(dir)))?;
    if patiently("the built-in store", || store.network_config()).await.is_none() {
        let config = seed::network_config(args, &host::read()?)?;
        let mut client = Client::from_channel(channel, None).await?;
        builtin::seed_config(&mut client, &prefix, &config).await?;
    }
    Ok(Arc::new(store))
}

/// The store that a daemon with these options uses, for a command: it serves
/// nothing itself.
pub fn client(etcd: &EtcdArgs, data_dir: &Path) -> anyhow::Result<EtcdStore> {
    if let StoreChoice::Etcd(config) = etcd.choice(false)? {
        return Ok(EtcdStore::new(config)?);
    }
    let socket = data_dir.join(builtin::SOCKET);
    if std::os::unix::net::UnixStream::connect(&socket).is_err() {
        bail!(
            "{}: nobody serves the built-in store there: start `weft daemon`, name its --data-dir, or name an etcd by --etcd-endpoints",
            socket.display()
        );
    }
    let channel = Channel::Tonic(builtin::connect(socket));
    Ok(EtcdStore::from_channel(channel, &etcd.prefix(), described(data_dir)))
}

fn described(dir: &Path) -> String {
    format!("built-in store {}", dir.display())
}

fn with_ttl(store: EtcdStore) -> anyhow::Result<EtcdStore> {
    let Some(text) = std::env::var_os(LEASE_TTL) else { return Ok(store) };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let seconds = seconds.with_context(|| format!("{LEASE_TTL}: {text:?}: expected a number of seconds"))?;
    Ok(store.with_lease_ttl(Duration::from_secs(seconds)))
}
