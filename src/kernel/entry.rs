//! One thing the kernel has, decoded: dumps and notifications speak of it in
//! the same words. Links are numbers here, names come with `learn`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoVxlan, LinkAttribute, LinkEvent, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::KernelEvent;
use super::nexthop::{
    NexthopAttribute, NexthopMessage, NexthopNetlinkMessage, RTM_DELNEXTHOP, RTM_NEWNEXTHOP,
};
use crate::model::{IfName, Mac};

/// Where the last packet went no longer ago, a destination is in use; in
/// `USER_HZ`, hundredths of a second.
const IN_USE: u32 = 60 * 100;
/// linux/rtnetlink.h
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Link(LinkEntry),
    Address {
        link: u32,
        addr: IpNetwork,
    },
    /// `mac` is `None` where the neighbour is not permanent.
    Neighbour {
        link: u32,
        ip: IpAddr,
        mac: Option<Mac>,
    },
    /// `dst` is `None` where the entry is not permanent.
    Fdb {
        link: u32,
        mac: Mac,
        dst: Option<IpAddr>,
        /// Packets went there of late.
        in_use: bool,
    },
    /// `hop` is `None` for groups, blackholes and the like.
    Nexthop {
        id: u32,
        hop: Option<Hop>,
        protocol: u8,
    },
    /// Of the main table, with the default metric. `hop` is `None` where it has
    /// several, no gateway or no device, or drops packets.
    Route {
        dst: IpNetwork,
        hop: Option<Hop>,
        nexthop_id: u32,
        protocol: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEntry {
    pub index: u32,
    pub name: IfName,
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// `IFF_UP`: set up by hand.
    pub up: bool,
    /// `IFF_RUNNING`: has a carrier. Without one the kernel drops nexthops.
    pub running: bool,
    pub vxlan: Option<VxlanEntry>,
}

/// A VXLAN device such as we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanEntry {
    pub vni: u32,
    pub underlay: u32,
    pub local: IpAddr,
    pub port: u16,
    pub learning: bool,
    pub gbp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub link: u32,
    pub via: IpAddr,
    pub onlink: bool,
}

impl Entry {
    /// `None` where the message is of no concern to the fabric.
    pub(super) fn of(message: &RouteNetlinkMessage) -> Option<Entry> {
        use RouteNetlinkMessage as M;
        match message {
            M::NewLink(m) | M::DelLink(m) => LinkEntry::of(m).map(Entry::Link),
            M::NewAddress(m) | M::DelAddress(m) => address(m),
            M::NewNeighbour(m) | M::DelNeighbour(m) => neighbour(m),
            M::NewRoute(m) | M::DelRoute(m) => route(m),
            _ => None,
        }
    }

    pub(super) fn of_nexthop(message: &NexthopMessage) -> Option<Entry> {
        let NexthopMessage { header, attributes } = message;
        let (mut id, mut link, mut via, mut other) = (None, None, None, false);
        for attribute in attributes {
            match attribute {
                NexthopAttribute::Id(value) => id = Some(*value),
                NexthopAttribute::Oif(value) => link = Some(*value),
                NexthopAttribute::Gateway(value) => via = Some(*value),
                NexthopAttribute::Group(_) | NexthopAttribute::Blackhole | NexthopAttribute::Fdb => {
                    other = true;
                }
                _ => {}
            }
        }
        let onlink = header.flags.contains(RouteFlags::Onlink);
        let hop = link.zip(via).filter(|_| !other).map(|(link, via)| Hop { link, via, onlink });
        Some(Entry::Nexthop { id: id?, hop, protocol: header.protocol.into() })
    }
}

/// What a notification says; `None` where it is of no concern or cannot be
/// decoded.
pub(super) fn event(header: &NetlinkHeader, payload: &[u8]) -> Option<KernelEvent> {
    use RouteNetlinkMessage as M;
    if matches!(header.message_type, RTM_NEWNEXTHOP | RTM_DELNEXTHOP) {
        return match NexthopNetlinkMessage::deserialize(header, payload).ok()? {
            NexthopNetlinkMessage::Del(m) => Entry::of_nexthop(&m).map(KernelEvent::Removed),
            m => Entry::of_nexthop(m.message()).map(KernelEvent::Added),
        };
    }
    if matches!(header.message_type, RTM_NEWNETCONF | RTM_DELNETCONF) {
        return Some(KernelEvent::Setting);
    }
    let message = M::deserialize(header, payload).ok()?;
    if matches!(&message, M::NewLink(link) if is_about_features(link)) {
        return Some(KernelEvent::Setting);
    }
    let entry = Entry::of(&message)?;
    Some(match message {
        M::DelLink(_) | M::DelAddress(_) | M::DelNeighbour(_) | M::DelRoute(_) => KernelEvent::Removed(entry),
        _ => KernelEvent::Added(entry),
    })
}

/// Offloads were changed, and nothing else of the link (`NETDEV_FEAT_CHANGE`).
fn is_about_features(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::Event(LinkEvent::Features))
}

