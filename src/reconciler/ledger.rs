use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::fights::{self, Fights, Healing};
use crate::kernel::rivals;

/// The repairs of a loop beside the reconciler: counted, and where the same is
/// undone again and again, named and made ever less often.
#[derive(Debug)]
pub struct Ledger {
    kind: &'static str,
    healing: watch::Sender<Healing>,
    fights: Fights,
}

impl Ledger {
    /// Of repairs of this kind of object.
    pub fn new(kind: &'static str) -> Ledger {
        Ledger { kind, healing: watch::Sender::default(), fights: Fights::default() }
    }

    pub fn healing(&self) -> watch::Receiver<Healing> {
        self.healing.subscribe()
    }

    /// These were put right after another hand.
    pub fn repaired(&mut self, objects: &[String]) {
        let Some(first) = objects.first() else { return };
        let now = Instant::now();
        for object in objects {
            if self.fights.repaired(object.clone(), now) {
                let suspects = rivals::running();
                warn!("{}", fights::warning(object, &suspects));
                self.fights.suspect(object, suspects);
            }
        }
        self.healing.send_modify(|healing| {
            healing.count(self.kind, first, objects.len() as u64);
            healing.fights = self.fights.list();
        });
    }

    /// When all may be put right again: an instant that may have passed.
    pub fn due(&self) -> Option<Instant> {
        self.fights.all_due()
    }

    /// Forget what has been at peace for long.
    pub fn forget_quiet(&mut self) {
        for object in self.fights.forget_quiet(Instant::now()) {
            info!("{object}: nobody undoes it any more");
        }
        let fights = self.fights.list();
        self.healing.send_if_modified(|healing| {
            let changed = healing.fights != fights;
            healing.fights = fights;
            changed
        });
    }
}
