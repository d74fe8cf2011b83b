//! The first thing that went wrong in a schedule, and what led to it.

use std::fmt;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// No node writes over or deletes another's record.
    OneOwner,
    /// Of the nodes that reach the store no two believe in one subnet.
    OneBeliever,
    ForeignUntouched,
    /// Whose lease stands as it was taken stays reachable, whatever others write.
    NoPeerLost,
    BoundedMemory,
    /// Some time after the last fault all is as the store's records say.
    Settles,
    /// What has settled is left alone, and stays so.
    StaysQuiet,
    /// Nothing is done over and over while no time passes.
    Rests,
    /// No loop of the daemon ends, none panics.
    Lives,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub of: Invariant,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.of, self.what)
    }
}

#[derive(Clone)]
pub struct Verdict(Arc<Mutex<Inner>>);

struct Inner {
    begin: Instant,
    violation: Option<Violation>,
    /// What happened, where it is to be shown.
    story: Option<Vec<String>>,
    /// Of all that happened, in its order.
    fingerprint: u64,
}

impl Verdict {
    pub fn new(tell: bool) -> Verdict {
        let story = tell.then(Vec::new);
        Verdict(Arc::new(Mutex::new(Inner { begin: Instant::now(), violation: None, story, fingerprint: 0 })))
    }

    pub fn violated(&self, of: Invariant, what: impl FnOnce() -> String) {
        let mut inner = self.0.lock().unwrap();
        if inner.violation.is_none() {
            let at = inner.begin.elapsed().as_secs_f64();
            let violation = Violation { of, what: format!("{at:.3} s: {}", what()) };
            inner.tell(|| format!("VIOLATION of {violation}"));
            inner.violation = Some(violation);
        }
    }

    pub fn violation(&self) -> Option<Violation> {
        self.0.lock().unwrap().violation.clone()
    }

    /// Note what happens: `number` sums it up where nobody reads it.
    pub fn note(&self, number: u64, what: impl FnOnce() -> String) {
        let mut inner = self.0.lock().unwrap();
        let now = inner.begin.elapsed().as_millis() as u64;
        for part in [now, number] {
            inner.fingerprint = (inner.fingerprint.rotate_left(5) ^ part).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        inner.tell(what);
    }

    pub fn fingerprint(&self) -> u64 {
        self.0.lock().unwrap().fingerprint
    }
}

impl Inner {
    fn tell(&mut self, what: impl FnOnce() -> String) {
        let at = self.begin.elapsed().as_secs_f64();
        if self.story.is_some() {
            eprintln!("{at:9.3} {}", what());
        }
    }
}
