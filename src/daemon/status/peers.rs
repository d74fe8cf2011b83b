use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

use super::{PeerCount, PeerStatus};
use crate::backends::{Backend, Node, Peers, Rejected};
use crate::desired::Desired;
use crate::model::{LeaseAttrs, SubnetKey};
use crate::reconciler::{Inputs, Snapshot};

/// How all peers fared at one moment. It shares their leases with the lease table,
/// and what a peer lacks is worked out for those that are asked for.
#[derive(Debug)]
pub struct Survey {
    inputs: Arc<Inputs>,
    missing: Desired,
    backend: Arc<dyn Backend>,
    rejected: BTreeMap<SubnetKey, String>,
    /// One for each peer, by subnet.
    states: Vec<PeerState>,
}

/// Which peers to tell of.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    /// In a subnet, an address or the backend's name.
    pub find: String,
    pub skip: usize,
    /// All of them, by subnet, where it is not said; else so many, and those in
    /// trouble first.
    pub take: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerState {
    Missing,
    LeftOut,
    Whole,
}

impl Survey {
    pub fn new(seen: Snapshot, rejected: &[Rejected], backend: Arc<dyn Backend>) -> Survey {
        let Snapshot { inputs, missing } = seen;
        let mut reasons: BTreeMap<SubnetKey, String> = BTreeMap::new();
        for Rejected { key, reason } in rejected {
            let known = reasons.entry(*key).or_default();
            let and = if known.is_empty() { "" } else { "; " };
            known.push_str(and);
            known.push_str(reason);
        }
        let mut survey = Survey { inputs, missing, backend, rejected: reasons, states: Vec::new() };
        survey.states = survey.peers().iter().map(|(key, attrs)| survey.state(key, attrs)).collect();
        survey
    }

    pub fn node(&self) -> &Node {
        &self.inputs.node
    }

    /// Nothing is missing in the kernel.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    pub fn count(&self) -> PeerCount {
        let count = |of| self.states.iter().filter(|state| **state == of).count();
        PeerCount {
            total: self.states.len(),
            missing: count(PeerState::Missing),
            left_out: count(PeerState::LeftOut),
            ..PeerCount::default()
        }
    }

    pub fn map(&self) -> String {
        let letter = |state: &PeerState| match state {
            PeerState::Missing => 'm',
            PeerState::LeftOut => 'l',
            PeerState::Whole => 'o',
        };
        self.states.iter().map(letter).collect()
    }

    /// At most `take` of those that match, and how many do.
    pub fn page(&self, query: &Query, take: usize) -> (Vec<PeerStatus>, usize) {
        let wanted = query.find.trim().to_lowercase();
        let all = self.peers().iter().zip(&self.states);
        let mut hits: Vec<_> = all.filter(|((key, attrs), _)| matches(key, attrs, &wanted)).collect();
        // Stable: by subnet among those of one state.
        hits.sort_by_key(|(_, state)| **state as u8);
        let page = hits.iter().skip(query.skip).take(take);
        (page.map(|((key, attrs), _)| self.peer(key, attrs)).collect(), hits.len())
    }

    /// Some of all, by subnet.
    pub fn part(&self, range: Range<usize>) -> Vec<PeerStatus> {
        let part = self.peers().iter().skip(range.start).take(range.len());
        part.map(|(key, attrs)| self.peer(key, attrs)).collect()
    }

    fn peers(&self) -> &Peers {
        &self.inputs.peers
    }

    fn state(&self, key: &SubnetKey, attrs: &LeaseAttrs) -> PeerState {
        match self.rejected.contains_key(key) || self.is_foreign(attrs) {
            true => PeerState::LeftOut,
            false if self.missing.is_empty() || self.missing_of(key, attrs).is_empty() => PeerState::Whole,
            false => PeerState::Missing,
        }
    }

    fn peer(&self, key: &SubnetKey, attrs: &LeaseAttrs) -> PeerStatus {
        let foreign =
            || format!("its backend is {:?}, this node's {:?}", attrs.backend_type, self.backend.kind());
        let rejected = self.rejected.get(key).cloned();
        let rejected = rejected.or_else(|| self.is_foreign(attrs).then(foreign));
        PeerStatus {
            subnets: subnets(key),
            public_ips: attrs.public_ip.iter().map(|(_, ip)| ip.to_string()).collect(),
            backend: attrs.backend_type.to_string(),
            // Where it was left out for another peer's sake, its state is not wanted.
            missing: if rejected.is_some() { Vec::new() } else { self.missing_of(key, attrs).names() },
            rejected,
        }
    }

    fn missing_of(&self, key: &SubnetKey, attrs: &LeaseAttrs) -> Desired {
        let Inputs { node, identity, own, .. } = &*self.inputs;
        let alone = Peers::from([(*key, attrs.clone())]);
        self.backend.desired(node, identity, own, &alone).0.shared_with(&self.missing)
    }

    fn is_foreign(&self, attrs: &LeaseAttrs) -> bool {
        attrs.backend_type != self.backend.kind()
    }
}

pub(super) fn subnets(key: &SubnetKey) -> Vec<String> {
    key.nets().map(|(_, net)| net.to_string()).collect()
}

fn matches(key: &SubnetKey, attrs: &LeaseAttrs, wanted: &str) -> bool {
    wanted.is_empty()
        || key.nets().any(|(_, net)| net.to_string().contains(wanted))
        || attrs.public_ip.iter().any(|(_, ip)| ip.to_string().contains(wanted))
        || attrs.backend_type.to_string().to_lowercase().contains(wanted)
}
