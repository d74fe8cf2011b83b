//! What the daemon says of itself: the answer to `weft status`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::guard::GuardState;
use super::health::Health;
use super::join::Joined;
use super::leases::Leases;
use super::process::Process;
use crate::backends::{Backend, Peers};
use crate::model::{LeaseAttrs, NetworkConfig, SubnetKey};
use crate::reconciler::{Fight, Handle, Repair, Snapshot, State};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    #[serde(default)]
    pub process: ProcessStatus,
    #[serde(default)]
    pub health: HealthStatus,
    pub node: NodeStatus,
    pub lease: LeaseStatus,
    pub backend: String,
    /// What containers may use, in bytes.
    pub mtu: u32,
    pub networks: Vec<String>,
    pub store: StoreStatus,
    pub kernel: KernelStatus,
    /// Why traffic rules that are asked for are not in force.
    #[serde(default)]
    pub traffic: Option<String>,
    #[serde(default)]
    pub guard: GuardStatus,
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Seconds since it began.
    pub uptime: Option<u64>,
    /// Resident memory, in bytes.
    pub memory: Option<u64>,
}

/// As `/readyz` and `/healthz` have it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HealthStatus {
    /// Why the node is not ready, if so.
    pub unready: Option<String>,
    /// Loops that do not get on.
    pub late: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub uplink: String,
    pub public_ips: Vec<String>,
    /// Why they may be out of date, if so.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LeaseStatus {
    pub subnets: Vec<String>,
    /// `held`, `reserved`, or what is wrong with it.
    pub state: String,
    pub ok: bool,
    /// Seconds until the store forgets it unless it is renewed; absent for a
    /// reservation.
    pub expires_in: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    pub name: String,
    pub connected: bool,
    /// Seconds since it answers no more, while that is so.
    #[serde(default)]
    pub away_for: Option<u64>,
    /// Seconds since it told of a lease.
    #[serde(default)]
    pub last_event: Option<u64>,
    /// Times that it came back.
    #[serde(default)]
    pub resumes: u64,
    /// Records that do not parse, as `<key>: <reason>`.
    pub bad_records: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KernelStatus {
    /// The kernel is as it should be.
    pub synced: bool,
    /// Changes made since start.
    pub changes: u64,
    /// Those of them that put back what something else had changed.
    pub repairs: u64,
    /// Changes by kind (`set_route`, …).
    #[serde(default)]
    pub operations: BTreeMap<String, u64>,
    /// Seconds since the reconciler last looked.
    #[serde(default)]
    pub last_pass: Option<u64>,
    /// Repairs by kind of object (`route`, …).
    #[serde(default)]
    pub repaired: BTreeMap<String, u64>,
    /// The newest repairs, the newest first.
    #[serde(default)]
    pub recent: Vec<RepairStatus>,
    /// What something else undoes again and again.
    #[serde(default)]
    pub fights: Vec<FightStatus>,
    /// What the kernel refused, with cause and way out.
    pub failures: Vec<String>,
}

/// Who may send encapsulated packets here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuardStatus {
    /// How many addresses; absent where everyone may.
    pub admitted: Option<usize>,
    /// Packets of others, dropped, as of the last audit.
    pub dropped: u64,
    /// Why it is not as asked for.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepairStatus {
    /// Seconds since.
    pub ago: u64,
    /// The first object of several of its kind: `route 10.1.2.0/24`.
    pub object: String,
    pub count: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FightStatus {
    pub object: String,
    /// Seconds since it was first put right.
    pub since: u64,
    pub count: u64,
    /// Programs of this host that may be at it, with what to do.
    pub suspects: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    pub subnets: Vec<String>,
    pub public_ips: Vec<String>,
    pub backend: String,
    /// Why it is left out, if it is.
    pub rejected: Option<String>,
    /// What should stand in the kernel for it and does not.
    pub missing: Vec<String>,
}

impl Status {
    /// What a person should look at first, if anything.
    pub fn trouble(&self) -> Option<String> {
        if let Some(late) = self.health.late.first() {
            return Some(late.clone());
        }
        if !self.lease.ok {
            return Some(format!("lease: {}", self.lease.state));
        }
        if !self.store.connected {
            return Some(format!("store {}: not connected", self.store.name));
        }
        if let Some(trouble) = &self.node.trouble {
            return Some(format!("uplink: {trouble}"));
        }
        let missing = self.peers.iter().filter(|peer| !peer.missing.is_empty()).count();
        if missing > 0 {
            return Some(format!("{missing} of {} peers lack something in the kernel", self.peers.len()));
        }
        if self.traffic.is_some() {
            return self.traffic.clone();
        }
        if self.guard.trouble.is_some() {
            return self.guard.trouble.clone();
        }
        if let Some(fight) = self.kernel.fights.first() {
            return Some(format!("{}: undone {} times by something else", fight.object, fight.count));
        }
        (!self.kernel.synced).then(|| "the kernel is not in sync yet".to_owned())
    }
}

/// Where an answer comes from.
#[derive(Debug)]
pub struct StatusSource {
    health: Arc<Health>,
    store: String,
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    leases: Arc<Leases>,
    reconciler: Handle,
    loops: Loops,
}

/// What loops tell of themselves: what is wrong there, if anything.
#[derive(Debug)]
pub struct Loops {
    pub uplink: watch::Receiver<Option<String>>,
    pub traffic: watch::Receiver<Option<String>>,
    pub guard: watch::Receiver<GuardState>,
}

