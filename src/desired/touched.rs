use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Desired;
use crate::model::{IfName, Mac};

/// Keys of the entries that some peers ask for, or asked for before they
/// changed: where a plan for them has to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub neighbours: BTreeSet<(IfName, IpAddr)>,
    pub fdb: BTreeSet<(IfName, Mac)>,
    pub routes: BTreeSet<IpNetwork>,
}

impl Touched {
    pub fn extend(&mut self, other: Touched) {
        self.neighbours.extend(other.neighbours);
        self.fdb.extend(other.fdb);
        self.routes.extend(other.routes);
    }

    fn take_in(&mut self, share: &Desired) {
        self.neighbours.extend(share.neighbours.keys());
        self.fdb.extend(share.fdb.keys());
        self.routes.extend(share.routes.keys());
    }
}

impl Desired {
    /// Some peers' share of this state, `before`, becomes `after`; where that
    /// was or is.
    pub fn replace(&mut self, before: &Desired, after: Desired) -> Touched {
        let mut touched = Touched::default();
        touched.take_in(before);
        touched.take_in(&after);
        for key in before.neighbours.keys() {
            self.neighbours.remove(key);
        }
        for key in before.fdb.keys() {
            self.fdb.remove(key);
        }
        for key in before.routes.keys() {
            self.routes.remove(key);
        }
        // Not `append`, which walks over the larger map, too.
        self.neighbours.extend(after.neighbours);
        self.fdb.extend(after.fdb);
        self.routes.extend(after.routes);
        touched
    }
}
