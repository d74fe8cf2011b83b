//! Ops as rtnetlink requests.

use std::net::IpAddr;

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::netlink::Request;
use super::nexthop::{NexthopAttribute, NexthopHeader, NexthopMessage, NexthopNetlinkMessage};
use crate::desired::{LinkKind, LinkSpec, Nexthop, ROUTE_PROTOCOL, VxlanSpec};
use crate::model::{Family, IfName, Mac};
use ipnetwork::IpNetwork;

/// Seconds after which a learnt entry is forgotten: the kernel's default, and
/// what flannel sets.
const AGEING: u32 = 300;

pub(super) fn get_link(name: IfName) -> Request {
    Request::get(RouteNetlinkMessage::GetLink(without_statistics(LinkUnspec::new_with_name(name.as_str()))))
}

pub(super) fn get_link_at(index: u32) -> Request {
    Request::get(RouteNetlinkMessage::GetLink(without_statistics(LinkUnspec::new_with_index(index))))
}

fn without_statistics(link: LinkMessageBuilder<LinkUnspec>) -> LinkMessage {
    link.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])).build()
}

/// `underlay` is the number of the link named in the spec.
pub(super) fn add_link(name: IfName, spec: &LinkSpec, underlay: u32) -> Request {
    let LinkKind::Vxlan(vxlan) = &spec.kind;
    let link = LinkVxlan::new(name.as_str(), vxlan.vni)
        .dev(underlay)
        .port(vxlan.port)
        .learning(vxlan.learning)
        .ageing(AGEING)
        .address(spec.mac.0.to_vec())
        .mtu(spec.mtu)
        .up();
    let link = match vxlan.local {
        IpAddr::V4(local) => link.local(local),
        IpAddr::V6(local) => link.local6(local),
    };
    let link = if vxlan.gbp { link.append_info_data(InfoVxlan::Gbp) } else { link };
    Request::create(RouteNetlinkMessage::NewLink(link.build()))
}

/// MAC, MTU, and up.
pub(super) fn set_link(index: u32, spec: &LinkSpec) -> Request {
    let link = LinkUnspec::new_with_index(index).address(spec.mac.0.to_vec()).mtu(spec.mtu).up();
    Request::change(RouteNetlinkMessage::NewLink(link.build()))
}

/// What can be changed of a tunnel; `underlay` is the number of the link named in
/// the spec. The kernel refuses an MTU in the same
/// request (`vxlan_nl2conf()` in drivers/net/vxlan/vxlan_core.c).
pub(super) fn set_vxlan(index: u32, spec: &LinkSpec, underlay: u32) -> Request {
    let LinkKind::Vxlan(VxlanSpec { learning, local, .. }) = spec.kind;
    let local = match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let link =
        LinkMessageBuilder::<LinkVxlan>::new_with_info_kind(InfoKind::Vxlan).index(index).set_info_data(
            InfoData::Vxlan(vec![InfoVxlan::Learning(learning), InfoVxlan::Link(underlay), local]),
        );
    Request::change(RouteNetlinkMessage::NewLink(link.build()))
}

pub(super) fn del_link(index: u32) -> Request {
    Request::change(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build()))
}

pub(super) fn add_address(link: u32, addr: IpNetwork) -> Request {
    Request::replace(RouteNetlinkMessage::NewAddress(address(link, addr)))
}

pub(super) fn del_address(link: u32, addr: IpNetwork) -> Request {
    Request::change(RouteNetlinkMessage::DelAddress(address(link, addr)))
}

fn address(link: u32, addr: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(Family::of_net(addr));
    message.header.prefix_len = addr.prefix();
    message.header.index = link;
    // On a tunnel without multicast nobody could answer duplicate detection; it
    // would only keep the address from being used for a second.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(addr.ip()), AddressAttribute::Address(addr.ip())];
    message
}

pub(super) fn set_neighbour(link: u32, ip: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour(link, ip);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::replace(RouteNetlinkMessage::NewNeighbour(message))
}

pub(super) fn del_neighbour(link: u32, ip: IpAddr) -> Request {
    Request::change(RouteNetlinkMessage::DelNeighbour(neighbour(link, ip)))
}

