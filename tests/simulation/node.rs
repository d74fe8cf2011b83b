//! A node: its kernel, its wire to the store, its `subnet.env`, and the daemon,
//! which lives and dies. What runs is the daemon's own code.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use weft::backends::{self, Backend, Peers, from_config};
use weft::daemon::checkpoint::Known;
use weft::daemon::join::{self, Joined, patiently};
use weft::daemon::leases::{self, Leases};
use weft::desired::{Observed, Ownership};
use weft::kernel::fake::Fake;
use weft::kernel::host::{Host, HostLink};
use weft::model::{LeaseAttrs, NetworkConfig, SubnetKey};
use weft::reconciler::{Handle, Inputs, Reconciler, Settings, Target};
use weft::subnet::checkpoint::Checkpoint;
use weft::subnet::store::{EtcdStore, Store};
use weft::subnet::table::LeaseTable;

use super::kernel::{SimEvents, SimKernel};
use super::life::Life;
use super::mutants::{Mutant, Mutated};
use super::network::Link;
use super::store::{Model, PREFIX};
use super::verdict::{Invariant, Verdict};

/// A node that knows its fabric waits so long for the store, as `join` does.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two writes of the checkpoint, as the daemon does.
const REST: Duration = Duration::from_secs(1);

/// What is the same for all nodes of a schedule.
#[derive(Clone)]
pub struct Setting {
    pub model: Model,
    pub verdict: Verdict,
    pub ttl: Duration,
    pub audit: Duration,
    pub mutant: Option<Mutant>,
}

pub struct Node {
    pub index: usize,
    pub host: backends::Node,
    pub fake: Fake,
    pub link: Arc<Link>,
    pub before: Arc<Observed>,
    disk: Disk,
    pub running: Option<Running>,
}

/// What outlives the daemon.
#[derive(Clone, Default)]
struct Disk {
    /// `subnet.env`.
    env: Arc<Mutex<Option<SubnetKey>>>,
    /// And when it was written.
    checkpoint: Arc<Mutex<Option<(Checkpoint, Instant)>>>,
}

/// A life of the daemon.
pub struct Running {
    pub life: Life,
    task: JoinHandle<()>,
    member: Arc<Mutex<Option<Member>>>,
}

/// A daemon that has joined.
#[derive(Clone)]
pub struct Member {
    pub leases: Arc<Leases>,
    pub reconciler: Handle,
    pub backend: Arc<dyn Backend>,
    pub attrs: LeaseAttrs,
}

impl Node {
    pub fn new(index: usize, host: backends::Node, before: Observed, room: usize, seed: u64) -> Node {
        Node {
            index,
            host,
            fake: Fake::faithful(before.clone(), room),
            link: Link::new(seed),
            before: Arc::new(before),
            disk: Disk::default(),
            running: None,
        }
    }

    pub fn start(&mut self, setting: &Setting) {
        self.begin(setting, false);
    }

    /// A daemon that takes and keeps its lease and follows nobody else's.
    pub fn start_blind(&mut self, setting: &Setting) {
        self.begin(setting, true);
    }

    fn begin(&mut self, setting: &Setting, blind: bool) {
        self.fake.reopen();
        let life = Life::new(setting.verdict.clone());
        let member = Arc::new(Mutex::new(None));
        let daemon = Daemon {
            index: self.index,
            host: self.host.clone(),
            fake: self.fake.clone(),
            before: self.before.clone(),
            disk: self.disk.clone(),
            life: life.clone(),
            member: member.clone(),
            setting: setting.clone(),
        };
        let channels = self.link.channels(self.index, &setting.model);
        let etcd = EtcdStore::from_channels(channels, PREFIX, "model").with_lease_ttl(setting.ttl);
        let store = Mutated { etcd, mutant: setting.mutant };
        let task = match blind {
            false => tokio::spawn(life.clone().lead(daemon.run(Arc::new(store)))),
            true => tokio::spawn(daemon.run_blind(Arc::new(store))),
        };
        self.running = Some(Running { life, task, member });
    }

    /// At whatever it was waiting for.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.life.end();
            running.task.abort();
        }
    }

    /// The machine starts afresh: what was in its kernel is gone, its disk is not, but
    /// for what it knew in its last boot.
    pub fn reboot(&mut self) {
        self.kill();
        *self.disk.checkpoint.lock().unwrap() = None;
        self.fake.disturb(|state| *state = (*self.before).clone(), []);
    }

    pub fn member(&self) -> Option<Member> {
        self.running.as_ref()?.member.lock().unwrap().clone()
    }

    pub fn stands_still(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.life.stands_still())
    }

    /// Bury a daemon that has ended: killed in the midst of a batch, or by an
    /// error that a supervisor would start it again for.
    pub fn bury(&mut self) -> bool {
        let over = self.running.as_ref().is_some_and(|r| r.life.is_over() || r.task.is_finished());
        if over {
            self.kill();
        }
        over
    }
}

struct Daemon {
    index: usize,
    host: backends::Node,
    fake: Fake,
    before: Arc<Observed>,
    disk: Disk,
    life: Life,
    member: Arc<Mutex<Option<Member>>>,
    setting: Setting,
}

