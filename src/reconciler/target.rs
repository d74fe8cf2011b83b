use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::backends::{Identity, Node, Peers};
use crate::model::SubnetKey;

/// What the backend computes the desired state from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    pub node: Node,
    pub identity: Identity,
    pub own: SubnetKey,
    /// A whole listing, never a part: who is not in it is removed.
    pub peers: Peers,
}

/// The newest inputs. Nothing queues up: what was published and not yet looked
/// at is overwritten.
#[derive(Clone, Debug)]
pub struct Target(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    newest: Mutex<(u64, Arc<Inputs>)>,
    changed: Notify,
}

impl Target {
    pub fn new(inputs: Inputs) -> Target {
        Target(Arc::new(Shared { newest: Mutex::new((1, Arc::new(inputs))), changed: Notify::new() }))
    }

    /// Publish changed inputs; the reconciler wakes if anything did change. The
    /// revision they have got.
    pub fn update(&self, change: impl FnOnce(&mut Inputs)) -> u64 {
        let mut newest = self.lock();
        let mut inputs = (*newest.1).clone();
        change(&mut inputs);
        if inputs != *newest.1 {
            *newest = (newest.0 + 1, Arc::new(inputs));
            self.0.changed.notify_one();
        }
        newest.0
    }

    /// The revision and the inputs.
    pub fn get(&self) -> (u64, Arc<Inputs>) {
        self.lock().clone()
    }

    pub fn revision(&self) -> u64 {
        self.lock().0
    }

    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Arc<Inputs>)> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
