//! What the daemon says of itself: the answer to `weft status`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub node: NodeStatus,
    pub lease: LeaseStatus,
    pub backend: String,
    /// What containers may use, in bytes.
    pub mtu: u32,
    pub networks: Vec<String>,
    pub store: StoreStatus,
    pub kernel: KernelStatus,
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub uplink: String,
    pub public_ips: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LeaseStatus {
    pub subnets: Vec<String>,
    /// `held`, `reserved`, or what is wrong with it.
    pub state: String,
    pub ok: bool,
    /// Seconds until the store would forget it; absent for a reservation.
    pub expires_in: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    pub name: String,
    pub connected: bool,
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
    /// What the kernel refused, with cause and way out.
    pub failures: Vec<String>,
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
        if !self.lease.ok {
            return Some(format!("lease: {}", self.lease.state));
        }
        if !self.store.connected {
            return Some(format!("store {}: not connected", self.store.name));
        }
        let missing = self.peers.iter().filter(|peer| !peer.missing.is_empty()).count();
        if missing > 0 {
            return Some(format!("{missing} of {} peers lack something in the kernel", self.peers.len()));
        }
        (!self.kernel.synced).then(|| "the kernel is not in sync yet".to_owned())
    }
}
