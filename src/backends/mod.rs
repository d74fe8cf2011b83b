//! Backends: each a function from this node and its peers to the kernel state
//! that joins them. No clock, no I/O, no async.

mod host_gw;
mod peers;
mod vxlan;
mod wanted;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use thiserror::Error;

use crate::desired::{Desired, Ownership};
use crate::model::{ConfigError, IfName, LeaseAttrs, Mac, NetworkConfig, PerFamily, SubnetKey};
use crate::shared_map::SharedMap;

pub use wanted::{Inputs, Wanted};

/// What a backend needs to know of the node it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The link that traffic between nodes leaves by.
    pub uplink: IfName,
    pub uplink_mtu: u32,
    /// The uplink's own address.
    pub address: PerFamily<IpAddr>,
    /// The address peers reach this node at: published, and the tunnel's source.
    pub public_ip: PerFamily<IpAddr>,
    /// Prefixes on the uplink itself: peers inside one need no gateway
    /// (DirectRouting).
    pub on_link: Vec<IpNetwork>,
}

/// What makes a node the same node after a restart or the loss of its device.
/// Found once: stored lease, then existing device, then new.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// The VTEP's MAC, by family: each family has a tunnel device of its own.
    pub mac: PerFamily<Mac>,
}

/// The other nodes' leases; never holds our own. Cheap to clone: the lease table,
/// the reconciler's target and what it has reached are versions of one map.
pub type Peers = SharedMap<SubnetKey, LeaseAttrs>;

/// Why a peer's lease is left out. It never harms another peer.
#[derive(Clone, Debug, Error, PartialEq, Eq, Hash)]
#[error("lease {key}: {reason}")]
pub struct Rejected {
    pub key: SubnetKey,
    pub reason: String,
}

/// VXLAN on the wire (RFC 7348): UDP to `port`, with `vni` in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encapsulation {
    pub port: u16,
    pub vni: u32,
}

/// A way to carry packets between nodes.
///
/// Made from the network config by `from_config`, it answers for the families
/// that the config enables. `check` comes first: what it lets pass, the other
/// functions have an answer for.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// `BackendType` of the leases this backend reads and writes.
    fn kind(&self) -> &'static str;

    /// Whether this node can take part: it has a public address of each family,
    /// an MTU that leaves room, and what else the backend asks for.
    fn check(&self, node: &Node) -> Result<(), ConfigError>;

    /// What this node publishes. `id` has a MAC for each of `devices()`.
    fn attrs(&self, node: &Node, id: &Identity) -> LeaseAttrs;

    /// The MTU that containers may use (`FLANNEL_MTU`).
    fn mtu(&self, node: &Node) -> u32;

    /// How packets are wrapped that come from peers; `None` where they come as they
    /// are.
    fn encapsulation(&self) -> Option<Encapsulation> {
        None
    }

    /// Tunnel devices of ours, by family: where a device's MAC is this node's
    /// identity, the daemon looks there for it.
    fn devices(&self) -> PerFamily<IfName>;

    /// The VTEP MAC that a lease publishes, by family, if it does.
    fn published_identity(&self, attrs: &LeaseAttrs) -> Identity;

    /// The kernel state that joins `own` to `peers`, and the peers left out: a
    /// dual-stack peer with a fault in one family is left out of that one only.
    /// Leases of other backends are passed over without a word. The result
    /// depends on what the leases are, never on the order they came in. A lease
    /// makes a difference to those alone that overlap it or publish its identity,
    /// and to those that these make one to.
    ///
    /// With one peer alone it gives that peer's share of the state, for
    /// `Desired::missing_from`.
    fn desired(&self, node: &Node, id: &Identity, own: &SubnetKey, peers: &Peers)
    -> (Desired, Vec<Rejected>);

    /// What of the kernel's state is this backend's to remove.
    fn ownership(&self) -> Ownership;
}

/// The backend that `config` names, its options parsed. `tx_checksum_off`
/// switches the tunnel's tx-checksum offload off (see docs: wrong UDP checksums).
pub fn from_config(config: &NetworkConfig, tx_checksum_off: bool) -> Result<Box<dyn Backend>, ConfigError> {
    match config.backend.kind.as_str() {
        "vxlan" => Ok(Box::new(vxlan::Vxlan::new(config, tx_checksum_off)?)),
        "host-gw" => Ok(Box::new(host_gw::HostGw::new(config))),
        other => Err(ConfigError::Value {
            key: "Backend.Type",
            value: format!("{other:?}"),
            expected: "vxlan or host-gw".to_owned(),
        }),
    }
}

fn networks(config: &NetworkConfig) -> PerFamily<IpNetwork> {
    config.pools.map(|_, pool| pool.network)
}
