use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backends::Inputs;

/// The newest inputs. Nothing queues up: what was published and not yet looked
/// at is overwritten.
#[derive(Clone, Debug)]
pub struct Target(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    newest: Mutex<Newest>,
    changed: Notify,
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
        Target(Arc::new(Shared { newest: Mutex::new(newest), changed: Notify::new() }))
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
            self.0.changed.notify_one();
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

    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
