//! The only writer of kernel state.
//!
//! Level-triggered: whatever wakes it (peers, a kernel notification, a retry,
//! the audit), it compares what the kernel has with what this node should have
//! and applies the difference. What it knows of the kernel is kept up by
//! notifications and read afresh at the start, when notifications were lost,
//! when a link in scope changed, when the kernel answered as it should not
//! have, and at the audit. Stopping it leaves everything in place.
//!
//! Kernel calls are synchronous and short, a thousand ops at most; on a
//! multi-threaded runtime they run in `block_in_place`, so that they hold up
//! nobody, and a thread of its own with its queues is not needed.

mod durations;
mod failures;
mod fights;
mod ledger;
mod ops;
mod state;
mod tally;
mod target;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle as Runtime, RuntimeFlavor};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backends::{Backend, Wanted};
use crate::desired::{Op, Ownership, Touched, diff_at, diff_of_links, diff_on_links};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::{Effect, Events, Kernel, KernelEvent, News, Scope, View};

pub use durations::Durations;
use failures::Failures;
pub use fights::{Fight, Fights, Healing, Repair};
pub use ledger::Ledger;
use state::Request;
pub use state::{Handle, Snapshot, State};
use tally::Tally;
pub use target::Target;

pub use crate::backends::Inputs;

/// Ops applied at once: between two lots it listens, and sees that it is to stop.
const LOT: usize = 1000;
/// Notifications taken in at once, so that a flood does not keep us from work.
const MAX_EVENTS: usize = 8192;
/// Between two glances at the settings of which the kernel tells nothing.
const GLANCE: Duration = Duration::from_secs(5);
/// The longest rest between two passes; a pass rests as long as it took.
const MAX_REST: Duration = Duration::from_millis(20);
/// While another program undoes what passes do, a rest is no shorter …
const MIN_FIGHT_REST: Duration = Duration::from_millis(20);
/// … and may be as long as this.
const MAX_FIGHT_REST: Duration = Duration::from_millis(100);
/// So many of one kind are told in the log at a time.
const MAX_TOLD: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's state is read afresh this often though nothing was told.
    pub audit: Duration,
    /// A failed op is tried again after this, then after twice as long, …
    pub retry_min: Duration,
    /// … but at least this often.
    pub retry_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            audit: Duration::from_secs(60),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
        }
    }
}

#[derive(Debug)]
pub struct Reconciler<K, E> {
    kernel: K,
    events: E,
    own: Ownership,
    target: Target,
    /// Of the target.
    changes: watch::Receiver<u64>,
    settings: Settings,
    state: watch::Sender<State>,
    requests: mpsc::Receiver<Request>,

    wanted: Wanted,
    revision: u64,
    view: View,
    /// When `view` was read; `None` when it is to be read again.
    viewed: Option<Instant>,
    /// Where the kernel may differ from what is wanted; `None`: anywhere.
    differs: Option<Touched>,
    /// When the settings were read last.
    glanced: Instant,
    failures: Failures,
    fights: Fights,
    /// When to look again at what was left to another program for now.
    withheld: Option<Instant>,
    /// The revision of the target that the kernel has matched already.
    settled: Option<u64>,
    /// When the oldest change was published that the kernel does not have yet.
    behind: Option<Instant>,
}

impl<K: Kernel, E: Events> Reconciler<K, E> {
    pub fn new(
        kernel: K,
        events: E,
        backend: Arc<dyn Backend>,
        own: Ownership,
        target: Target,
        settings: Settings,
    ) -> (Reconciler<K, E>, Handle) {
        let (state, state_rx) = watch::channel(State::default());
        let (requests_tx, requests) = mpsc::channel(4);
        let (revision, inputs) = target.get();
        let mut reconciler = Reconciler {
            kernel,
            events,
            own,
            changes: target.subscribe(),
            target,
            settings,
            state,
            requests,
            wanted: Wanted::new(backend, inputs),
            revision,
            view: View::default(),
            viewed: None,
            differs: None,
            glanced: Instant::now(),
            failures: Failures::new(settings.retry_min, settings.retry_max),
            fights: Fights::default(),
            withheld: None,
            settled: None,
            behind: Some(Instant::now()),
        };
        reconciler.tell_rejected();
        (reconciler, Handle::new(state_rx, requests_tx))
    }

