use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use super::peers::subnets;
use super::{
    FightStatus, GuardStatus, KernelStatus, LeaseStatus, NodeStatus, ProcessStatus, RepairStatus, Status,
    StoreStatus, Survey, TOLD,
};
use crate::backends::Backend;
use crate::daemon::guard::GuardState;
use crate::daemon::health::Health;
use crate::daemon::join::Joined;
use crate::daemon::leases::Leases;
use crate::daemon::process::Process;
use crate::model::NetworkConfig;
use crate::reconciler::{Fight, Handle, Healing, Repair, State};

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
    /// What those beside the reconciler put right.
    pub healing: Vec<watch::Receiver<Healing>>,
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
    pub fn reconciler(&self) -> watch::Receiver<State> {
        self.reconciler.state()
    }

    /// What it put right, and what all others did.
    pub fn healing(&self) -> Healing {
        let own = self.reconciler().borrow().healing.clone();
        self.loops.healing.iter().fold(own, |all, of_loop| all.and(&of_loop.borrow()))
    }

    /// How all peers fare, by a fresh look at the kernel or by what is known of it.
    pub async fn survey(&self, afresh: bool) -> anyhow::Result<Survey> {
        let seen = match afresh {
            true => self.reconciler.observe().await,
            false => self.reconciler.recall().await,
        };
        let seen = seen.context("the reconciler has stopped")??;
        let state = self.reconciler();
        Ok(Survey::new(seen, &state.borrow().rejected, self.backend.clone()))
    }

    /// All but the peers.
    pub fn status(&self, survey: &Survey) -> Status {
        let node = survey.node();
        Status {
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
            kernel: kernel(&self.reconciler().borrow(), &self.healing(), survey),
            traffic: self.traffic_trouble(),
            guard: guard(self.guard()),
            peer_count: survey.count(),
            peers: Vec::new(),
        }
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
            bad_records: table.bad().take(TOLD).map(|bad| format!("{}: {}", bad.key, bad.reason)).collect(),
            bad_record_count: table.bad_count(),
        }
    }
}

fn kernel(state: &State, healing: &Healing, survey: &Survey) -> KernelStatus {
    KernelStatus {
        synced: state.synced && survey.is_whole(),
        changes: state.ops.values().sum(),
        repairs: healing.total(),
        operations: state.ops.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        repaired: healing.repairs.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        recent: healing.recent.iter().rev().map(repair).collect(),
        fights: healing.fights.iter().take(TOLD).map(fight).collect(),
        fight_count: healing.fights.len(),
        last_pass: state.last.map(|at| at.elapsed().as_secs()),
        failures: state.failed.iter().take(TOLD).cloned().collect(),
        failure_count: state.failed.len(),
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

fn guard(GuardState { admitted, dropped, trouble }: GuardState) -> GuardStatus {
    GuardStatus { admitted, dropped, trouble }
}

fn process() -> ProcessStatus {
    let process = Process::read();
    ProcessStatus { uptime: process.age.map(|age| age.as_secs()), memory: process.resident }
}
