use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use super::Entry;
use super::netlink::NetlinkError;
use crate::desired::{Desired, Observed, ObservedLink, Op, Ownership};
use crate::model::IfName;

/// The kernel as the reconciler sees it. Calls are synchronous and short: the
/// kernel does the work inside the system call.
pub trait Kernel: Send {
    /// The links in `scope` alone, read afresh in microseconds.
    fn links(&mut self, scope: &Scope) -> Result<BTreeMap<IfName, ObservedLink>, NetlinkError>;

    /// The state of what is in `scope`, read afresh.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, NetlinkError>;

    /// Do `ops` in their order; one result for each. A refused one does not
    /// keep the rest from being done. What is to be removed and is not there
    /// counts as done.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>>;

    /// The part of the state that the kernel tells of late or not at all, read
    /// afresh in microseconds; `None` where there is none.
    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, NetlinkError> {
        let _ = scope;
        Ok(None)
    }

    /// Programs that run beside us and are known to change what is not theirs,
    /// with what to do about each: a guess to show a person.
    fn rivals(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// What the kernel tells of its own accord.
pub trait Events: Send {
    /// Wait until there is a `next`.
    fn ready(&mut self) -> impl Future<Output = Result<(), NetlinkError>> + Send;

    /// The next of what has been told up to now, in the kernel's order. Of `News`
    /// that is not asked for it is passed over.
    fn next(&mut self, news: News) -> Option<KernelEvent>;
}

/// What is worth hearing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    All,
    /// Of links, and that notifications were lost: all else is older than the look
    /// that will follow.
    OfLinks,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// It is there, new or changed.
    Added(Entry),
    Removed(Entry),
    /// A setting was changed, of whatever link: a glance tells which.
    Setting,
    /// Notifications were lost, for this reason: look at everything again.
    Resync(String),
}

impl KernelEvent {
    pub(super) fn is_of_links(&self) -> bool {
        matches!(
            self,
            KernelEvent::Added(Entry::Link(_))
                | KernelEvent::Removed(Entry::Link(_))
                | KernelEvent::Resync(_)
        )
    }
}

/// Settings: the kernel announces a change of forwarding, but not of `accept_ra`,
/// and of offload no more than that something changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// By path below `/proc/sys`; a file that does not exist is left out.
    pub sysctls: BTreeMap<String, String>,
    /// Of the tunnels in scope that are there.
    pub tx_checksum: BTreeMap<IfName, bool>,
}

/// What of the kernel's state is looked at: as little as the diff needs, since
/// a node may have thousands of links and routes of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Links of ours, there or not.
    pub tunnels: BTreeSet<IfName>,
    /// The link below.
    pub uplink: Option<IfName>,
    /// Paths below `/proc/sys`.
    pub sysctls: BTreeSet<String>,
}

impl Scope {
    pub fn new(want: &Desired, own: &Ownership, uplink: IfName) -> Scope {
        Scope {
            tunnels: want.links.keys().chain(&own.links).copied().collect(),
            uplink: Some(uplink),
            sysctls: want.sysctls.keys().cloned().collect(),
        }
    }

    pub fn links(&self) -> impl Iterator<Item = IfName> {
        self.tunnels.iter().copied().chain(self.uplink)
    }
}
