use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::Reconciler;
use super::ops::{self, cuts_off, needs};
use crate::desired::Op;
use crate::model::IfName;

/// What became of one pass.
#[derive(Default)]
pub(super) struct Tally {
    /// Ops done, by name.
    pub(super) done: BTreeMap<&'static str, u64>,
    /// Those of them that put right what others had changed, by kind of object.
    pub(super) repairs: BTreeMap<&'static str, u64>,
    /// The first of each kind.
    pub(super) examples: BTreeMap<&'static str, String>,
    /// Links that changed themselves: they take along what stands on them.
    pub(super) shaken: BTreeSet<IfName>,
    /// When the first of what others fight over may be put right again.
    pub(super) withheld: Option<Instant>,
    /// Failed now, or failed before and not yet to be tried again.
    pub(super) pending: BTreeSet<String>,
    /// How many the kernel refused now.
    pub(super) errors: u64,
    /// Links that ops wait for.
    pub(super) waiting: BTreeSet<IfName>,
    /// The kernel's state changed meanwhile by another hand, or it was stopped.
    pub(super) disturbed: bool,
}

impl Tally {
    /// Whether it is time for `op`: its link is up, and it has not just failed.
    pub(super) fn admit<K, E>(&mut self, op: &Op, reconciler: &Reconciler<K, E>) -> bool {
        let is_up = |dev: IfName| reconciler.view.have.links.get(&dev).is_some_and(|link| link.up);
        if let Some(dev) = needs(op, reconciler.wanted.desired()).filter(|dev| !is_up(*dev)) {
            self.waiting.insert(dev);
            return false;
        }
        // Where a family is switched off, or a link's MTU is too small for it, its
        // files do not exist and there is nothing to set.
        if matches!(op, Op::SetSysctl { key, .. } if !reconciler.view.have.sysctls.contains_key(key)) {
            return false;
        }
        if cuts_off(op) && !reconciler.wanted.inputs().whole {
            return false;
        }
        self.is_at_peace(op, reconciler) && self.has_not_failed(op, reconciler)
    }

    /// Whether nobody fights over its object, or it is our turn.
    fn is_at_peace<K, E>(&mut self, op: &Op, reconciler: &Reconciler<K, E>) -> bool {
        if reconciler.fights.is_empty() {
            return true;
        }
        let due = reconciler.fights.due(&ops::object(op)).filter(|due| *due > Instant::now());
        self.withheld = self.withheld.into_iter().chain(due).min();
        due.is_none()
    }

    fn has_not_failed<K, E>(&mut self, op: &Op, reconciler: &Reconciler<K, E>) -> bool {
        if reconciler.failures.is_empty() {
            return true;
        }
        let key = op.to_string();
        let due = reconciler.failures.is_due(&key, Instant::now());
        if !due {
            self.pending.insert(key);
        }
        due
    }
}
