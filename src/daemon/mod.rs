//! Composition: a node joins the fabric, then a handful of loops keep it there
//! until a signal comes. Forwarding stays in place when they end.

pub mod admin;
mod blackholes;
pub mod checkpoint;
pub mod config;
mod follow_uplink;
mod guard;
pub mod health;
pub mod join;
pub mod leases;
pub mod memory;
mod metrics;
mod process;
mod seed;
pub mod status;
pub mod store;
mod store_health;
pub mod traffic;
pub mod uplink;
mod web;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::blackholes::Blackholes;
use self::config::DaemonArgs;
use self::follow_uplink::Uplink;
use self::guard::GuardState;
use self::health::Health;
use self::join::Joined;
use self::leases::Leases;
use self::status::{Loops, StatusSource};
use self::traffic::Traffic;
use self::web::Site;
use crate::kernel::{Monitor, Nexthops, Rtnl};
use crate::model::{NetworkConfig, SubnetEnv, SubnetKey};
use crate::reconciler::{self, Reconciler, Settings, Target};
use crate::subnet::store::Store;
use crate::subnet::{self, env_file};

/// How long the loops may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the kernel may take to be as it should be before we count as ready
/// all the same.
const FIRST_PASS: Duration = Duration::from_secs(10);

/// The store has another network config than this node came up with, while it was
/// away.
#[derive(Debug, thiserror::Error)]
#[error("the network config is another than this node knew")]
struct OtherConfig;

/// Runs the daemon until SIGTERM or SIGINT. Called as flanneld, flannel's
/// defaults hold.
pub async fn run(args: DaemonArgs, as_flanneld: bool) -> anyhow::Result<()> {
    loop {
        match live(&args, as_flanneld).await {
            Err(error) if error.is::<OtherConfig>() => info!("{error}: joining again"),
            ended => return ended,
        }
    }
}

async fn live(args: &DaemonArgs, as_flanneld: bool) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut tasks = Tasks::new(stop.clone())?;
    let health = tasks.health.clone();
    let site = Site::new(health.clone());
    if let Some(address) = args.health_address(as_flanneld) {
        tasks.spawn("health", health::serve(address, site.clone(), stop.clone())?);
    }
    let starting = start(args, as_flanneld, &site, &mut tasks);
    let started = tokio::select! {
        started = health.watch("start", health::BOUND, starting) => started,
        () = stop.cancelled() => Ok(()),
    };
    if let Err(error) = started {
        stop.cancel();
        tasks.drain().await;
        return Err(error);
    }
    tasks.run().await
}

/// Joins the fabric and starts the loops.
async fn start(
    args: &DaemonArgs,
    as_flanneld: bool,
    site: &Arc<Site>,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let store = store::open(args, as_flanneld, tasks).await?;
    info!(version = env!("CARGO_PKG_VERSION"), "weft, leases in {}", store.describe());
    let joined = join::join(args, &*store).await?;
    let own = &joined.held.stored.lease.key;
    let (target, audit) = (joined.target(), args.audit_interval());
    let audits = audits(args);
    // Before there is a tunnel.
    let (guarded, guard) = guard::start(args.traffic.guard, &joined.backend, &target, audit).await;
    let mut healing: Vec<_> = guard.as_ref().map(|guard| guard.healing()).into_iter().collect();
    if let Some(guard) = guard {
        tasks.spawn_watched("guard", audits, guard.run());
    }
    let reconciler = start_reconciler(args, &joined, target.clone(), tasks)?;
    tasks.spawn_watched("reconciler", audits, health::follow(reconciler.state()));

    // Before there are containers.
    let traffic = Traffic::start(&args.traffic, &joined.network, own, audit).await;
    let complaint = traffic.complaint();
    let blackholes = Blackholes::start(args.traffic.ip_blackhole_route, own, audit);
    healing.extend([traffic.healing(), blackholes.healing()]);
    write_subnet_env(args, &joined.network, own, joined.backend.mtu(&joined.node))?;
    tasks.spawn_watched("traffic rules", audits, traffic.run());
    tasks.spawn_watched("blackhole routes", audits, blackholes.run());

    let leases = Arc::new(Leases::new(joined.table(), joined.want.clone(), target.clone()));
    let uplink = follow_uplink(args, &joined, target, leases.clone(), tasks)?;
    let source = StatusSource::new(
        tasks.health.clone(),
        store.describe(),
        &joined,
        leases.clone(),
        reconciler.clone(),
        Loops { uplink, traffic: complaint, guard: guarded.clone(), healing },
    );
    site.joined(source);
    let admin = admin::serve(&args.admin_socket, site.clone(), tasks.stop.clone())?;
    tasks.spawn("admin socket", admin);

    if !joined.position.is_listed() {
        let compared = compare_config(args.clone(), store.clone(), joined.network.text.clone());
        tasks.spawn("network config", stopped_by(tasks.stop.clone(), compared));
    }
    let events = store.watch(joined.position);
    let follower = leases::follow(events, leases.clone());
    tasks.spawn_watched("lease watch", health::BOUND, follower);
    let keeper = leases::keep(store, leases.clone(), args.renew_margin());
    tasks.spawn_watched("lease keeper", health::BOUND, keeper);
    health::waiting_for("the kernel to be as it should be");
    announce(&reconciler, guarded).await;
    // Nothing waits for it: it comes last.
    let file = subnet::checkpoint::path(&args.subnet_file);
    let writer = checkpoint::keep(file, joined.network.text, leases.clone(), tasks.stop.clone());
    tasks.spawn("checkpoint", tasks.health.clone().watch("checkpoint", health::BOUND, writer));
    tasks.health.joined(move || leases.lost());
    Ok(())
}

