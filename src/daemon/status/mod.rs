//! What the daemon says of itself: the answer to `weft status`.

mod peers;
mod source;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use peers::{Query, Survey};
pub use source::{Loops, StatusSource};

/// So many of what can be many, such as bad records, are told one by one.
pub const TOLD: usize = 100;

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
    #[serde(default)]
    pub peer_count: PeerCount,
    /// Those asked for.
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeerCount {
    pub total: usize,
    /// Lack something in the kernel.
    pub missing: usize,
    /// Left out, each for a reason.
    pub left_out: usize,
    /// Match what was asked for.
    pub found: usize,
    /// A letter for each, by subnet: `o` for one that is as it should be, `m` for
    /// one that lacks something, `l` for one that is left out.
    pub map: String,
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
    /// Records that do not parse, the first `TOLD`, as `<key>: <reason>`.
    pub bad_records: Vec<String>,
    #[serde(default)]
    pub bad_record_count: usize,
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
    /// What something else undoes again and again, the first `TOLD`.
    #[serde(default)]
    pub fights: Vec<FightStatus>,
    #[serde(default)]
    pub fight_count: usize,
    /// What the kernel refused, the first `TOLD`, with cause and way out.
    pub failures: Vec<String>,
    #[serde(default)]
    pub failure_count: usize,
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
        let PeerCount { missing, total, .. } = self.peer_count;
        if missing > 0 {
            return Some(format!("{missing} of {total} peers lack something in the kernel"));
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
