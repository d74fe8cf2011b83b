//! `/healthz` and `/readyz`: flannel's paths, codes and first lines, and true.
//!
//! Liveness comes from heartbeats. A loop runs inside `Health::watch` and calls
//! `beat` where it gets on; waits that may take hours are wrapped in `idle`. A
//! loop that hangs anywhere else, in a call without an answer or on a lock, is
//! late after its bound.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::status::HealthStatus;
use super::web::{self, Site};
use crate::reconciler;

/// How often a loop that has nothing to do shows that it is alive.
pub const BEAT: Duration = Duration::from_secs(10);
/// How long a loop may go without a beat: several calls to a store that does
/// not answer.
pub const BOUND: Duration = Duration::from_secs(60);

/// How the daemon fares.
pub struct Health {
    beats: Mutex<Heartbeats>,
    readiness: Mutex<Readiness>,
}

enum Readiness {
    Waiting(String),
    Joined(Trouble),
}

/// Why a node that has joined is not ready all the same, if so.
type Trouble = Box<dyn Fn() -> Option<String> + Send>;

tokio::task_local! {
    /// The loop that runs.
    static LOOP: (Arc<Health>, &'static str);
}

impl Health {
    /// Not ready, and waiting for the store.
    pub fn new() -> Arc<Health> {
        let waiting = Readiness::Waiting("the store".to_owned());
        Arc::new(Health { beats: Mutex::default(), readiness: Mutex::new(waiting) })
    }

    /// Runs a loop that has to beat at least every `bound`.
    pub async fn watch<F: Future>(
        self: Arc<Health>,
        name: &'static str,
        bound: Duration,
        task: F,
    ) -> F::Output {
        lock(&self.beats).begin(name, bound, Instant::now());
        let output = LOOP.scope((self.clone(), name), task).await;
        lock(&self.beats).end(name);
        output
    }

    /// Ready, for as long as there is no trouble.
    pub fn joined(&self, trouble: impl Fn() -> Option<String> + Send + 'static) {
        *lock(&self.readiness) = Readiness::Joined(Box::new(trouble));
    }

    pub fn status(&self) -> HealthStatus {
        let late = self.late().iter().map(Late::to_string).collect();
        HealthStatus { unready: self.unready(), late }
    }

    fn late(&self) -> Vec<Late> {
        lock(&self.beats).late(Instant::now())
    }

    /// Why the node is not ready.
    fn unready(&self) -> Option<String> {
        match &*lock(&self.readiness) {
            Readiness::Waiting(what) => Some(format!("waiting for {what}")),
            Readiness::Joined(trouble) => trouble(),
        }
    }
}

/// The loop that calls this gets on. Outside of `Health::watch` it says nothing.
pub fn beat() {
    let _ = LOOP.try_with(|(health, name)| lock(&health.beats).beat(name, Instant::now()));
}

/// What the daemon waits for, until it has joined. A beat too.
pub fn waiting_for(what: impl Display) {
    beat();
    let _ = LOOP.try_with(|(health, _)| {
        if let Readiness::Waiting(text) = &mut *lock(&health.readiness) {
            *text = what.to_string();
        }
    });
}

/// Awaits what may be hours away, and beats meanwhile.
pub async fn idle<F: Future>(event: F) -> F::Output {
    idle_by(|| tokio::time::sleep(BEAT), event).await
}

async fn idle_by<T: Future, F: Future>(mut tick: impl FnMut() -> T, event: F) -> F::Output {
    tokio::pin!(event);
    loop {
        beat();
        tokio::select! {
            biased;
            output = &mut event => {
                beat();
                return output;
            }
            _ = tick() => {}
        }
    }
}

/// Beats for the reconciler, which publishes its state after each pass.
pub async fn follow(mut state: watch::Receiver<reconciler::State>) {
    while state.changed().await.is_ok() {
        beat();
    }
    // Its end is reported by itself.
    std::future::pending::<()>().await;
}

/// Serves until `stop`. The port is taken at once, so that a failure is reported
/// at start.
///
/// # Errors
/// Where the address is taken or not this host's.
pub fn serve(
    address: SocketAddr,
    site: Arc<Site>,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listener = listen().with_context(|| {
        format!("{address}: choose another by --healthz-ip and --healthz-port, or port 0 for none")
    })?;
    info!("health at http://{address}/healthz and /readyz, metrics at /metrics, status at /");
    let service = web::on_tcp(site).into_make_service_with_connect_info::<SocketAddr>();
    Ok(async move {
        tokio::select! {
            served = axum::serve(listener, service) => served.context("health"),
            () = stop.cancelled() => Ok(()),
        }
    })
}

pub(super) async fn healthz(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    let late = health.late();
    if late.is_empty() {
        return (StatusCode::OK, "flanneld is running".to_owned());
    }
    let late: String = late.iter().map(|late| format!("{late}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("flanneld is not running as it should\n{late}"))
}

pub(super) async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    match health.unready() {
        None => (StatusCode::OK, "flanneld is ready".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("flanneld is not ready yet\n{why}\n")),
    }
}

/// When each loop last showed that it is alive.
#[derive(Debug, Default)]
struct Heartbeats(BTreeMap<&'static str, Pulse>);

#[derive(Debug)]
struct Pulse {
    last: Instant,
    bound: Duration,
}

/// A loop without a beat for longer than its bound.
#[derive(Debug, PartialEq, Eq)]
struct Late {
    name: &'static str,
    age: Duration,
    bound: Duration,
}

impl Heartbeats {
    fn begin(&mut self, name: &'static str, bound: Duration, now: Instant) {
        self.0.insert(name, Pulse { last: now, bound });
    }

    fn beat(&mut self, name: &str, now: Instant) {
        if let Some(pulse) = self.0.get_mut(name) {
            pulse.last = now;
        }
    }

    fn end(&mut self, name: &str) {
        self.0.remove(name);
    }

    fn late(&self, now: Instant) -> Vec<Late> {
        let ages = self.0.iter().map(|(name, pulse)| Late {
            name,
            age: now.saturating_duration_since(pulse.last),
            bound: pulse.bound,
        });
        ages.filter(|late| late.age > late.bound).collect()
    }
}

impl Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Late { name, age, bound } = self;
        write!(f, "{name}: no heartbeat for {} s (bound {} s)", age.as_secs(), bound.as_secs())
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("beats", &self.beats).finish_non_exhaustive()
    }
}

/// Nothing panics with a lock held; if it did, what it guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn a_loop_is_late_after_its_own_bound() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut beats = Heartbeats::default();
        beats.begin("slow", 100 * second, start);
        beats.begin("fast", 10 * second, start);
        assert_eq!(beats.late(start + 10 * second), []);
        let late = beats.late(start + 11 * second);
        assert_eq!(late, [Late { name: "fast", age: 11 * second, bound: 10 * second }]);
        assert_eq!(late[0].to_string(), "fast: no heartbeat for 11 s (bound 10 s)");

        beats.beat("fast", start + 95 * second);
        assert_eq!(beats.late(start + 100 * second), []);
        assert_eq!(beats.late(start + 106 * second).len(), 2);
        beats.end("fast");
        assert_eq!(beats.late(start + 106 * second).len(), 1);
        assert_eq!(beats.late(start - second), [], "a clock that went back is no reason");
    }

    #[tokio::test]
    async fn an_idle_loop_is_alive_and_a_hanging_one_is_not() {
        let health = Health::new();
        let (ticks, ticked) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let tick = {
            let (ticks, ticked) = (ticks.clone(), ticked.clone());
            move || {
                ticked.add_permits(1);
                let ticks = ticks.clone();
                async move { ticks.acquire_owned().await.unwrap().forget() }
            }
        };
        let (event, events) = tokio::sync::oneshot::channel::<()>();
        let works = async move {
            idle_by(tick, events).await.unwrap();
            // As a call that is never answered.
            std::future::pending::<()>().await;
        };
        tokio::spawn(health.clone().watch("works", BOUND, works));
        tokio::spawn(health.clone().watch("hangs", BOUND, std::future::pending::<()>()));
        let idle = async || ticked.acquire().await.unwrap().forget();
        let late = |at: Instant| -> Vec<_> {
            lock(&health.beats)
                .late(at + BOUND + Duration::from_nanos(1))
                .iter()
                .map(|late| late.name)
                .collect()
        };
        idle().await;
        let mut now = Instant::now();
        assert_eq!(late(now), ["hangs", "works"], "neither has shown itself since");
        for _ in 0..3 {
            ticks.add_permits(1);
            idle().await;
            assert_eq!(late(now), ["hangs"]);
            now = Instant::now();
        }
        event.send(()).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(late(now), ["hangs"], "the event counts");
        assert_eq!(late(Instant::now()), ["hangs", "works"], "and what hangs after it does not");
    }

    #[tokio::test]
    async fn readiness_names_what_is_waited_for() {
        let health = Health::new();
        let not_yet =
            |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("flanneld is not ready yet\n{why}\n"));
        assert_eq!(readyz(State(health.clone())).await, not_yet("waiting for the store"));
        let waits = async { waiting_for("a lease: 256 of 256 subnets are taken") };
        health.clone().watch("start", BOUND, waits).await;
        let expected = not_yet("waiting for a lease: 256 of 256 subnets are taken");
        assert_eq!(readyz(State(health.clone())).await, expected);

        let (lose, lost) = watch::channel(None);
        health.joined(move || lost.borrow().clone());
        health.clone().watch("keeper", BOUND, async { waiting_for("leases") }).await;
        assert_eq!(readyz(State(health.clone())).await, (StatusCode::OK, "flanneld is ready".into()));
        lose.send_replace(Some("subnet 10.1.2.0/24 was lost".to_owned()));
        assert_eq!(readyz(State(health)).await, not_yet("subnet 10.1.2.0/24 was lost"));
    }
}
