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

mod failures;
mod state;
mod target;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle as Runtime, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backends::Backend;
use crate::desired::{Desired, LinkKind, Op, Ownership, diff};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::{Effect, Events, Kernel, KernelEvent, Scope, View};
use crate::model::IfName;

use failures::Failures;
pub use state::{Handle, Snapshot, State};
pub use target::{Inputs, Target};

/// Ops applied at once: between two lots it listens, and sees that it is to stop.
const LOT: usize = 1000;
/// The longest rest between two passes; a pass rests as long as it took.
const MAX_REST: Duration = Duration::from_millis(100);

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
    backend: Arc<dyn Backend>,
    own: Ownership,
    target: Target,
    settings: Settings,
    state: watch::Sender<State>,
    requests: mpsc::Receiver<oneshot::Sender<Result<Snapshot, NetlinkError>>>,

    inputs: Arc<Inputs>,
    revision: u64,
    want: Desired,
    view: View,
    /// When `view` was read; `None` when it is to be read again.
    viewed: Option<Instant>,
    failures: Failures,
    /// The revision of the target that the kernel has matched already.
    settled: Option<u64>,
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
            backend,
            own,
            target,
            settings,
            state,
            requests,
            inputs,
            revision,
            want: Desired::default(),
            view: View::default(),
            viewed: None,
            failures: Failures::new(settings.retry_min, settings.retry_max),
            settled: None,
        };
        reconciler.compute_want();
        (reconciler, Handle::new(state_rx, requests_tx))
    }

    /// Until `stop`; then what it has made stays in place. Fails only where the
    /// kernel's notifications cannot be received any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), NetlinkError> {
        loop {
            let begun = Instant::now();
            let more = self.pass(&stop).await;
            let rest = begun.elapsed().min(MAX_REST);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(rest) => {}
            }
            if !more && !self.wait(&stop).await? {
                return Ok(());
            }
        }
    }

    /// Wait for a reason to look again; `false` to stop.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<bool, NetlinkError> {
        loop {
            let audit = self.viewed.map(|viewed| viewed + self.settings.audit);
            let wake = audit.into_iter().chain(self.failures.next()).min().unwrap_or_else(Instant::now);
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
                () = self.target.changed() => return Ok(true),
                Some(reply) = self.requests.recv() => {
                    self.answer(reply);
                    return Ok(true);
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
        self.publish(&tally, begun.elapsed());
        !stop.is_cancelled() && (tally.disturbed || self.target.revision() != self.revision)
    }

    async fn converge(&mut self, stop: &CancellationToken) -> Result<Tally, NetlinkError> {
        let mut tally = Tally::default();
        self.look()?;
        let ops = diff(&self.view.have, &self.want, &self.own).ops;
        // Links first. Then look again: what stands on them depends on how they
        // came out, and the kernel numbers them.
        if let Some(last) = ops.iter().rposition(is_link_change) {
            let ops: Vec<_> = ops.into_iter().take(last + 1).filter(|op| tally.admit(op, self)).collect();
            if !ops.is_empty() {
                self.apply(&ops, &mut tally, stop).await;
                self.viewed = None;
                self.look()?;
                self.failures.hurry(Instant::now());
            }
        }
        let ops = diff(&self.view.have, &self.want, &self.own).ops;
        let ops: Vec<_> = ops.into_iter().filter(|op| !is_link_change(op) && tally.admit(op, self)).collect();
        self.apply(&ops, &mut tally, stop).await;
        self.failures.retain(&tally.pending);
        Ok(tally)
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
                    Ok(()) => done.push(op),
                    Err(error) => {
                        if is_surprising(&error) {
                            self.viewed = None;
                        }
                        let key = op.to_string();
                        self.failures.failed(key.clone(), &error, now);
                        tally.pending.insert(key);
                    }
                }
            }
            self.view.have.record_all(done.iter().copied());
            tally.done.extend(done.into_iter().map(kind));
            tally.disturbed |= self.listen() > Effect::Nothing;
            tokio::task::yield_now().await;
        }
    }

    /// Read the kernel's state, unless what is known of it is still good.
    fn look(&mut self) -> Result<(), NetlinkError> {
        if self.viewed.is_some() {
            return Ok(());
        }
        let scope = Scope::new(&self.want, &self.own, self.inputs.node.uplink);
        let have = blocking(|| self.kernel.observe(&scope))?;
        self.view.renew(scope, have);
        self.viewed = Some(Instant::now());
        self.state.send_modify(|state| state.looks += 1);
        Ok(())
    }

    /// Take in what the kernel has told.
    fn listen(&mut self) -> Effect {
        let mut worst = Effect::Nothing;
        for event in self.events.drain() {
            let effect = self.view.learn(&event);
            match (&event, effect) {
                (KernelEvent::Resync(reason), _) => warn!("reading the kernel's state afresh: {reason}"),
                (_, Effect::Nothing) => {}
                _ => debug!(?event, ?effect, "the kernel tells"),
            }
            worst = worst.max(effect);
        }
        if worst == Effect::Stale {
            self.viewed = None;
        }
        worst
    }

    fn take_target(&mut self) {
        let (revision, inputs) = self.target.get();
        if revision == self.revision {
            return;
        }
        // The scope goes by the uplink and the tunnels.
        let scope = (self.inputs.node.uplink, self.want.links.clone(), self.want.sysctls.clone());
        (self.revision, self.inputs) = (revision, inputs);
        self.compute_want();
        if scope != (self.inputs.node.uplink, self.want.links.clone(), self.want.sysctls.clone()) {
            self.viewed = None;
        }
    }

    fn compute_want(&mut self) {
        let Inputs { node, identity, own, peers } = &*self.inputs;
        let (want, rejected) = self.backend.desired(node, identity, own, peers);
        self.want = want;
        self.state.send_modify(|state| {
            for rejected in rejected.iter().filter(|rejected| !state.rejected.contains(rejected)) {
                warn!("peer left out: {rejected}");
            }
            state.rejected = rejected;
        });
    }

    fn answer(&mut self, reply: oneshot::Sender<Result<Snapshot, NetlinkError>>) {
        self.viewed = None;
        let snapshot = self.look().map(|()| Snapshot {
            inputs: Arc::clone(&self.inputs),
            observed: self.view.have.clone(),
            desired: self.want.clone(),
        });
        // Who asked may be gone.
        let _ = reply.send(snapshot);
    }

    fn publish(&mut self, tally: &Tally, took: Duration) {
        let synced = !tally.disturbed && tally.waiting.is_empty() && self.failures.is_empty();
        let repairs = if self.settled == Some(self.revision) { tally.done.len() as u64 } else { 0 };
        if repairs > 0 {
            info!(repairs, "healed what others changed");
        }
        if synced {
            self.settled = Some(self.revision);
        }
        // Links of ours are missing for a reason that has its own message.
        let foreign = tally.waiting.iter().filter(|link| !self.want.links.contains_key(link));
        let waiting = foreign.map(|link| format!("link {link}: missing or down: waiting for it"));
        let failed: Vec<_> = waiting.chain(self.failures.texts()).collect();
        self.state.send_modify(|state| {
            for text in failed.iter().filter(|_| failed.len() <= 10 || state.failed.is_empty()).take(10) {
                if !state.failed.contains(text) {
                    warn!("{text}");
                }
            }
            state.failed = failed;
            state.synced = synced;
            state.revision = self.revision;
            state.passes += 1;
            state.last = Some(std::time::SystemTime::now());
            state.took = took;
            state.repairs += repairs;
            for kind in &tally.done {
                *state.ops.entry(kind).or_default() += 1;
            }
        });
    }
}

