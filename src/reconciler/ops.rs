//! What an op is about.

use crate::desired::{Desired, LinkKind, Op};
use crate::model::IfName;

/// The link without which there is no use in trying.
pub(super) fn needs(op: &Op, want: &Desired) -> Option<IfName> {
    match op {
        Op::AddAddress { dev, .. } | Op::SetNeighbour { dev, .. } | Op::SetFdb { dev, .. } => Some(*dev),
        Op::SetNexthop { nexthop, .. } | Op::SetRoute { nexthop, .. } => Some(nexthop.dev),
        Op::AddLink { spec, .. } => {
            let LinkKind::Vxlan(vxlan) = &spec.kind;
            Some(vxlan.underlay)
        }
        Op::SetSysctl { key, .. } => {
            want.links.keys().copied().find(|name| key.split('/').any(|part| part == name.as_str()))
        }
        _ => None,
    }
}

/// Whether it removes what may lead to a peer.
pub(super) fn cuts_off(op: &Op) -> bool {
    matches!(op, Op::DelRoute { .. } | Op::DelNexthop { .. } | Op::DelFdb { .. } | Op::DelNeighbour { .. })
}

/// The link that it makes, changes or removes.
pub(super) fn changed_link(op: &Op) -> Option<IfName> {
    match op {
        Op::AddLink { name, .. } | Op::SetLink { name, .. } | Op::DelLink { name } => Some(*name),
        _ => None,
    }
}

/// The link that takes the op's object along.
pub(super) fn stands_on(op: &Op) -> Option<IfName> {
    match op {
        Op::AddAddress { dev, .. }
        | Op::DelAddress { dev, .. }
        | Op::SetNeighbour { dev, .. }
        | Op::DelNeighbour { dev, .. }
        | Op::SetFdb { dev, .. }
        | Op::DelFdb { dev, .. } => Some(*dev),
        Op::SetNexthop { nexthop, .. } | Op::SetRoute { nexthop, .. } => Some(nexthop.dev),
        _ => None,
    }
}

/// Counted by this: `set_route`, …
pub(super) fn name(op: &Op) -> &'static str {
    match op {
        Op::DelRoute { .. } => "del_route",
        Op::DelLink { .. } => "del_link",
        Op::AddLink { .. } => "add_link",
        Op::SetLink { .. } => "set_link",
        Op::AddAddress { .. } => "add_address",
        Op::DelAddress { .. } => "del_address",
        Op::SetSysctl { .. } => "set_sysctl",
        Op::SetNeighbour { .. } => "set_neighbour",
        Op::DelNeighbour { .. } => "del_neighbour",
        Op::SetFdb { .. } => "set_fdb",
        Op::DelFdb { .. } => "del_fdb",
        Op::SetNexthop { .. } => "set_nexthop",
        Op::DelNexthop { .. } => "del_nexthop",
        Op::SetRoute { .. } => "set_route",
    }
}

/// The kind of object, for the count of repairs.
pub(super) fn kind(op: &Op) -> &'static str {
    match op {
        Op::DelLink { .. } | Op::AddLink { .. } | Op::SetLink { .. } => "link",
        Op::AddAddress { .. } | Op::DelAddress { .. } => "address",
        Op::SetSysctl { .. } => "sysctl",
        Op::SetNeighbour { .. } | Op::DelNeighbour { .. } => "neighbour",
        Op::SetFdb { .. } | Op::DelFdb { .. } => "fdb",
        Op::SetNexthop { .. } | Op::DelNexthop { .. } => "nexthop",
        Op::SetRoute { .. } | Op::DelRoute { .. } => "route",
    }
}

/// The object, whatever its value: what two programs fight over.
pub(super) fn object(op: &Op) -> String {
    match op {
        Op::DelLink { name } | Op::AddLink { name, .. } | Op::SetLink { name, .. } => format!("link {name}"),
        Op::AddAddress { dev, addr } | Op::DelAddress { dev, addr } => format!("address {addr} dev {dev}"),
        Op::SetSysctl { key, .. } => format!("sysctl {key}"),
        Op::SetNeighbour { dev, ip, .. } | Op::DelNeighbour { dev, ip } => {
            format!("neighbour {ip} dev {dev}")
        }
        Op::SetFdb { dev, mac, .. } | Op::DelFdb { dev, mac, .. } => format!("fdb {mac} dev {dev}"),
        Op::SetNexthop { nexthop, .. } => format!("nexthop {nexthop}"),
        Op::DelNexthop { id } => format!("nexthop {id}"),
        Op::SetRoute { dst, .. } | Op::DelRoute { dst, .. } => format!("route {dst}"),
    }
}