impl StatusSource {
    pub fn new(
        health: Arc<Health>,
        store: String,
        joined: &Joined,
        leases: Arc<Leases>,
        reconciler: Handle,
        loops: Loops,
    ) -> StatusSource {
        let (network, backend) = (joined.network.clone(), joined.backend.clone());
        StatusSource { health, store, network, backend, leases, reconciler, loops }
    }

    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub fn traffic_trouble(&self) -> Option<String> {
        self.loops.traffic.borrow().clone()
    }

    pub fn guard(&self) -> GuardState {
        self.loops.guard.borrow().clone()
    }

    /// As it was after the last pass.
    pub fn reconciler(&self) -> State {
        self.reconciler.state().borrow().clone()
    }

    /// With a fresh look at the kernel.
    pub async fn status(&self) -> anyhow::Result<Status> {
        let seen = self.reconciler.observe().await.context("the reconciler has stopped")??;
        let state = self.reconciler();
        let node = &seen.inputs.node;
        let mut rejected: BTreeMap<SubnetKey, Vec<&str>> = BTreeMap::new();
        for peer in &state.rejected {
            rejected.entry(peer.key).or_default().push(&peer.reason);
        }
        let peers = seen.inputs.peers.iter().map(|(key, attrs)| {
            self.peer(&seen, *key, attrs, rejected.get(key).map(|reasons| reasons.join("; ")))
        });
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: process(),
            health: self.health.status(),
            node: NodeStatus {
                uplink: node.uplink.to_string(),
                public_ips: node.public_ip.iter().map(|(_, ip)| ip.to_string()).collect(),
                trouble: self.loops.uplink.borrow().clone(),
            },
            lease: self.lease(),
            backend: self.backend.kind().to_owned(),
            mtu: self.backend.mtu(node),
            networks: self.network.pools.iter().map(|(_, pool)| pool.network.to_string()).collect(),
            store: self.store(),
            kernel: kernel(&state, &seen),
            traffic: self.traffic_trouble(),
            guard: guard(&self.guard()),
            peers: peers.collect(),
        })
    }

    fn lease(&self) -> LeaseStatus {
        let held = self.leases.own();
        let lost = self.leases.lost();
        let ok = lost.is_none();
        let state = lost.unwrap_or_else(|| match held.stored.lease_id {
            Some(_) => "held".to_owned(),
            None => "reserved".to_owned(),
        });
        let subnets = subnets(&held.stored.lease.key);
        let expires_in = self.leases.store.facts().expires_in().map(|left| left.as_secs());
        LeaseStatus { subnets, state, ok, expires_in }
    }

    fn store(&self) -> StoreStatus {
        let facts = self.leases.store.facts();
        let table = self.leases.table();
        StoreStatus {
            away_for: facts.away_since.map(|since| since.elapsed().as_secs()),
            last_event: facts.last_event.map(|at| at.elapsed().as_secs()),
            resumes: facts.resumes,
            name: self.store.clone(),
            connected: table.connected(),
            bad_records: table.bad().map(|bad| format!("{}: {}", bad.key, bad.reason)).collect(),
        }
    }

    fn peer(
        &self,
        seen: &Snapshot,
        key: SubnetKey,
        attrs: &LeaseAttrs,
        rejected: Option<String>,
    ) -> PeerStatus {
        let inputs = &seen.inputs;
        let foreign = (attrs.backend_type != self.backend.kind()).then(|| {
            format!("its backend is {:?}, this node's {:?}", attrs.backend_type, self.backend.kind())
        });
        let alone = Peers::from([(key, attrs.clone())]);
        let (desired, _) = self.backend.desired(&inputs.node, &inputs.identity, &inputs.own, &alone);
        // Where it was left out for another peer's sake, its state is not wanted.
        let missing = match rejected {
            Some(_) => Vec::new(),
            None => desired.missing_from(&seen.observed),
        };
        PeerStatus {
            subnets: subnets(&key),
            public_ips: attrs.public_ip.iter().map(|(_, ip)| ip.to_string()).collect(),
            backend: attrs.backend_type.to_string(),
            rejected: rejected.or(foreign),
            missing,
        }
    }
}

fn kernel(state: &State, seen: &Snapshot) -> KernelStatus {
    KernelStatus {
        synced: state.synced && seen.desired.missing_from(&seen.observed).is_empty(),
        changes: state.ops.values().sum(),
        repairs: state.healing.total(),
        operations: state.ops.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        repaired: state.healing.repairs.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        recent: state.healing.recent.iter().rev().map(repair).collect(),
        fights: state.healing.fights.iter().map(fight).collect(),
        last_pass: state.last.and_then(seconds_since),
        failures: state.failed.clone(),
    }
}

fn repair(repair: &Repair) -> RepairStatus {
    let Repair { at, object, count } = repair;
    RepairStatus { ago: at.elapsed().as_secs(), object: object.clone(), count: *count }
}

fn fight(fight: &Fight) -> FightStatus {
    FightStatus {
        object: fight.object.clone(),
        since: fight.since.elapsed().as_secs(),
        count: fight.count,
        suspects: fight.suspects.clone(),
    }
}

fn guard(state: &GuardState) -> GuardStatus {
    let GuardState { admitted, dropped, trouble } = state.clone();
    GuardStatus { admitted, dropped, trouble }
}

fn process() -> ProcessStatus {
    let process = Process::read();
    ProcessStatus { uptime: process.started.and_then(seconds_since), memory: process.resident }
}

fn seconds_since(at: SystemTime) -> Option<u64> {
    at.elapsed().ok().map(|elapsed| elapsed.as_secs())
}

fn subnets(key: &SubnetKey) -> Vec<String> {
    key.nets().map(|(_, net)| net.to_string()).collect()
}
