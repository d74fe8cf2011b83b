use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::value::RawValue;
use thiserror::Error;

use super::{Family, PerFamily};

/// A leased subnet, by family: what a lease is keyed by in the store
/// (`10.5.1.0-24`, `10.5.1.0-24&fd00:5:1::-64`). Host bits are zero; at least
/// one family is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey(pub(super) PerFamily<IpNetwork>);

impl SubnetKey {
    /// `None` unless at least one family is present and no host bit is set.
    pub fn new(nets: PerFamily<IpNetwork>) -> Option<SubnetKey> {
        let masked =
            nets.iter().all(|(family, net)| Family::of_net(*net) == family && net.ip() == net.network());
        (masked && !nets.is_empty()).then_some(SubnetKey(nets))
    }

    pub fn net(&self, family: Family) -> Option<IpNetwork> {
        self.0.get(family).copied()
    }

    /// The subnet of each family, IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = (Family, IpNetwork)> {
        self.0.iter().map(|(family, net)| (family, *net))
    }

    /// Whether an address of one lies in the other.
    pub fn overlaps(&self, other: &SubnetKey) -> bool {
        self.nets()
            .any(|(family, a)| other.net(family).is_some_and(|b| a.contains(b.ip()) || b.contains(a.ip())))
    }
}

/// As it reads in the store: `10.5.1.0-24&fd00:5:1::-64`.
impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (_, net)) in self.nets().enumerate() {
            if i > 0 {
                f.write_str("&")?;
            }
            write!(f, "{}-{}", net.ip(), net.prefix())?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{key:?} is not a subnet key: {reason}")]
pub struct KeyError {
    pub key: String,
    pub reason: String,
}

/// What a node publishes with its lease (flannel pkg/lease/lease.go).
#[derive(Clone, Debug)]
pub struct LeaseAttrs {
    /// The node's identity and its tunnel endpoint.
    pub public_ip: PerFamily<IpAddr>,
    /// `vxlan`, `host-gw`, …; empty for `udp` and `alloc`.
    pub backend_type: String,
    /// What the backend says to its peers, by family (`BackendData` and
    /// `BackendV6Data`), as it stood.
    pub backend_data: PerFamily<Box<RawValue>>,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LeaseError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("{key}: {value}: {expected}")]
    Value { key: &'static str, value: String, expected: String },
}

/// A node's subnet and what it publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub key: SubnetKey,
    pub attrs: LeaseAttrs,
}

impl PartialEq for LeaseAttrs {
    fn eq(&self, other: &Self) -> bool {
        let raw = |data: &PerFamily<Box<RawValue>>| {
            (data.v4.as_deref().map(|v| v.get().to_owned()), data.v6.as_deref().map(|v| v.get().to_owned()))
        };
        self.public_ip == other.public_ip
            && self.backend_type == other.backend_type
            && raw(&self.backend_data) == raw(&other.backend_data)
    }
}

impl Eq for LeaseAttrs {}
