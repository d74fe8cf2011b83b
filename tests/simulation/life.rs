//! A process: it runs, stands still for a while, or is over.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use tokio::time::Instant;

use super::verdict::{Invariant, Verdict};

/// So often at one moment a daemon may turn to its kernel, and its loops may be
/// woken: more than thousands of peers that come at once give reason for.
const MOST_STEPS: u32 = 20_000;

/// A life of the daemon, and what ends it in the midst of its work.
#[derive(Clone)]
pub struct Life {
    alive: Arc<AtomicBool>,
    /// So many more ops are done; negative: no end is set.
    ops_left: Arc<AtomicI64>,
    /// While it stands still: who is to be woken then.
    still: Arc<Mutex<Option<Vec<Waker>>>>,
    /// How many at this moment.
    steps: Arc<Mutex<(Instant, u32)>>,
    verdict: Verdict,
}

impl Life {
    pub fn new(verdict: Verdict) -> Life {
        Life {
            alive: Arc::new(AtomicBool::new(true)),
            ops_left: Arc::new(AtomicI64::new(-1)),
            still: Arc::default(),
            steps: Arc::new(Mutex::new((Instant::now(), 0))),
            verdict,
        }
    }

    /// Before whatever a daemon could do without end while no time passes: who does
    /// is ended, or the schedule would never be.
    pub fn step(&self) {
        let now = Instant::now();
        let count = {
            let (at, count) = &mut *self.steps.lock().unwrap();
            if *at != now {
                (*at, *count) = (now, 0);
            }
            *count += 1;
            *count
        };
        if count > MOST_STEPS {
            let what = || format!("a daemon took {count} steps at one moment");
            self.verdict.violated(Invariant::Rests, what);
            panic!("it does not rest");
        }
    }

    pub fn end(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    pub fn end_after(&self, ops: i64) {
        self.ops_left.store(ops, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        !self.alive.load(Ordering::Relaxed)
    }

    /// Whether one more op is done.
    pub fn spend(&self) -> bool {
        match self.ops_left.load(Ordering::Relaxed) {
            0 => self.end(),
            left if left > 0 => self.ops_left.store(left - 1, Ordering::Relaxed),
            _ => {}
        }
        !self.is_over()
    }

    /// As `SIGSTOP` does, a machine that is moved, or one that sleeps: nothing in
    /// it gets on, and time does.
    pub fn stop(&self) {
        self.still.lock().unwrap().get_or_insert_default();
    }

    pub fn go_on(&self) {
        let wakers = self.still.lock().unwrap().take();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    pub fn stands_still(&self) -> bool {
        self.still.lock().unwrap().is_some()
    }

    /// `task` as a part of this life.
    pub async fn lead<F: Future>(self, task: F) -> F::Output {
        let mut task = pin!(task);
        poll_fn(|context| {
            if let Some(wakers) = &mut *self.still.lock().unwrap() {
                wakers.push(context.waker().clone());
                return Poll::Pending;
            }
            self.step();
            task.as_mut().poll(context)
        })
        .await
    }
}
