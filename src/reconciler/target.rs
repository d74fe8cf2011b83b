use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backends::Inputs;

/// The newest inputs. Nothing queues up: what was published and not yet looked
/// at is overwritten.
#[derive(Clone, Debug)]
pub struct Target(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    newest: Mutex<Newest>,
    /// Tells of each new revision.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Newest {
    revision: u64,
    inputs: Arc<Inputs>,
    /// When they were published.
    at: Instant,
}

impl Target {
    pub fn new(inputs: Inputs) -> Target {
        let newest = Newest { revision: 1, inputs: Arc::new(inputs), at: Instant::now() };
        Target(Arc::new(Shared { newest: Mutex::new(newest), changed: watch::Sender::new(1) }))
    }

    /// Publish changed inputs; the reconciler wakes if anything did change. The
    /// revision they have got.
    pub fn update(&self, change: impl FnOnce(&mut Inputs)) -> u64 {
        let mut newest = self.lock();
        let mut inputs = (*newest.inputs).clone();
        change(&mut inputs);
        if inputs != *newest.inputs {
            let revision = newest.revision + 1;
            *newest = Newest { revision, inputs: Arc::new(inputs), at: Instant::now() };
            self.0.changed.send_replace(revision);
        }
        newest.revision
    }

    /// The revision and the inputs.
    pub fn get(&self) -> (u64, Arc<Inputs>) {
        let newest = self.lock();
        (newest.revision, Arc::clone(&newest.inputs))
    }

    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// When the newest inputs were published.
    pub(super) fn changed_at(&self) -> Instant {
        self.lock().at
    }

    /// Changes whenever there are new inputs.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
