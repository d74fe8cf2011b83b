use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Backend, Identity, Node, Peers, Rejected};
use crate::desired::{Desired, Touched};
use crate::model::{Family, LeaseAttrs, Mac, SubnetKey};

/// So many peers at a time are looked at by themselves; beyond that one pass over
/// all is quicker.
const FEW: usize = 64;

/// What a backend computes the desired state from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    pub node: Node,
    pub identity: Identity,
    pub own: SubnetKey,
    pub peers: Peers,
    /// Whether they are all there are: only then is what leads to others removed.
    /// What an earlier run knew may be out of date.
    pub whole: bool,
}

/// The desired state for inputs that change: always what `Backend::desired`
/// gives for them, but a change of a few peers costs those few.
#[derive(Debug)]
pub struct Wanted {
    backend: Arc<dyn Backend>,
    inputs: Arc<Inputs>,
    desired: Desired,
    /// By key.
    rejected: Vec<Rejected>,
}

impl Wanted {
    pub fn new(backend: Arc<dyn Backend>, inputs: Arc<Inputs>) -> Wanted {
        let mut wanted = Wanted { backend, inputs, desired: Desired::default(), rejected: Vec::new() };
        wanted.compute();
        wanted
    }

    pub fn inputs(&self) -> &Arc<Inputs> {
        &self.inputs
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The peers left out, by key.
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// Go by newer inputs. Where a few peers changed: which entries of the
    /// desired state that touched, all others being as they were.
    pub fn update(&mut self, inputs: Arc<Inputs>) -> Option<Touched> {
        let old = std::mem::replace(&mut self.inputs, inputs);
        let new = Arc::clone(&self.inputs);
        let same =
            (&old.node, &old.identity, old.own, old.whole) == (&new.node, &new.identity, new.own, new.whole);
        let few = same.then(|| self.concerned(&old.peers, &new.peers)).flatten();
        let Some(few) = few else {
            self.compute();
            return None;
        };
        let part =
            |peers: &Peers| few.iter().filter_map(|key| Some((*key, peers.get(key)?.clone()))).collect();
        let (before, _) = self.of(&part(&old.peers));
        let (after, rejected) = self.of(&part(&new.peers));
        self.rejected.retain(|rejected| !few.contains(&rejected.key));
        self.rejected.extend(rejected);
        self.rejected.sort_by_key(|rejected| rejected.key);
        Some(self.desired.replace(&before, after))
    }

    /// The peers that changed, and whoever is related to one of them, in turn:
    /// peers whose subnets overlap or who publish one identity compete for a place
    /// or share one; to all others they make no difference (`Backend::desired`).
    /// `None` where they are many.
    fn concerned(&self, old: &Peers, new: &Peers) -> Option<BTreeSet<SubnetKey>> {
        let backend = &*self.backend;
        let mut fresh: Vec<SubnetKey> = old.changes(new).take(FEW + 1).copied().collect();
        if let [key] = fresh[..]
            && old.get(&key).is_none()
            && new.get(&key).is_some_and(|attrs| self.has_no_relations(&key, attrs))
        {
            return Some(BTreeSet::from([key]));
        }
        let mut concerned = BTreeSet::new();
        while !fresh.is_empty() {
            concerned.extend(fresh.iter().copied());
            if concerned.len() > FEW {
                return None;
            }
            let versions = fresh.iter().flat_map(|key| [old.get(key), new.get(key)]).flatten();
            let published: Vec<_> = versions.flat_map(|attrs| identities(backend, attrs)).collect();
            let related = |key: &SubnetKey, attrs| {
                fresh.iter().any(|other| other.overlaps(key))
                    || identities(backend, attrs).any(|identity| published.contains(&identity))
            };
            // All who changed are among the concerned: the others are the same in both.
            let others = new.iter().filter(|(key, attrs)| related(key, attrs) && !concerned.contains(key));
            fresh = others.map(|(key, _)| *key).take(FEW + 1).collect();
        }
        Some(concerned)
    }

    /// Whether a newcomer is surely related to nobody, by a look at the state that
    /// the others make, however many they are.
    fn has_no_relations(&self, key: &SubnetKey, attrs: &LeaseAttrs) -> bool {
        let Desired { routes, fdb, .. } = &self.desired;
        let devices = self.backend.devices();
        let mut vteps = identities(&*self.backend, attrs)
            .filter_map(|(family, mac)| Some((*devices.get(family)?, mac)))
            .peekable();
        // As many as routes: each peer has one to itself, and none is reached without.
        let all_shown = vteps.peek().is_none() || fdb.len() == routes.len();
        self.rejected.is_empty()
            && all_shown
            && !vteps.any(|vtep| fdb.contains_key(&vtep))
            && !key.nets().any(|(_, net)| is_overlapped(routes, net))
    }

    fn compute(&mut self) {
        (self.desired, self.rejected) = self.of(&self.inputs.peers);
        self.rejected.sort_by_key(|rejected| rejected.key);
    }

    fn of(&self, peers: &Peers) -> (Desired, Vec<Rejected>) {
        let Inputs { node, identity, own, .. } = &*self.inputs;
        self.backend.desired(node, identity, own, peers)
    }
}

fn identities(backend: &dyn Backend, attrs: &LeaseAttrs) -> impl Iterator<Item = (Family, Mac)> {
    let macs = backend.published_identity(attrs).mac;
    Family::BOTH.into_iter().filter_map(move |family| Some((family, *macs.get(family)?)))
}

/// By a destination inside `net`, or by one around it.
fn is_overlapped<V>(routes: &BTreeMap<IpNetwork, V>, net: IpNetwork) -> bool {
    let longest = Family::of_net(net).bits();
    let prefix = |ip, length| IpNetwork::new(ip, length).ok();
    let (first, last) = (prefix(net.network(), 0), prefix(net.broadcast(), longest));
    let inside = first.zip(last).is_none_or(|(first, last)| routes.range(first..=last).next().is_some());
    let mut around =
        (0..net.prefix()).filter_map(|length| prefix(prefix(net.ip(), length)?.network(), length));
    inside || around.any(|outer| routes.contains_key(&outer))
}
