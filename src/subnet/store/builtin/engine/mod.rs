//! One thread owns the file and does everything in turn, so every answer is
//! linearizable. Requests that wait together share one SQLite transaction and
//! one fsync; none is answered before that transaction is on disk.

mod lease;
mod mvcc;
mod range;
mod sqlite;
mod txn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use etcd_client::proto::{PbEvent, PbResponseHeader};
use tokio::sync::{broadcast, oneshot};
use tonic::Status;

use super::error::{BuiltinError, RequestError, storage_status};
pub(super) use mvcc::{Identity, Mvcc, Replay};
pub(super) use range::KeyRange;
pub(super) use txn::check_txn;

/// So many requests share a transaction at most.
const BATCH: usize = 512;
/// So many commits a watcher may lag before it reads the log instead.
const BROADCAST: usize = 64;
/// Commits with more bytes than this are read from the log by every watcher,
/// which bounds the broadcast to 1 MiB.
const BROADCAST_BYTES: usize = 16 << 10;

/// What one commit changed.
#[derive(Debug)]
pub(super) struct Commit {
    pub revision: i64,
    /// In order, whole revisions; `None` where they are to be read from the log.
    pub events: Option<Vec<PbEvent>>,
}

type Answer = Box<dyn FnOnce(Option<&Status>) + Send>;

type Job = Box<dyn FnOnce(&mut Mvcc) -> Result<Answer, rusqlite::Error> + Send>;

enum Message {
    Job(Job),
    Stop,
}

/// A handle on the thread that owns the file.
#[derive(Clone)]
pub(super) struct Engine {
    messages: Sender<Message>,
    commits: broadcast::Sender<Arc<Commit>>,
    revision: Arc<AtomicI64>,
    pub identity: Identity,
    pub path: PathBuf,
}

impl Engine {
    /// Opens the file and starts its thread. The caller holds the lock, and
    /// joins the thread before it lets go of it.
    pub fn start(path: &Path) -> Result<(Self, JoinHandle<()>), BuiltinError> {
        let connection = sqlite::open(path)?;
        let mvcc =
            Mvcc::load(connection).map_err(|cause| BuiltinError::Sqlite { path: path.into(), cause })?;
        let (messages, inbox) = mpsc::channel();
        let engine = Self {
            messages,
            commits: broadcast::Sender::new(BROADCAST),
            revision: Arc::new(AtomicI64::new(mvcc.revision())),
            identity: mvcc.identity,
            path: path.into(),
        };
        let (commits, revision) = (engine.commits.clone(), Arc::clone(&engine.revision));
        let thread = std::thread::Builder::new()
            .name("weft-store".into())
            .stack_size(512 << 10)
            .spawn(move || Worker { mvcc, inbox, commits, revision }.run())
            .map_err(BuiltinError::Thread)?;
        Ok((engine, thread))
    }

    /// Runs `job` on the engine's thread; answers when its effects are durable.
    pub async fn call<T, F>(&self, job: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&mut Mvcc) -> Result<T, RequestError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job = move |mvcc: &mut Mvcc| -> Result<Answer, rusqlite::Error> {
            let result = match job(mvcc) {
                Err(RequestError::Storage(cause)) => {
                    // Whoever asked may be gone already; nothing is lost then.
                    let _ = sender.send(Err(storage_status(&cause)));
                    return Err(cause);
                }
                other => other.map_err(Status::from),
            };
            Ok(Box::new(move |failure| {
                let _ = sender.send(failure.map_or(result, |failure| Err(failure.clone())));
            }))
        };
        if self.messages.send(Message::Job(Box::new(job))).is_err() {
            return Err(RequestError::Stopped.into());
        }
        receiver.await.unwrap_or_else(|_| Err(RequestError::Stopped.into()))
    }

    /// The newest durable revision. Subscribe first, then ask: a commit is
    /// counted here before it is broadcast.
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::SeqCst)
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.commits.subscribe()
    }

    pub fn header(&self, revision: i64) -> PbResponseHeader {
        self.identity.header(revision)
    }

    /// Ends the thread after what is queued; later calls get `server stopped`.
    pub fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
    }
}

struct Worker {
    mvcc: Mvcc,
    inbox: Receiver<Message>,
    commits: broadcast::Sender<Arc<Commit>>,
    revision: Arc<AtomicI64>,
}

impl Worker {
    fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let first = match self.mvcc.leases.next_deadline() {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            let mut answers = Vec::new();
            let first = first.ok().into_iter();
            let outcome = self.mvcc.begin().and_then(|()| {
                let inbox = &self.inbox;
                for message in first.chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
                    match message {
                        Message::Job(job) => answers.push(job(&mut self.mvcc)?),
                        Message::Stop => stopping = true,
                    }
                    if stopping || answers.len() == BATCH {
                        break;
                    }
                }
                self.mvcc.expire(Instant::now())?;
                self.mvcc.commit()
            });
            match outcome {
                Ok(events) => {
                    self.publish(events);
                    answers.into_iter().for_each(|answer| answer(None));
                }
                Err(cause) => self.give_up_batch(&cause, answers),
            }
        }
    }

    fn publish(&self, events: Vec<PbEvent>) {
        if events.is_empty() {
            return;
        }
        let revision = self.mvcc.revision();
        let size: usize = events.iter().map(prost::Message::encoded_len).sum();
        let events = (size <= BROADCAST_BYTES).then_some(events);
        self.revision.store(revision, Ordering::SeqCst);
        // An error says that nobody watches.
        let _ = self.commits.send(Arc::new(Commit { revision, events }));
    }

    /// Nothing of the batch was written: everyone who waits for it is told.
    fn give_up_batch(&mut self, cause: &rusqlite::Error, answers: Vec<Answer>) {
        tracing::error!("store: a transaction failed and was rolled back: {cause}");
        if let Err(cause) = self.mvcc.roll_back() {
            tracing::error!("store: cannot read the file back: {cause}");
        }
        let status = storage_status(cause);
        answers.into_iter().for_each(|answer| answer(Some(&status)));
    }
}