    /// Until `stop`; then what it has made stays in place. Fails only where the
    /// kernel's notifications cannot be received any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), NetlinkError> {
        loop {
            let begun = Instant::now();
            let more = self.pass(&stop).await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.rest(begun.elapsed())) => {}
            }
            if !more && !self.wait(&stop).await? {
                return Ok(());
            }
        }
    }

    /// How long to leave the machine to others after a pass.
    fn rest(&self, took: Duration) -> Duration {
        let least = self.withheld.map_or(Duration::ZERO, |_| MIN_FIGHT_REST);
        let most = self.fights.next_quiet().map_or(MAX_REST, |_| MAX_FIGHT_REST);
        took.clamp(least, most)
    }

    /// Wait for a reason to look again; `false` to stop.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<bool, NetlinkError> {
        loop {
            let audit = self.viewed.map(|viewed| viewed + self.settings.audit);
            let others =
                self.failures.next().into_iter().chain(self.withheld).chain(self.fights.next_quiet());
            let wake = audit.into_iter().chain(others).min().unwrap_or_else(Instant::now);
            let glance = self.glanced + GLANCE;
            // In one order, so that a simulation can be replayed; what may come
            // without end is last.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep_until(wake) => {
                    if Some(wake) == audit {
                        self.viewed = None;
                    }
                    return Ok(true);
                }
                () = tokio::time::sleep_until(glance) => {
                    if self.glance() > Effect::Nothing {
                        return Ok(true);
                    }
                }
                _ = self.changes.changed() => return Ok(true),
                Some(request) = self.requests.recv() => {
                    if self.answer(request) {
                        return Ok(true);
                    }
                }
                ready = self.events.ready() => {
                    ready?;
                    if self.listen() > Effect::Nothing {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Make the kernel so. `true` where it has to be looked at again at once.
    async fn pass(&mut self, stop: &CancellationToken) -> bool {
        let begun = Instant::now();
        self.listen();
        self.take_target();
        let tally = match self.converge(stop).await {
            Ok(tally) => tally,
            Err(error) => {
                self.failures.failed(error.object.clone(), &error, begun);
                Tally::default()
            }
        };
        self.withheld = tally.withheld;
        self.publish(&tally, begun.elapsed());
        !stop.is_cancelled() && (tally.disturbed || self.target.revision() != self.revision)
    }

    async fn converge(&mut self, stop: &CancellationToken) -> Result<Tally, NetlinkError> {
        let mut tally = Tally { shaken: self.view.take_shaken(), ..Tally::default() };
        let plan = match self.differs.take().filter(|_| self.viewed.is_some()) {
            Some(touched) => diff_at(&self.view.have, self.wanted.desired(), &self.own, &touched),
            None => {
                self.converge_links(&mut tally, stop).await?;
                self.look()?;
                // A link that could not be changed now is no reason to let the rest wait.
                diff_on_links(&self.view.have, self.wanted.desired(), &self.own)
            }
        };
        let mut ops = plan.ops;
        ops.retain(|op| tally.admit(op, self));
        self.apply(&ops, &mut tally, stop).await;
        self.failures.retain(&tally.pending);
        Ok(tally)
    }

    /// Links first: to read them takes microseconds, and the rest stands on them. How
    /// that is afterwards depends on how they came out, and the kernel numbers them.
    async fn converge_links(
        &mut self,
        tally: &mut Tally,
        stop: &CancellationToken,
    ) -> Result<(), NetlinkError> {
        if self.viewed.is_none() {
            let scope = self.scope();
            let links = blocking(|| self.kernel.links(&scope))?;
            self.view.renew_links(links);
        }
        let mut ops = diff_of_links(&self.view.have, self.wanted.desired()).ops;
        ops.retain(|op| tally.admit(op, self));
        if !ops.is_empty() {
            self.viewed = None;
            tally.shaken.extend(ops.iter().filter_map(ops::changed_link));
            let errors = tally.errors;
            self.apply(&ops, tally, stop).await;
            // What waits for a link that came out is tried at once; a link that did
            // not come out has its own pause.
            if tally.errors == errors {
                self.failures.hurry(Instant::now());
            }
        }
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op], tally: &mut Tally, stop: &CancellationToken) {
        for lot in ops.chunks(LOT) {
            if stop.is_cancelled() {
                tally.disturbed = true;
                return;
            }
            let results = blocking(|| self.kernel.apply(lot));
            let now = Instant::now();
            let mut done = Vec::with_capacity(lot.len());
            for (op, result) in lot.iter().zip(results) {
                match result {
                    Ok(()) => {
                        self.count_repair(op, tally, now);
                        done.push(op);
                    }
                    Err(error) => {
                        if is_surprising(&error) {
                            self.viewed = None;
                        }
                        let key = op.to_string();
                        self.failures.failed(key.clone(), &error, now);
                        tally.pending.insert(key);
                        tally.errors += 1;
                    }
                }
            }
            self.view.have.record_all(done.iter().copied());
            for op in done {
                *tally.done.entry(ops::name(op)).or_default() += 1;
            }
            let heard = self.listen();
            tally.disturbed |= heard > Effect::Nothing;
            // What the rest of the plan stands on may be gone.
            if heard == Effect::Stale {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Where all was in place, `op` puts right what another hand did.
    fn count_repair(&mut self, op: &Op, tally: &mut Tally, now: Instant) {
        if self.settled != Some(self.revision) {
            return;
        }
        let kind = ops::kind(op);
        *tally.repairs.entry(kind).or_default() += 1;
        tally.examples.entry(kind).or_insert_with(|| ops::object(op));
        // What a link takes along is not fought over: the link may be.
        if ops::stands_on(op).is_some_and(|dev| tally.shaken.contains(&dev)) {
            return;
        }
        let object = ops::object(op);
        if self.fights.repaired(object.clone(), now) {
            let suspects = self.kernel.rivals();
            warn!("{}", fights::warning(&object, &suspects));
            self.fights.suspect(&object, suspects);
        }
    }

    /// Read the kernel's state, unless what is known of it is still good.
    fn look(&mut self) -> Result<(), NetlinkError> {
        if self.viewed.is_some() {
            return Ok(());
        }
        self.listen();
        let scope = self.scope();
        let have = blocking(|| self.kernel.observe(&scope))?;
        self.view.renew(scope, have);
        self.viewed = Some(Instant::now());
        self.differs = None;
        self.state.send_modify(|state| state.looks += 1);
        Ok(())
    }

    /// Take in what the kernel has told.
    fn listen(&mut self) -> Effect {
        let (mut worst, mut settings) = (Effect::Nothing, false);
        for _ in 0..MAX_EVENTS {
            // What is older than the look that will follow is not worth hearing.
            let news = if self.viewed.is_some() { News::All } else { News::OfLinks };
            let Some(event) = self.events.next(news) else { break };
            let effect = self.view.learn(&event);
            match (&event, effect) {
                (KernelEvent::Resync(reason), _) => warn!("reading the kernel's state afresh: {reason}"),
                (_, Effect::Nothing) => {}
                _ => debug!(?event, ?effect, "the kernel tells"),
            }
            worst = worst.max(effect);
            settings |= event == KernelEvent::Setting;
            if effect == Effect::Stale {
                self.viewed = None;
            }
        }
        if settings {
            worst = worst.max(self.glance());
        }
        if worst > Effect::Nothing {
            self.differs = None;
        }
        worst
    }

    /// Read again what takes microseconds, where the rest is known.
    fn glance(&mut self) -> Effect {
        self.glanced = Instant::now();
        if self.viewed.is_none() {
            return Effect::Stale;
        }
        match self.kernel.glance(self.view.scope()) {
            Ok(Some(glance)) => {
                let effect = self.view.glanced(glance);
                if effect > Effect::Nothing {
                    self.differs = None;
                }
                effect
            }
            Ok(None) => Effect::Nothing,
            // The whole look tells of it.
            Err(_) => {
                self.viewed = None;
                Effect::Stale
            }
        }
    }

    fn take_target(&mut self) {
        let (revision, inputs) = self.target.get();
        if revision == self.revision {
            return;
        }
        self.behind = self.behind.or(Some(self.target.changed_at()));
        self.revision = revision;
        let scope = self.scope();
        let touched = self.wanted.update(inputs);
        self.tell_rejected();
        if self.scope() != scope {
            self.viewed = None;
        }
        match (&mut self.differs, touched) {
            (Some(differs), Some(touched)) => differs.extend(touched),
            (differs, _) => *differs = None,
        }
    }

    /// It goes by the uplink and the tunnels.
    fn scope(&self) -> Scope {
        Scope::new(self.wanted.desired(), &self.own, self.wanted.inputs().node.uplink)
    }

    /// Publish which peers are left out, and log those that were not before.
    fn tell_rejected(&mut self) {
        let rejected = self.wanted.rejected();
        self.state.send_if_modified(|state| {
            if state.rejected == rejected {
                return false;
            }
            let known: HashSet<_> = state.rejected.iter().collect();
            let new: Vec<_> = rejected.iter().filter(|rejected| !known.contains(rejected)).collect();
            for rejected in new.iter().take(MAX_TOLD) {
                warn!("peer left out: {rejected}");
            }
            if new.len() > MAX_TOLD {
                warn!("{} more peers are left out: see weft status", new.len() - MAX_TOLD);
            }
            state.rejected = rejected.to_vec();
            true
        });
    }

    /// Whether it took a look at the kernel, so that there may be something to do.
    fn answer(&mut self, request: Request) -> bool {
        if request.afresh {
            self.viewed = None;
        }
        let looks = self.viewed.is_none();
        let snapshot = self.look().map(|()| Snapshot {
            inputs: Arc::clone(self.wanted.inputs()),
            missing: self.wanted.desired().missing_from(&self.view.have),
        });
        // Who asked may be gone.
        let _ = request.reply.send(snapshot);
        looks
    }

    fn publish(&mut self, tally: &Tally, took: Duration) {
        let settled = !tally.disturbed && tally.waiting.is_empty() && self.failures.is_empty();
        if settled {
            self.settled = Some(self.revision);
        }
        let synced = settled && tally.withheld.is_none();
        self.differs = synced.then(Touched::default);
        let converged = self.behind.take_if(|_| settled).map(|since| since.elapsed());
        let repairs: u64 = tally.repairs.values().sum();
        if repairs > 0 {
            info!(repairs, "healed what others changed");
        }
        for object in self.fights.forget_quiet(Instant::now()) {
            info!("{object}: nobody undoes it any more");
        }
        let fights = self.fights.list();
        // Links of ours are missing for a reason that has its own message.
        let foreign = tally.waiting.iter().filter(|link| !self.wanted.desired().links.contains_key(link));
        let waiting = foreign.map(|link| format!("link {link}: missing or down: waiting for it"));
        let failed: Vec<_> = waiting.chain(self.failures.texts()).collect();
        self.state.send_modify(|state| {
            for text in
                failed.iter().filter(|_| failed.len() <= MAX_TOLD || state.failed.is_empty()).take(MAX_TOLD)
            {
                if !state.failed.contains(text) {
                    warn!("{text}");
                }
            }
            state.failed = failed;
            state.synced = synced;
            state.revision = self.revision;
            state.passes += 1;
            state.last = Some(Instant::now());
            state.took.add(took);
            if let Some(took) = converged {
                state.converged.add(took);
            }
            state.errors += tally.errors;
            state.healing.fights = fights;
            state.healing.remember(&tally.repairs, &tally.examples);
            for (kind, count) in &tally.done {
                *state.ops.entry(kind).or_default() += count;
            }
        });
    }
}

/// The kernel is not as it was thought to be.
fn is_surprising(error: &NetlinkError) -> bool {
    !matches!(
        error.errno(),
        Some(libc::EPERM | libc::EACCES | libc::EROFS | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC)
    )
}

fn blocking<T>(f: impl FnOnce() -> T) -> T {
    match Runtime::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(f),
        _ => f(),
    }
}
