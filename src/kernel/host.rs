//! This host as it stands before the fabric comes: links, their addresses, and
//! the main table's routes. It tells which uplink to take, and what the cluster's
//! network would overlap.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Connection, NetlinkError, Request};
use super::request;
use crate::model::{Family, IfName, Mac};

/// What this host's kernel says of links, addresses and routes.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub links: Vec<HostLink>,
    /// Unicast routes of the main table; those of default routes have prefix
    /// length 0.
    pub routes: Vec<HostRoute>,
}

#[derive(Clone, Debug)]
pub struct HostLink {
    pub index: u32,
    pub name: IfName,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub addresses: Vec<HostAddress>,
}

#[derive(Clone, Copy, Debug)]
pub struct HostAddress {
    pub net: IpNetwork,
    pub link_local: bool,
    pub permanent: bool,
    pub temporary: bool,
    /// Deprecated, tentative or failed duplicate detection: not to be used.
    pub unusable: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct HostRoute {
    pub dst: IpNetwork,
    pub link: u32,
    /// The gateway; `None` also where there are several.
    pub via: Option<IpAddr>,
    pub metric: u32,
    pub protocol: u8,
}

/// Reads the namespace of the calling thread.
pub fn read() -> Result<Host, NetlinkError> {
    let mut conn = Connection::open()?;
    let mut host = Host { links: links(&mut conn)?, routes: routes(&mut conn)? };
    for (index, address) in addresses(&mut conn)? {
        if let Some(link) = host.links.iter_mut().find(|link| link.index == index) {
            link.addresses.push(address);
        }
    }
    Ok(host)
}

/// Whether the namespace of the calling thread has that link.
pub fn has_link(name: IfName) -> Result<bool, NetlinkError> {
    match Connection::open()?.get::<RouteNetlinkMessage>(request::get_link(name)) {
        Ok(_) => Ok(true),
        Err(cause) if cause.errno() == Some(libc::ENODEV) => Ok(false),
        Err(cause) => Err(cause.of(format_args!("link {name}"))),
    }
}

/// How the kernel reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    pub link: u32,
    /// The address that packets leave with.
    pub source: Option<IpAddr>,
}

/// How the kernel reaches `target`, as `ip route get` says.
pub fn reach(target: IpAddr) -> Result<Option<Reach>, NetlinkError> {
    let mut conn = Connection::open()?;
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(Family::of(target));
    message.header.destination_prefix_length = Family::of(target).bits();
    message.attributes.push(RouteAttribute::Destination(target.into()));
    match conn.get(Request::get(RouteNetlinkMessage::GetRoute(message))) {
        Ok(RouteNetlinkMessage::NewRoute(route)) => {
            Ok(output_link(&route).map(|link| Reach { link, source: source(&route) }))
        }
        Ok(_) => Ok(None),
        Err(cause) if matches!(cause.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(None),
        Err(cause) => Err(cause.of(format!("route to {target}"))),
    }
}

fn links(conn: &mut Connection) -> Result<Vec<HostLink>, NetlinkError> {
    let request = Request::dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    conn.dump_each(request, link).map_err(|cause| cause.of("links"))
}

fn link(message: RouteNetlinkMessage) -> Option<HostLink> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut name: Option<IfName> = None;
    let (mut mtu, mut mac) = (0, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Mtu(value) => mtu = value,
            LinkAttribute::Address(octets) => mac = octets.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(HostLink { index: message.header.index, name: name?, mtu, mac, addresses: Vec::new() })
}

fn addresses(conn: &mut Connection) -> Result<Vec<(u32, HostAddress)>, NetlinkError> {
    let request = Request::dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
    conn.dump_each(request, address).map_err(|cause| cause.of("addresses"))
}

fn address(message: RouteNetlinkMessage) -> Option<(u32, HostAddress)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => peer = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    let net = IpNetwork::new(local.or(peer)?, message.header.prefix_len).ok()?;
    let unusable = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    // IFA_F_TEMPORARY is IPv6's reading of IFA_F_SECONDARY (linux/if_addr.h).
    let temporary = net.is_ipv6() && flags.contains(AddressFlags::Secondary);
    Some((
        message.header.index,
        HostAddress {
            net,
            link_local: message.header.scope == AddressScope::Link,
            permanent: flags.contains(AddressFlags::Permanent),
            temporary,
            unusable: flags.intersects(unusable),
        },
    ))
}

fn routes(conn: &mut Connection) -> Result<Vec<HostRoute>, NetlinkError> {
    let mut routes = Vec::new();
    for family in Family::BOTH {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(family);
        let request = Request::dump(RouteNetlinkMessage::GetRoute(message));
        let found = conn.dump_each(request, |message| route(message, family));
        routes.extend(found.map_err(|cause| cause.of(format!("{family} routes")))?);
    }
    Ok(routes)
}

fn route(message: RouteNetlinkMessage, family: Family) -> Option<HostRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    let dst =
        IpNetwork::new(destination.unwrap_or(family.unspecified()), message.header.destination_prefix_length)
            .ok()?;
    // Link-local prefixes stand on every link and say nothing of reach.
    if matches!(dst.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return None;
    }
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    Some(HostRoute {
        dst,
        link: output_link(&message).unwrap_or(0),
        via: gateway(&message),
        metric: metric.unwrap_or(0),
        protocol: message.header.protocol.into(),
    })
}

fn gateway(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

fn output_link(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

fn source(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

fn family_of(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
