//! Keeps strangers' encapsulated packets out: the set of addresses follows the
//! leases.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::health;
use crate::backends::Backend;
use crate::firewall::guard::{TABLE, addresses};
use crate::kernel::firewall::{GuardKeeper, Subject, Watch, guard_stands, remove_guard};
use crate::kernel::host;
use crate::reconciler::{Healing, Ledger, Target};

const UP: &str = "guard: only leased peers may send into the fabric";
/// Between two writes: what changes meanwhile goes in one.
const REST: Duration = Duration::from_millis(20);
/// Between two tries of what fails, and after another hand was at it: one that
/// writes without end costs little.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardMode {
    /// Where the backend encapsulates and nft is installed.
    Auto,
    /// The same, and the node is in trouble where nft is not there.
    On,
    Off,
}

/// How the guard stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardState {
    /// Addresses that may send; `None` where everyone may.
    pub admitted: Option<usize>,
    /// Packets dropped, as of the last look.
    pub dropped: u64,
    /// Why it is not as asked for.
    pub trouble: Option<String>,
}

#[derive(Debug)]
pub struct Guard {
    keeper: GuardKeeper,
    kind: &'static str,
    target: Target,
    /// Of the target.
    changes: watch::Receiver<u64>,
    watch: Option<Watch>,
    audit: Duration,
    repairs: Ledger,
    state: watch::Sender<GuardState>,
}

/// Puts the guard up, or takes away what an earlier run left of one: to be done
/// before there is a tunnel. The state, and the guard to `run`, if there is one.
///
/// Where no tunnel stands nothing is lost by rules that admit nobody at first, and
/// the addresses come with the first of `run`, while the tunnel is made.
pub async fn start(
    mode: GuardMode,
    backend: &Arc<dyn Backend>,
    target: &Target,
    audit: Duration,
) -> (watch::Receiver<GuardState>, Option<Guard>) {
    let (state, mut told) = watch::channel(GuardState::default());
    let tunnel = backend.encapsulation().filter(|_| mode != GuardMode::Off);
    let Some(keeper) = tunnel.and_then(GuardKeeper::new) else {
        if tunnel.is_some() {
            let why = "guard: nft is not installed: whoever reaches this host may send into the fabric: install nftables, or say --guard=off";
            warn!("{why}");
            state.send_modify(|state| state.trouble = (mode == GuardMode::On).then(|| why.to_owned()));
        }
        take_down().await;
        return (told, None);
    };
    // Before the first look, so that no change is missed.
    let watch = Watch::open(Subject::tables(&[TABLE.1]))
        .inspect_err(|error| warn!("{error}: looking at the guard now and then"));
    let (changes, target, kind) = (target.subscribe(), target.clone(), backend.kind());
    let (watch, repairs) = (watch.ok(), Ledger::new("guard"));
    let mut guard = Guard { keeper, kind, target, changes, watch, audit, repairs, state };
    // In doubt nothing may be lost.
    match backend.devices().iter().any(|(_, device)| host::has_link(*device).unwrap_or(true)) {
        true => drop(guard.admit(UP).await),
        false => guard.raise().await,
    }
    told.mark_unchanged();
    (told, Some(guard))
}

impl Guard {
    pub fn healing(&self) -> watch::Receiver<Healing> {
        self.repairs.healing()
    }

    /// Follows the leases, for ever. The state changes when they are admitted that
    /// are known now.
    pub async fn run(mut self) {
        self.admit(UP).await;
        let mut look = Instant::now() + self.audit;
        loop {
            health::beat();
            self.repairs.forget_quiet();
            let disturbed = async {
                match &mut self.watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let (doubt, done) = tokio::select! {
                biased;
                _ = self.changes.changed() => (false, ""),
                told = disturbed => {
                    if let Err(error) = told {
                        warn!("{error}: looking at the guard every {} s", self.audit.as_secs());
                        self.watch = None;
                    }
                    (true, "guard: others changed it, and it is put back")
                }
                () = tokio::time::sleep_until(look) => (true, "guard: others changed it, and it is put back"),
                () = tokio::time::sleep(health::BEAT) => continue,
            };
            if doubt {
                self.keeper.doubt();
            }
            let wrote_or_failed = self.admit(done).await;
            look = Instant::now() + self.audit;
            if doubt && wrote_or_failed && self.state.borrow().trouble.is_none() {
                self.repairs.repaired(&[format!("table {} {}", TABLE.0, TABLE.1)]);
            }
            let again = doubt && wrote_or_failed || self.state.borrow().trouble.is_some();
            tokio::time::sleep(if again { PAUSE } else { REST }).await;
        }
    }

    async fn raise(&mut self) {
        let trouble = match self.keeper.raise().await {
            Ok(()) => "guard: it admits nobody yet".to_owned(),
            Err(error) => format!("guard: {error}"),
        };
        self.state.send_replace(GuardState { trouble: Some(trouble), ..GuardState::default() });
    }

    /// Whether anything had to be done, or failed.
    async fn admit(&mut self, done: &str) -> bool {
        let (_, inputs) = self.target.get();
        let wanted: BTreeSet<IpAddr> = addresses(&inputs.peers, self.kind);
        let peers = wanted.len();
        let admitted = self.keeper.admit(wanted, inputs.whole).await;
        // What is told now is of our own write; of others' at that very moment the
        // audit knows.
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
        let trouble = admitted.as_ref().err().map(|error| format!("guard: {error}"));
        match (&admitted, &trouble) {
            (Ok(true), _) if !done.is_empty() => info!(peers, "{done}"),
            (_, Some(new)) if self.state.borrow().trouble.as_ref() != Some(new) => {
                error!("{new}: trying again");
                self.keeper.doubt();
            }
            _ => {}
        }
        let state = GuardState {
            admitted: trouble.is_none().then_some(peers),
            dropped: self.keeper.dropped(),
            trouble,
        };
        self.state.send_replace(state);
        !matches!(admitted, Ok(false))
    }
}

async fn take_down() {
    let removed = match guard_stands().await {
        Ok(true) => remove_guard().await,
        Ok(false) => return,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        warn!("guard of an earlier run: {error}");
    }
}
