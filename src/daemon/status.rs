//! What the daemon says of itself: the answer to `weft status`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::join::Joined;
use super::leases::Leases;
use crate::backends::{Backend, Peers};
use crate::model::{LeaseAttrs, NetworkConfig, SubnetKey};
use crate::reconciler::{Handle, Snapshot};

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
    /// Why traffic rules that are asked for are not in force.
    #[serde(default)]
    pub traffic: Option<String>,
    pub peers: Vec<PeerStatus>,
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
    /// Seconds that the store gave at the last renewal; absent for a
    /// reservation.
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
        (!self.kernel.synced).then(|| "the kernel is not in sync yet".to_owned())
    }
}

/// Where an answer comes from.
#[derive(Debug)]
pub struct StatusSource {
    store: String,
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    leases: Arc<Leases>,
    reconciler: Handle,
    uplink: watch::Receiver<Option<String>>,
    traffic: watch::Receiver<Option<String>>,
}

impl StatusSource {
    /// `uplink` and `traffic` say what is wrong there, if anything.
    pub fn new(
        store: String,
        joined: &Joined,
        leases: Arc<Leases>,
        reconciler: Handle,
        uplink: watch::Receiver<Option<String>>,
        traffic: watch::Receiver<Option<String>>,
    ) -> StatusSource {
        let (network, backend) = (joined.network.clone(), joined.backend.clone());
        StatusSource { store, network, backend, leases, reconciler, uplink, traffic }
    }

    /// With a fresh look at the kernel.
    pub async fn status(&self) -> anyhow::Result<Status> {
        let seen = self.reconciler.observe().await.context("the reconciler has stopped")??;
        let state = self.reconciler.state().borrow().clone();
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
            node: NodeStatus {
                uplink: node.uplink.to_string(),
                public_ips: node.public_ip.iter().map(|(_, ip)| ip.to_string()).collect(),
                trouble: self.uplink.borrow().clone(),
            },
            lease: self.lease(),
            backend: self.backend.kind().to_owned(),
            mtu: self.backend.mtu(node),
            networks: self.network.pools.iter().map(|(_, pool)| pool.network.to_string()).collect(),
            store: self.store(),
            kernel: KernelStatus {
                synced: state.synced && seen.desired.missing_from(&seen.observed).is_empty(),
                changes: state.ops.values().sum(),
                repairs: state.healing.total(),
                failures: state.failed,
            },
            traffic: self.traffic.borrow().clone(),
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
        LeaseStatus { subnets, state, ok, expires_in: held.ttl.map(|ttl| ttl.as_secs()) }
    }

    fn store(&self) -> StoreStatus {
        let table = self.leases.table();
        StoreStatus {
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

fn subnets(key: &SubnetKey) -> Vec<String> {
    key.nets().map(|(_, net)| net.to_string()).collect()
}
