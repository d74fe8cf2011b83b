use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::value::RawValue;
use thiserror::Error;

use super::PerFamily;

/// Why a network config is refused. The text names the key, its value and what
/// is accepted; the caller adds where the config came from.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("{key}: {value}: {expected}")]
    Value { key: &'static str, value: String, expected: String },
}

/// The network config of the whole cluster: `<prefix>/config` in the store,
/// `net-conf.json` in Kubernetes (flannel pkg/subnet/config.go).
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The address pool of each enabled family; never empty.
    pub pools: PerFamily<Pool>,
    pub enable_nftables: bool,
    pub backend: BackendConfig,
}

/// The addresses that leases of one family are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Masked: no host bits.
    pub network: IpNetwork,
    /// Prefix length of each lease.
    pub subnet_len: u8,
    /// First address of the first subnet to lease, on a subnet boundary.
    pub subnet_min: IpAddr,
    /// First address of the last subnet to lease, inclusive.
    pub subnet_max: IpAddr,
}

/// `Backend` of the network config: its type, lower-cased, and the object as
/// it stood, for the backend itself to parse.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    pub kind: String,
    pub options: Box<RawValue>,
}