impl Daemon {
    /// As `daemon::start`, without a host's options, uplinks and sockets.
    async fn run(self, store: Arc<dyn Store>) {
        let Ok(joined) = self.join(&*store).await else { return };
        self.setting.verdict.note(self.index as u64, || {
            format!("  node {} holds {}", self.index, joined.held.stored.lease.key)
        });
        *self.disk.env.lock().unwrap() = Some(joined.held.stored.lease.key);
        let target = joined.target();
        if self.setting.mutant == Some(Mutant::WholeMemory) {
            target.update(|inputs| inputs.whole = true);
        }
        let kernel = SimKernel {
            node: self.index,
            fake: self.fake.clone(),
            before: self.before.clone(),
            life: self.life.clone(),
            model: self.setting.model.clone(),
            verdict: self.setting.verdict.clone(),
            since: Instant::now(),
            remembered: (!joined.position.is_listed()).then(|| joined.peers.clone()),
            mutant: self.setting.mutant,
        };
        let events =
            SimEvents { fake: self.fake.clone(), deaf: self.setting.mutant == Some(Mutant::NoResync) };
        let mut settings = Settings { audit: self.setting.audit, ..Settings::default() };
        if self.setting.mutant == Some(Mutant::NoPause) {
            (settings.retry_min, settings.retry_max) = (Duration::ZERO, Duration::ZERO);
        }
        let backend = joined.backend.clone();
        let own = self.ownership(&*backend);
        let (reconciler, handle) = Reconciler::new(kernel, events, backend, own, target.clone(), settings);
        let leases = Arc::new(Leases::new(joined.table(), joined.want.clone(), target));
        *self.member.lock().unwrap() = Some(Member {
            leases: leases.clone(),
            reconciler: handle,
            backend: joined.backend.clone(),
            attrs: joined.want.attrs.clone(),
        });
        let mut loops = JoinSet::new();
        let stop = CancellationToken::new();
        let life = || self.life.clone();
        loops.spawn(life().lead(async move { reconciler.run(stop).await.unwrap() }));
        loops.spawn(life().lead(leases::follow(store.watch(joined.position), leases.clone())));
        let kept = leases.clone();
        loops.spawn(life().lead(leases::keep(store, leases, self.setting.ttl / 3)));
        loops.spawn(life().lead(self.disk.clone().keep(joined.network.text, kept)));
        let ended = loops.join_next().await;
        let what = || format!("node {}: a loop ended: {ended:?}", self.index);
        self.setting.verdict.violated(Invariant::Lives, what);
    }

    async fn run_blind(self, store: Arc<dyn Store>) {
        let Ok(Joined { held, want, node, identity, .. }) = self.join(&*store).await else { return };
        let own = held.stored.lease.key;
        let nobody = Target::new(Inputs { node, identity, own, peers: Default::default(), whole: true });
        let table = LeaseTable::remembered(held, Peers::new());
        let leases = Arc::new(Leases::new(table, want, nobody));
        leases::keep(store, leases, self.setting.ttl / 3).await;
    }

    async fn join(&self, store: &dyn Store) -> anyhow::Result<Joined> {
        let previous = *self.disk.env.lock().unwrap();
        if let Some(known) = self.disk.known()
            && !answers(store).await
        {
            let (network, backend) = self.parse(&known.config)?;
            let host = self.host_links();
            if let Some(joined) = join::resume(known, network, backend, &host, self.host.clone(), previous) {
                self.setting.verdict.note(self.index as u64, || format!("  node {} resumes", self.index));
                return Ok(joined);
            }
        }
        let json = loop {
            match patiently("the network config", || store.network_config()).await {
                Some(json) => break json,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        let (network, backend) = self.parse(&json)?;
        let host = self.host_links();
        Ok(join::lease(store, network, backend, &host, self.host.clone(), previous).await)
    }

    fn parse(&self, json: &str) -> anyhow::Result<(NetworkConfig, Arc<dyn Backend>)> {
        let network = NetworkConfig::parse(json)?;
        let backend: Arc<dyn Backend> = from_config(&network, false)?.into();
        backend.check(&self.host)?;
        Ok((network, backend))
    }

    fn host_links(&self) -> Host {
        let links = self.fake.with(|state| {
            let link = |(name, link): (&_, &weft::desired::ObservedLink)| HostLink {
                index: link.index,
                name: *name,
                mtu: link.mtu,
                mac: link.mac,
                addresses: Vec::new(),
            };
            state.links.iter().map(link).collect()
        });
        Host { links, routes: Vec::new() }
    }

    fn ownership(&self, backend: &dyn Backend) -> Ownership {
        let mut own = backend.ownership();
        if self.setting.mutant == Some(Mutant::OwnsAll) {
            own.links.insert("docker0".parse().unwrap());
            own.networks.push("0.0.0.0/0".parse().unwrap());
        }
        own
    }
}

/// Whether it tells what a node that comes asks for.
async fn answers(store: &dyn Store) -> bool {
    let config = timeout(PATIENCE, store.network_config()).await;
    matches!(config, Ok(Ok(Some(_)))) && store.snapshot().await.is_ok()
}

impl Disk {
    /// As `daemon::checkpoint::keep`, but into memory.
    async fn keep(self, config: Box<str>, leases: Arc<Leases>) {
        loop {
            leases.changed().await;
            match Known::of(&leases, &config) {
                Known::NotYet => {}
                Known::NoMore => *self.checkpoint.lock().unwrap() = None,
                Known::Now(known) => *self.checkpoint.lock().unwrap() = Some((*known, Instant::now())),
            }
            sleep(REST).await;
        }
    }

    /// As it reads now: time has gone by.
    fn known(&self) -> Option<Checkpoint> {
        let (mut known, written) = self.checkpoint.lock().unwrap().clone()?;
        known.own.ttl = known.own.ttl.map(|ttl| ttl.saturating_sub(written.elapsed()));
        Some(known)
    }
}