fn neighbour(link: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(Family::of(ip));
    message.header.ifindex = link;
    message.header.kind = RouteType::Unspec;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    message
}

pub(super) fn set_fdb(link: u32, mac: Mac, dst: IpAddr) -> Request {
    let mut message = fdb(link, mac, dst);
    message.header.state = NeighbourState::Permanent;
    // For a MAC that may have several destinations (all-zero, multicast) the
    // kernel knows no replacement.
    let message = RouteNetlinkMessage::NewNeighbour(message);
    if mac.is_unicast() { Request::replace(message) } else { Request::append(message) }
}

pub(super) fn del_fdb(link: u32, mac: Mac, dst: IpAddr) -> Request {
    Request::change(RouteNetlinkMessage::DelNeighbour(fdb(link, mac, dst)))
}

fn fdb(link: u32, mac: Mac, dst: IpAddr) -> NeighbourMessage {
    let mut message = neighbour(link, dst);
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

pub(super) fn set_nexthop(id: u32, link: u32, nexthop: Nexthop) -> Request {
    let header = NexthopHeader {
        family: family(Family::of(nexthop.via)),
        protocol: RouteProtocol::Other(ROUTE_PROTOCOL),
        flags: if nexthop.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..NexthopHeader::default()
    };
    let attributes =
        vec![NexthopAttribute::Id(id), NexthopAttribute::Oif(link), NexthopAttribute::Gateway(nexthop.via)];
    Request::replace(NexthopNetlinkMessage::New(NexthopMessage { header, attributes }))
}

pub(super) fn del_nexthop(id: u32) -> Request {
    let attributes = vec![NexthopAttribute::Id(id)];
    Request::change(NexthopNetlinkMessage::Del(NexthopMessage { attributes, ..NexthopMessage::default() }))
}

/// By way of a nexthop object. Its family is that of the destination.
pub(super) fn set_route_by_id(dst: IpNetwork, id: u32) -> Request {
    let mut message = route(dst, ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::NhId(id));
    Request::replace(RouteNetlinkMessage::NewRoute(message))
}

pub(super) fn set_route(dst: IpNetwork, link: u32, nexthop: Nexthop) -> Request {
    let mut message = route(dst, ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    if nexthop.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Gateway(nexthop.via.into()));
    message.attributes.push(RouteAttribute::Oif(link));
    Request::replace(RouteNetlinkMessage::NewRoute(message))
}

/// The one with the default metric and that protocol.
pub(super) fn del_route(dst: IpNetwork, protocol: u8) -> Request {
    let mut message = route(dst, protocol);
    message.header.scope = RouteScope::NoWhere;
    if dst.is_ipv6() {
        message.attributes.push(RouteAttribute::Priority(1024));
    }
    Request::change(RouteNetlinkMessage::DelRoute(message))
}

fn route(dst: IpNetwork, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(Family::of_net(dst));
    message.header.destination_prefix_length = dst.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol.into();
    message.attributes = vec![RouteAttribute::Destination(dst.ip().into())];
    message
}

pub(super) fn dump_addresses(link: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = link;
    Request::dump(RouteNetlinkMessage::GetAddress(message))
}

pub(super) fn dump_neighbours(family_: Family, link: u32) -> Request {
    Request::dump(neighbours_of(family(family_), link))
}

pub(super) fn dump_fdb(link: u32) -> Request {
    Request::dump(neighbours_of(AddressFamily::Bridge, link))
}

fn neighbours_of(family: AddressFamily, link: u32) -> impl NetlinkSerializable {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.kind = RouteType::Unspec;
    message.attributes = vec![NeighbourAttribute::IfIndex(link)];
    RouteNetlinkMessage::GetNeighbour(message)
}

pub(super) fn dump_nexthops() -> Request {
    Request::dump(NexthopNetlinkMessage::Get(NexthopMessage::default()))
}

/// Of the main table.
pub(super) fn dump_routes(family_: Family) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(family_);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    Request::dump(RouteNetlinkMessage::GetRoute(message))
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