/// What became of one pass.
#[derive(Default)]
struct Tally {
    done: Vec<&'static str>,
    /// Failed now, or failed before and not yet to be tried again.
    pending: BTreeSet<String>,
    /// Links that ops wait for.
    waiting: BTreeSet<IfName>,
    /// The kernel's state changed meanwhile by another hand, or it was stopped.
    disturbed: bool,
}

impl Tally {
    /// Whether it is time for `op`: its link is up, and it has not just failed.
    fn admit<K, E>(&mut self, op: &Op, reconciler: &Reconciler<K, E>) -> bool {
        let is_up = |dev: IfName| reconciler.view.have.links.get(&dev).is_some_and(|link| link.up);
        if let Some(dev) = stands_on(op, &reconciler.want).filter(|dev| !is_up(*dev)) {
            self.waiting.insert(dev);
            return false;
        }
        // Where a family is switched off, or a link's MTU is too small for it, its
        // files do not exist and there is nothing to set.
        if matches!(op, Op::SetSysctl { key, .. } if !reconciler.view.have.sysctls.contains_key(key)) {
            return false;
        }
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

fn is_link_change(op: &Op) -> bool {
    matches!(op, Op::AddLink { .. } | Op::SetLink { .. })
}

/// The link without which there is no use in trying.
fn stands_on(op: &Op, want: &Desired) -> Option<IfName> {
    match op {
        Op::AddAddress { dev, .. } | Op::SetNeighbour { dev, .. } | Op::SetFdb { dev, .. } => Some(*dev),
        Op::SetNexthop { nexthop, .. } | Op::SetRoute { nexthop, .. } => Some(nexthop.dev),
        Op::AddLink { spec, .. } => {
            let LinkKind::Vxlan(vxlan) = &spec.kind;
            Some(vxlan.underlay)
        }
        Op::SetSysctl { key, .. } => {
            want.links.keys().copied().find(|name| key.split('/').any(|part| part == name.as_str()))
        }
        _ => None,
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::DelRoute { .. } => "del_route",
        Op::DelLink { .. } => "del_link",
        Op::AddLink { .. } => "add_link",
        Op::SetLink { .. } => "set_link",
        Op::AddAddress { .. } => "add_address",
        Op::DelAddress { .. } => "del_address",
        Op::SetSysctl { .. } => "set_sysctl",
        Op::SetNeighbour { .. } => "set_neighbour",
        Op::DelNeighbour { .. } => "del_neighbour",
        Op::SetFdb { .. } => "set_fdb",
        Op::DelFdb { .. } => "del_fdb",
        Op::SetNexthop { .. } => "set_nexthop",
        Op::DelNexthop { .. } => "del_nexthop",
        Op::SetRoute { .. } => "set_route",
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