/// Fails where the store, once it is back, has another config than `known`.
async fn compare_config(args: DaemonArgs, store: Arc<dyn Store>, known: Box<str>) -> anyhow::Result<()> {
    let (network, _) = join::network_config(&args, &*store).await;
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    if value(&network.text) != value(&known) {
        return Err(OtherConfig.into());
    }
    std::future::pending().await
}

fn write_subnet_env(
    args: &DaemonArgs,
    network: &NetworkConfig,
    own: &SubnetKey,
    mtu: u32,
) -> anyhow::Result<()> {
    let env = SubnetEnv::new(network, own, mtu, args.traffic.ip_masq);
    if env_file::write(&args.subnet_file, &env)? {
        info!("wrote {}", args.subnet_file.display());
    }
    Ok(())
}

fn start_reconciler(
    args: &DaemonArgs,
    joined: &Joined,
    target: Target,
    tasks: &mut Tasks,
) -> anyhow::Result<reconciler::Handle> {
    let nexthops = if args.plain_routes { Nexthops::Never } else { Nexthops::WherePossible };
    let settings = Settings { audit: args.audit_interval(), ..Settings::default() };
    let kernel = Rtnl::open(None, nexthops)?;
    let monitor = Monitor::open(None)?.without_echo_of(&kernel)?;
    let (reconciler, handle) = Reconciler::new(
        kernel,
        monitor,
        joined.backend.clone(),
        joined.backend.ownership(),
        target,
        settings,
    );
    let stop = tasks.stop.clone();
    tasks.spawn("reconciler", async { reconciler.run(stop).await.map_err(Into::into) });
    Ok(handle)
}

fn follow_uplink(
    args: &DaemonArgs,
    joined: &Joined,
    target: Target,
    leases: Arc<Leases>,
    tasks: &mut Tasks,
) -> anyhow::Result<watch::Receiver<Option<String>>> {
    let events = Monitor::of_uplinks()?;
    let (uplink, trouble) = Uplink::new(args, joined, target, leases);
    let following = stopped_by(tasks.stop.clone(), uplink.follow(events));
    let health = tasks.health.clone();
    tasks.spawn("uplink", health.watch("uplink", audits(args), following));
    Ok(trouble)
}

async fn stopped_by(
    stop: CancellationToken,
    task: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = task => ended,
    }
}

/// The bound of loops that look again at each audit.
fn audits(args: &DaemonArgs) -> Duration {
    2 * args.audit_interval() + health::BOUND
}

/// Tells systemd that containers may come: the kernel is as it should be, or we
/// have waited long enough for it and say so.
async fn announce(reconciler: &reconciler::Handle, mut guarded: watch::Receiver<GuardState>) {
    let mut state = reconciler.state();
    let first_pass = async {
        let _ = state.wait_for(|state| state.synced).await;
        // At once where there is none.
        let _ = guarded.changed().await;
    };
    let synced = tokio::time::timeout(FIRST_PASS, first_pass).await.is_ok();
    memory::give_back();
    let status = if synced { "in sync" } else { "running; the kernel is not in sync yet" };
    info!("{status}");
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Without systemd nobody listens, and that is fine.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("notification of systemd: {error}");
    }
}

/// The loops of the daemon: all stop together, the first that fails stops all.
struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
    health: Arc<Health>,
}

impl Tasks {
    /// Signals are caught from now on.
    fn new(stop: CancellationToken) -> anyhow::Result<Tasks> {
        let mut tasks = Tasks { set: JoinSet::new(), stop, health: Health::new() };
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let stop = tasks.stop.clone();
        tasks.spawn_endless("signals", async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!("{name}: stopping; forwarding stays in place");
            notify(&[NotifyState::Stopping]);
            stop.cancel();
        });
        Ok(tasks)
    }

    /// A task that minds `stop` itself.
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// A task that is cut off at any await when it is time to stop.
    fn spawn_endless(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
            Ok(())
        });
    }

    /// An endless task whose heartbeats are watched.
    fn spawn_watched(
        &mut self,
        name: &'static str,
        bound: Duration,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_endless(name, self.health.clone().watch(name, bound, task));
    }

    /// Until the first task ends; what it ended with.
    async fn run(mut self) -> anyhow::Result<()> {
        let ended = match self.set.join_next().await {
            Some(Ok((name, result))) => result.with_context(|| name).and_then(|()| self.expected(name)),
            Some(Err(panic)) => Err(panic.into()),
            None => Ok(()),
        };
        self.stop.cancel();
        self.drain().await;
        ended
    }

    fn expected(&self, name: &str) -> anyhow::Result<()> {
        if self.stop.is_cancelled() { Ok(()) } else { Err(anyhow::anyhow!("{name} ended by itself")) }
    }

    async fn drain(&mut self) {
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            warn!("not all has ended within {} s: leaving it", DRAIN.as_secs());
        }
    }
}
