use ipnetwork::IpNetwork;
use thiserror::Error;

use super::PerFamily;

/// `subnet.env`: how the daemon tells the CNI plugin and Docker what this node
/// has (flannel pkg/subnet/subnet.go, `WriteSubnetFile`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`, `FLANNEL_IPV6_NETWORK`. One a family as we and
    /// flanneld write it; a reader of the CNI plugin's takes a comma list.
    pub networks: PerFamily<Vec<IpNetwork>>,
    /// `FLANNEL_SUBNET`, `FLANNEL_IPV6_SUBNET`: the first host's address with
    /// the lease's prefix length (`10.5.41.1/24`).
    pub subnet: PerFamily<IpNetwork>,
    pub mtu: u32,
    pub ip_masq: bool,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {key}: {value:?}: {expected}")]
pub struct SubnetEnvError {
    pub line: usize,
    pub key: String,
    pub value: String,
    pub expected: &'static str,
}
