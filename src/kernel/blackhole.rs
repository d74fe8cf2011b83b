//! Routes that drop what is sent to an address of this node's subnet that no
//! container has, instead of sending it out by the default route and getting it
//! back (flannel's `--ip-blackhole-route`).
//!
//! flannel gives them the default metric, where they take the place of the
//! bridge's own route, or find it taken. Ours have the worst metric there is:
//! any other route to the subnet goes first, whichever came first. They stand
//! outside `Desired`, whose routes all lead somewhere and have the default metric.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Connection, NetlinkError, Request};
use crate::desired::ROUTE_PROTOCOL;
use crate::model::Family;

const METRIC: u32 = u32::MAX;

/// Make blackhole routes of ours lead to `subnets` and to nothing else; flannel's
/// to the same go. Those that were changed, by name.
pub fn ensure(connection: &mut Connection, subnets: &[IpNetwork]) -> Result<Vec<String>, NetlinkError> {
    let mut changes = Vec::new();
    for family in Family::BOTH {
        let have = dump(connection, family)?;
        for subnet in subnets.iter().filter(|subnet| Family::of_net(**subnet) == family) {
            let wanted = Blackhole::ours(*subnet);
            if !have.contains(&wanted) {
                changes.push((wanted, true));
            }
        }
        let stale = have.into_iter().filter(|route| route.is_ours_or_flannels(subnets));
        changes.extend(stale.filter(|route| !route.is_wanted(subnets)).map(|route| (route, false)));
    }
    for (route, add) in &changes {
        let message = route.message();
        let request = match add {
            true => Request::create(RouteNetlinkMessage::NewRoute(message)),
            false => Request::change(RouteNetlinkMessage::DelRoute(message)),
        };
        match connection.request(request) {
            // As it should be, whoever was faster.
            Err(cause) if matches!(cause.errno(), Some(libc::EEXIST | libc::ESRCH)) => {}
            result => result.map_err(|cause| cause.of(format_args!("route blackhole {}", route.dst)))?,
        }
    }
    Ok(changes.iter().map(|(route, _)| route.to_string()).collect())
}

/// Blackhole routes of ours, and flannel's to `subnets`.
pub fn leftovers(connection: &mut Connection, subnets: &[IpNetwork]) -> Result<Vec<Blackhole>, NetlinkError> {
    let mut found = Vec::new();
    for family in Family::BOTH {
        found.extend(dump(connection, family)?);
    }
    found.retain(|route| route.is_ours_or_flannels(subnets));
    Ok(found)
}

/// Gone already is as good.
pub fn remove(connection: &mut Connection, route: &Blackhole) -> Result<(), NetlinkError> {
    match connection.request(Request::change(RouteNetlinkMessage::DelRoute(route.message()))) {
        Err(cause) if cause.errno() == Some(libc::ESRCH) => Ok(()),
        result => result.map_err(|cause| cause.of(route)),
    }
}

/// A route that drops what it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blackhole {
    dst: IpNetwork,
    metric: u32,
    protocol: u8,
}

impl fmt::Display for Blackhole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route blackhole {}", self.dst)
    }
}

impl Blackhole {
    fn ours(dst: IpNetwork) -> Blackhole {
        Blackhole { dst, metric: METRIC, protocol: ROUTE_PROTOCOL }
    }

    fn is_wanted(&self, subnets: &[IpNetwork]) -> bool {
        subnets.iter().any(|subnet| *self == Blackhole::ours(*subnet))
    }

    fn is_ours_or_flannels(&self, subnets: &[IpNetwork]) -> bool {
        let default_metric = if self.dst.is_ipv4() { 0 } else { 1024 };
        let flannels = u8::from(RouteProtocol::Boot) == self.protocol
            && self.metric == default_metric
            && subnets.contains(&self.dst);
        self.protocol == ROUTE_PROTOCOL || flannels
    }

    fn of(message: &RouteMessage) -> Option<Blackhole> {
        let header = &message.header;
        let (mut dst, mut metric, mut table) = (None, 0, u32::from(header.table));
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => dst = Some(IpAddr::from(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => dst = Some(IpAddr::from(*ip)),
                RouteAttribute::Priority(value) => metric = *value,
                RouteAttribute::Table(value) => table = *value,
                _ => {}
            }
        }
        // An old kernel does not mind what the dump asked for.
        let asked_for = header.kind == RouteType::BlackHole && table == u32::from(RouteHeader::RT_TABLE_MAIN);
        let dst = IpNetwork::new(dst?, header.destination_prefix_length).ok()?;
        asked_for.then(|| Blackhole { dst, metric, protocol: header.protocol.into() })
    }

    fn message(&self) -> RouteMessage {
        let mut message = blackholes(Family::of_net(self.dst));
        message.header.destination_prefix_length = self.dst.prefix();
        message.header.protocol = self.protocol.into();
        message.attributes =
            vec![RouteAttribute::Destination(self.dst.ip().into()), RouteAttribute::Priority(self.metric)];
        message
    }
}

fn dump(connection: &mut Connection, family: Family) -> Result<Vec<Blackhole>, NetlinkError> {
    let request = Request::dump(RouteNetlinkMessage::GetRoute(blackholes(family)));
    let messages: Vec<RouteNetlinkMessage> = match connection.dump(request) {
        Ok(messages) => messages,
        // A table that has never been written to, or a family switched off.
        Err(cause) if matches!(cause.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => return Ok(vec![]),
        Err(cause) => return Err(cause.of(format_args!("{family} blackhole routes"))),
    };
    let of = |message: &RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewRoute(message) => Blackhole::of(message),
        _ => None,
    };
    Ok(messages.iter().filter_map(of).collect())
}

fn blackholes(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::BlackHole;
    message
}
