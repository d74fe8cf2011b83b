//! Keeps one store alive per machine: every daemon runs a keeper, one of them
//! owns the file, all of them are its clients over a Unix socket, which knows no
//! network namespace.
//!
//! The others wait in `flock(2)`, each in a thread of its own, since only a
//! blocking wait is woken by the kernel the moment the owner dies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use super::dir::{DataDir, Lock};
use super::error::BuiltinError;
use super::serve::Owner;

/// How long a request waits for the next owner to listen, and how often it looks.
const TAKEOVER: Duration = Duration::from_secs(3);
const TAKEOVER_STEP: Duration = Duration::from_millis(5);
/// Pause of an owner that could not open the file, which lets others try.
const RETRY: Duration = Duration::from_secs(1);
/// Pause of an owner that was asked to hand over, which lets the asker in.
const STEP_BACK: Duration = Duration::from_millis(500);
/// So often, and so many times, owners are asked: another keeper may be next.
const ASK: Duration = Duration::from_millis(200);
const ASKS: usize = 50;

/// What this process does for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Another process serves; this one waits to take over.
    Client,
    /// This process serves.
    Owner,
    /// This process should serve and cannot, for this reason; it tries again.
    Failed(String),
}

/// The way to a machine's store, wherever it runs.
#[derive(Debug)]
pub struct Keeper;

/// A running keeper.
#[derive(Debug)]
pub struct KeeperHandle {
    role: watch::Receiver<Role>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Serves the store in `data_dir`, now if nobody else does, else as soon as
    /// its owner is gone. The channel leads to whoever serves and reconnects by
    /// itself; a request under way when an owner dies fails (`Unavailable`, `Cancelled`
    /// or `Unknown`) and is to be made again.
    ///
    /// # Errors
    /// Where this process became the owner and the store does not open.
    pub async fn start(
        data_dir: &Path,
        shutdown: CancellationToken,
    ) -> Result<(Channel, KeeperHandle), BuiltinError> {
        let dir = DataDir::prepare(data_dir)?;
        let owner = match dir.try_lock()? {
            Some(lock) => Some(Owner::open(dir.clone(), lock, &[], &[]).await?),
            None => None,
        };
        let channel = connect(dir.socket());
        let (sender, role) = watch::channel(if owner.is_some() { Role::Owner } else { Role::Client });
        let task = tokio::spawn(keep(dir, owner, sender, shutdown));
        Ok((channel, KeeperHandle { role, task }))
    }
}

impl KeeperHandle {
    /// The role now; the receiver tells of changes.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Returns when the store is closed and its lock let go of, after shutdown.
    pub async fn stopped(self) {
        // The task only fails by a panic, which has been reported.
        let _ = self.task.await;
    }
}

/// A channel over the Unix socket `path`. It connects when first used; while a
/// store hands over, requests wait for the next one a little.
pub fn connect(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { dial(&path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

async fn dial(path: &Path) -> std::io::Result<UnixStream> {
    let deadline = tokio::time::Instant::now() + TAKEOVER;
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(cause) if tokio::time::Instant::now() >= deadline => return Err(cause),
            Err(_) => tokio::time::sleep(TAKEOVER_STEP).await,
        }
    }
}

async fn keep(
    dir: DataDir,
    mut owner: Option<Owner>,
    role: watch::Sender<Role>,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let open = match owner.take() {
            Some(owner) => Ok(owner),
            None => {
                let lock = tokio::select! {
                    lock = wait_for_lock(dir.clone(), shutdown.clone()) => lock,
                    () = shutdown.cancelled() => return,
                };
                match lock {
                    Ok(Some(lock)) => Owner::open(dir.clone(), lock, &[], &[]).await,
                    Ok(None) => return,
                    Err(cause) => Err(cause),
                }
            }
        };
        let result = match open {
            Ok(owner) => {
                role.send_replace(Role::Owner);
                owner.run(shutdown.clone(), true).await
            }
            Err(cause) => Err(cause),
        };
        if result.is_ok() && !shutdown.is_cancelled() {
            tracing::info!("store: handed over to one that asked for it");
            role.send_replace(Role::Client);
            tokio::time::sleep(STEP_BACK).await;
        }
        if let Err(cause) = result {
            tracing::error!("store: {cause}; trying again");
            role.send_replace(Role::Failed(cause.to_string()));
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Gets the lock by asking whichever keeper holds it to hand over.
pub(super) async fn take_from_keepers(
    dir: &DataDir,
    shutdown: &CancellationToken,
) -> Result<Lock, BuiltinError> {
    let lock = wait_for_lock(dir.clone(), shutdown.clone());
    tokio::pin!(lock);
    for _ in 0..ASKS {
        let asked = tokio::select! {
            lock = &mut lock => return lock?.ok_or_else(|| dir.locked()),
            asked = ask_to_hand_over(dir) => asked,
        };
        if matches!(asked, Err(etcd_client::Error::GRpcStatus(status)) if status.code() == Code::Unimplemented)
        {
            return Err(dir.locked());
        }
        if let Ok(lock) = tokio::time::timeout(ASK, &mut lock).await {
            return lock?.ok_or_else(|| dir.locked());
        }
    }
    Err(dir.locked())
}

async fn ask_to_hand_over(dir: &DataDir) -> Result<(), etcd_client::Error> {
    let channel = etcd_client::Channel::Tonic(connect(dir.socket()));
    let mut client = etcd_client::Client::from_channel(channel, None).await?;
    client.move_leader(0).await.map(drop)
}

/// A thread that waits in the kernel cannot be called back: after `shutdown` it
/// lets go of the lock at once, should it get it, or ends with the process.
async fn wait_for_lock(dir: DataDir, shutdown: CancellationToken) -> Result<Option<Lock>, BuiltinError> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("weft-store-lock".into())
        .stack_size(64 << 10)
        .spawn(move || {
            let lock = dir.lock();
            if !shutdown.is_cancelled() {
                // Nobody waits any more where the keeper was dropped: so is the lock.
                let _ = sender.send(lock);
            }
        })
        .map_err(BuiltinError::Thread)?;
    receiver.await.ok().transpose()
}
