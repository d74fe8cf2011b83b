//! A kernel in memory, for tests of the reconciler: state as `Observed::record`
//! says ops change it, faults on demand, echoes of every change.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::netlink::{Cause, NetlinkError};
use super::{Events, Glance, Kernel, KernelEvent, Scope};
use crate::desired::{Observed, Op};

/// A handle on the fake kernel: the same one for the reconciler, as `Kernel`
/// and `Events`, and for the test.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    inner: Arc<Mutex<Inner>>,
    told: Arc<Notify>,
}

/// What a fault does to an op: `Some` errno makes it fail.
pub type Fault = Box<dyn FnMut(&Op) -> Option<i32> + Send>;

#[derive(Default)]
struct Inner {
    state: Observed,
    fault: Option<Fault>,
    events: VecDeque<KernelEvent>,
    tried: Vec<Op>,
    observed: usize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Fake {
    pub fn new(state: Observed) -> Fake {
        let fake = Fake::default();
        fake.lock().state = state;
        fake
    }

    pub fn state(&self) -> Observed {
        self.lock().state.clone()
    }

    /// Change the state by another's hand, and tell `events` of it.
    pub fn disturb(&self, change: impl FnOnce(&mut Observed), events: impl IntoIterator<Item = KernelEvent>) {
        let mut inner = self.lock();
        change(&mut inner.state);
        inner.events.extend(events);
        self.told.notify_one();
    }

    /// Ops for which `fault` gives an error number fail with it.
    pub fn fail(&self, fault: impl FnMut(&Op) -> Option<i32> + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// The ops tried since the last call, failed ones too.
    pub fn take_tried(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().tried)
    }

    /// How often the state has been read.
    pub fn observed(&self) -> usize {
        self.lock().observed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for Fake {
    fn observe(&mut self, _scope: &Scope) -> Result<Observed, NetlinkError> {
        let mut inner = self.lock();
        inner.observed += 1;
        Ok(inner.state.clone())
    }

    fn glance(&mut self, _scope: &Scope) -> Result<Option<Glance>, NetlinkError> {
        let sysctls = self.lock().state.sysctls.clone();
        Ok(Some(Glance { sysctls, ..Glance::default() }))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>> {
        let mut inner = self.lock();
        ops.iter().map(|op| inner.apply(op)).collect()
    }
}

impl Inner {
    fn apply(&mut self, op: &Op) -> Result<(), NetlinkError> {
        self.tried.push(op.clone());
        if let Some(errno) = self.fault.as_mut().and_then(|fault| fault(op)) {
            return Err(Cause::Errno { errno, message: String::new() }.of(op));
        }
        self.state.record(op);
        // The kernel numbers what it makes.
        let next = self.state.links.values().map(|link| link.index).max().unwrap_or(0) + 1;
        if let Op::AddLink { name, .. } = op
            && let Some(link) = self.state.links.get_mut(name)
        {
            link.index = next;
        }
        Ok(())
    }
}

impl Events for Fake {
    async fn ready(&mut self) -> Result<(), NetlinkError> {
        while self.lock().events.is_empty() {
            self.told.notified().await;
        }
        Ok(())
    }

    fn drain(&mut self) -> Vec<KernelEvent> {
        self.lock().events.drain(..).collect()
    }
}
