//! What marks things as ours, so that they are found without a record of them:
//! the host's end of a veth pair says by its name whose it is, and by its group
//! that it is ours and of which network. Both are there from the request that
//! makes it.

use weft::model::IfName;

use crate::names::hash;
use crate::protocol::error::{Error, Result};

/// The first byte of the group (`IFLA_GROUP`) of every host's end of ours; the
/// others are the network's. A group has no effect but that links can be
/// selected by it: `ip link show group N`.
const GROUP: u32 = (b'W' as u32) << 24;

/// The host's end of a container's interface.
pub fn host_end(network: &str, container_id: &str, ifname: &str) -> Result<IfName> {
    named(&[network, container_id, ifname])
}

/// The bridge's port behind which the gateway of a VLAN is.
pub fn vlan_port(bridge: IfName, vlan: u16) -> Result<IfName> {
    named(&[bridge.as_str(), &vlan.to_string()])
}

/// `IFLA_GROUP` of a network's host's ends.
pub fn group(network: &str) -> u32 {
    GROUP | tag(network)
}

/// 24 bits, in which two networks of a node agree once in sixteen million pairs.
pub fn tag(network: &str) -> u32 {
    hash(network, 6).bytes().fold(0, |tag, digit| tag << 4 | char::from(digit).to_digit(16).unwrap_or(0))
}

/// `veth` and as many digits as a name has room for. No part contains a '/'.
fn named(parts: &[&str]) -> Result<IfName> {
    format!("veth{}", hash(&parts.join("/"), 11)).parse().map_err(Error::internal)
}
