use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{Durations, Healing, Inputs};
use crate::backends::Rejected;
use crate::desired::Desired;
use crate::kernel::netlink::NetlinkError;

/// How the reconciler fares; published after each pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The kernel has all that is wanted, as far as is known.
    pub synced: bool,
    /// The revision of the target that the last pass was for.
    pub revision: u64,
    pub passes: u64,
    /// When the last pass ended.
    pub last: Option<Instant>,
    /// How long passes took.
    pub took: Durations,
    /// From a change of the leases, or of this node, to a kernel that has it.
    pub converged: Durations,
    /// How often the kernel's state was read.
    pub looks: u64,
    /// Ops done, by kind (`set_route`, …).
    pub ops: BTreeMap<&'static str, u64>,
    /// Those among them that set right what others had changed, and what is
    /// undone again and again.
    pub healing: Healing,
    /// Ops that the kernel refused.
    pub errors: u64,
    /// Peers left out.
    pub rejected: Vec<Rejected>,
    /// What failed or is waited for; each names its object and the way out.
    pub failed: Vec<String>,
}

/// What the kernel lacks of what is wanted: next to nothing, as a rule, however
/// many peers there are.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub inputs: Arc<Inputs>,
    pub missing: Desired,
}

/// Somebody wants to know.
#[derive(Debug)]
pub(super) struct Request {
    /// By a look at the kernel, and not by what is known of it.
    pub afresh: bool,
    pub reply: oneshot::Sender<Result<Snapshot, NetlinkError>>,
}

/// A running reconciler, from outside.
#[derive(Clone, Debug)]
pub struct Handle {
    state: watch::Receiver<State>,
    requests: mpsc::Sender<Request>,
}

impl Handle {
    pub(super) fn new(state: watch::Receiver<State>, requests: mpsc::Sender<Request>) -> Handle {
        Handle { state, requests }
    }

    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// By a fresh look at the kernel; `None` where the reconciler has stopped.
    pub async fn observe(&self) -> Option<Result<Snapshot, NetlinkError>> {
        self.ask(true).await
    }

    /// By what is known of the kernel, which notifications keep up.
    pub async fn recall(&self) -> Option<Result<Snapshot, NetlinkError>> {
        self.ask(false).await
    }

    async fn ask(&self, afresh: bool) -> Option<Result<Snapshot, NetlinkError>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { afresh, reply }).await.ok()?;
        answer.await.ok()
    }
}