impl LinkEntry {
    pub(super) fn of(message: &LinkMessage) -> Option<LinkEntry> {
        // Bridges report their ports in messages of their own family.
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let (mut name, mut mac, mut mtu, mut vxlan, mut elsewhere) = (None, None, 0, None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = value.parse().ok(),
                LinkAttribute::Address(value) => mac = value.as_slice().try_into().ok().map(Mac),
                LinkAttribute::Mtu(value) => mtu = *value,
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::LinkInfo(infos) => vxlan = VxlanEntry::of(infos),
                _ => {}
            }
        }
        let flags = message.header.flags;
        Some(LinkEntry {
            index: message.header.index,
            name: name?,
            mac,
            mtu,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            vxlan: vxlan.filter(|_| !elsewhere),
        })
    }
}

impl VxlanEntry {
    /// `None` for a device of another kind, and for one that floods to a group,
    /// asks user space for missing entries or takes its tunnel from metadata:
    /// nothing that we make can be changed into or from those.
    fn of(infos: &[LinkInfo]) -> Option<VxlanEntry> {
        let data = infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        })?;
        let (mut vni, mut underlay, mut local, mut port) = (None, None, None, 0);
        let (mut learning, mut gbp) = (true, false);
        for info in data {
            match info {
                InfoVxlan::Id(value) => vni = Some(*value),
                InfoVxlan::Link(value) => underlay = Some(*value),
                InfoVxlan::Local(value) => local = Some(IpAddr::V4(*value)),
                InfoVxlan::Local6(value) => local = Some(IpAddr::V6(*value)),
                InfoVxlan::Port(value) => port = *value,
                InfoVxlan::Learning(value) => learning = *value,
                InfoVxlan::Gbp => gbp = true,
                InfoVxlan::Group(_)
                | InfoVxlan::Group6(_)
                | InfoVxlan::L2Miss(true)
                | InfoVxlan::L3Miss(true)
                | InfoVxlan::CollectMetadata(true)
                | InfoVxlan::Gpe => return None,
                _ => {}
            }
        }
        Some(VxlanEntry { vni: vni?, underlay: underlay?, local: local?, port, learning, gbp })
    }
}

fn address(message: &AddressMessage) -> Option<Entry> {
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            _ => {}
        }
    }
    let addr = IpNetwork::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Entry::Address { link: message.header.index, addr })
}

fn neighbour(message: &NeighbourMessage) -> Option<Entry> {
    const NUD_PERMANENT: u16 = 0x80;
    let (mut dst, mut lladdr, mut in_use) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            // It is as old as it is unused where nothing was ever sent.
            NeighbourAttribute::CacheInfo(age) => in_use = age.used < age.updated.min(IN_USE),
            NeighbourAttribute::Destination(value) => dst = ip_of(value),
            NeighbourAttribute::LinkLayerAddress(value) => lladdr = value.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    let link = message.header.ifindex;
    let permanent = u16::from(message.header.state) & NUD_PERMANENT != 0;
    match message.header.family {
        AddressFamily::Bridge => {
            Some(Entry::Fdb { link, mac: lladdr?, dst: Some(dst?).filter(|_| permanent), in_use })
        }
        _ => Some(Entry::Neighbour { link, ip: dst?, mac: lladdr.filter(|_| permanent) }),
    }
}

fn ip_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        // An FDB entry's destination: its message's family does not say which.
        NeighbourAddress::Other(bytes) => netlink_packet_core::parse_ip(bytes).ok(),
        _ => None,
    }
}

fn route(message: &RouteMessage) -> Option<Entry> {
    let header = &message.header;
    let (any, bits, default_metric) = match header.address_family {
        AddressFamily::Inet => (IpAddr::from([0; 4]), 32, 0),
        AddressFamily::Inet6 => (IpAddr::from([0; 16]), 128, 1024),
        _ => return None,
    };
    let (mut dst, mut table, mut metric) = (any, u32::from(header.table), 0);
    let (mut link, mut via, mut nexthop_id, mut several) = (None, None, 0, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(value) => dst = ip_of_route(value)?,
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(value) => link = Some(*value),
            RouteAttribute::Gateway(value) => via = ip_of_route(value),
            RouteAttribute::NhId(value) => nexthop_id = *value,
            RouteAttribute::MultiPath(_) => several = true,
            _ => {}
        }
    }
    let plain = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && metric == default_metric
        && header.tos == 0
        && header.source_prefix_length == 0
        && !header.flags.contains(RouteFlags::Cloned)
        && header.destination_prefix_length <= bits;
    if !plain {
        return None;
    }
    let onlink = header.flags.contains(RouteFlags::Onlink);
    let unicast = header.kind == RouteType::Unicast && !several;
    let hop = link.zip(via).filter(|_| unicast).map(|(link, via)| Hop { link, via, onlink });
    let dst = IpNetwork::new(dst, header.destination_prefix_length).ok()?;
    Some(Entry::Route { dst, hop, nexthop_id, protocol: header.protocol.into() })
}

fn ip_of_route(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
