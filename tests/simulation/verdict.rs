//! The first thing that went wrong in a schedule, and what led to it.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

#[derive(Clone)]
pub struct Verdict(Arc<Mutex<Inner>>);

struct Inner {
    begin: Instant,
    violation: Option<String>,
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

    pub fn violated(&self, what: impl FnOnce() -> String) {
        let mut inner = self.0.lock().unwrap();
        if inner.violation.is_none() {
            let at = inner.begin.elapsed().as_secs_f64();
            let what = format!("{at:.3} s: {}", what());
            inner.violation = Some(what.clone());
            inner.tell(|| format!("VIOLATION {what}"));
        }
    }

    pub fn violation(&self) -> Option<String> {
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
