use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{LinkSpec, Nexthop};
use crate::model::{IfName, Mac};

/// One change to the kernel. Links are named, not numbered: a plan may make the
/// link that its later steps stand on. What only links need is boxed: plans are
/// made of other things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The protocol is part of the request, so that a route which somebody else
    /// has put there since is not the one that goes.
    DelRoute {
        dst: IpNetwork,
        protocol: u8,
    },
    /// The kernel takes everything on the link along.
    DelLink {
        name: IfName,
    },
    /// Made and brought up.
    AddLink {
        name: IfName,
        spec: Box<LinkSpec>,
    },
    /// Bring an existing link to `spec` in what can be changed while it carries
    /// traffic (MAC, MTU, underlay and local address, learning, checksum offload), and up.
    SetLink {
        name: IfName,
        spec: Box<LinkSpec>,
    },
    /// Add; one that is there already is no error.
    AddAddress {
        dev: IfName,
        addr: IpNetwork,
    },
    DelAddress {
        dev: IfName,
        addr: IpNetwork,
    },
    /// `key` is a path below `/proc/sys`.
    SetSysctl {
        key: String,
        value: String,
    },
    /// Add or replace, permanent.
    SetNeighbour {
        dev: IfName,
        ip: IpAddr,
        mac: Mac,
    },
    DelNeighbour {
        dev: IfName,
        ip: IpAddr,
    },
    /// Add or replace (`NLM_F_CREATE | NLM_F_REPLACE`), permanent. The kernel
    /// keeps one destination for a unicast MAC and passes over an append
    /// without an error (`vxlan_fdb_update_existing()` in
    /// drivers/net/vxlan/vxlan_core.c).
    SetFdb {
        dev: IfName,
        mac: Mac,
        dst: IpAddr,
    },
    DelFdb {
        dev: IfName,
        mac: Mac,
        dst: IpAddr,
    },
    /// Add or replace, with our protocol number.
    SetNexthop {
        id: u32,
        nexthop: Nexthop,
    },
    DelNexthop {
        id: u32,
    },
    /// Add or replace, with our protocol number. `id` names a nexthop object;
    /// without one the next hop is written into the route.
    SetRoute {
        dst: IpNetwork,
        nexthop: Nexthop,
        id: Option<u32>,
    },
}

/// Ops in the order they are to be applied: stale routes go first; then links,
/// addresses, sysctls, neighbours, FDB entries, nexthops and routes come; then
/// what nothing leads to any more goes, nexthops first and links last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub ops: Vec<Op>,
}

/// Names the object as an error message would: `route 10.1.2.0/24 via 10.1.2.0
/// dev flannel.1 onlink`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::DelRoute { dst, .. } => write!(f, "remove route {dst}"),
            Op::DelLink { name } => write!(f, "remove link {name}"),
            Op::AddLink { name, .. } => write!(f, "new link {name}"),
            Op::SetLink { name, .. } => write!(f, "link {name}"),
            Op::AddAddress { dev, addr } => write!(f, "address {addr} dev {dev}"),
            Op::DelAddress { dev, addr } => write!(f, "remove address {addr} dev {dev}"),
            Op::SetSysctl { key, value } => write!(f, "sysctl {key}={value}"),
            Op::SetNeighbour { dev, ip, mac } => write!(f, "neighbour {ip} lladdr {mac} dev {dev}"),
            Op::DelNeighbour { dev, ip } => write!(f, "remove neighbour {ip} dev {dev}"),
            Op::SetFdb { dev, mac, dst } => write!(f, "fdb {mac} dst {dst} dev {dev}"),
            Op::DelFdb { dev, mac, dst } => write!(f, "remove fdb {mac} dst {dst} dev {dev}"),
            Op::SetNexthop { id, nexthop } => write!(f, "nexthop {id} {nexthop}"),
            Op::DelNexthop { id } => write!(f, "remove nexthop {id}"),
            Op::SetRoute { dst, nexthop, .. } => write!(f, "route {dst} {nexthop}"),
        }
    }
}
