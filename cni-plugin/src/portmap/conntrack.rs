//! Connections that the kernel tracks (linux/netfilter/nfnetlink_conntrack.h).

use weft::kernel::netlink::{Cause, Connection, Request};

use crate::nfnetlink::{Attribute, Message, attributes, bytes, nested};
use crate::protocol::error::Result;

const IPCTNL_MSG_CT_GET: i32 = 1;
const IPCTNL_MSG_CT_DELETE: i32 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Of net/netfilter/nf_internals.h.
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;

/// Forget the UDP connections to these ports. A client that goes on sending would
/// otherwise stay with what the host did before the ports were mapped.
pub fn forget_udp(v4: bool, ports: &[u16]) -> Result<()> {
    let mut connection = Connection::open_netfilter()?;
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let tracked = udp(&mut connection, family).map_err(|cause| cause.of("tracked connections"))?;
    let stale: Vec<_> = tracked
        .iter()
        .filter_map(original)
        .filter(|tuple| destination_port(tuple).is_some_and(|port| ports.contains(&port)))
        .map(|tuple| {
            let tuple = [Attribute::new(CTA_TUPLE_ORIG | netlink_packet_core::NLA_F_NESTED, tuple.to_vec())];
            Request::change(message(IPCTNL_MSG_CT_DELETE, family, &tuple))
        })
        .collect();
    for result in connection.batch(stale) {
        // It may have ended by itself.
        result.or_else(|cause| match cause.errno() {
            Some(libc::ENOENT) => Ok(()),
            _ => Err(cause.of("tracked connection")),
        })?;
    }
    Ok(())
}

/// The kernel picks out UDP if it can (Linux 5.8), so that a host with many
/// connections need not list them all.
fn udp(connection: &mut Connection, family: u8) -> std::result::Result<Vec<Message>, Cause> {
    let protocol = nested(CTA_TUPLE_PROTO, &[bytes(CTA_PROTO_NUM, [libc::IPPROTO_UDP as u8])]);
    let all = [flags(CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_CTA_PROTO_NUM), flags(CTA_FILTER_REPLY_FLAGS, 0)];
    let filter = [nested(CTA_TUPLE_ORIG, &[protocol]), nested(CTA_FILTER, &all)];
    connection
        .dump(Request::dump(message(IPCTNL_MSG_CT_GET, family, &filter)))
        .or_else(|_| connection.dump(Request::dump(message(IPCTNL_MSG_CT_GET, family, &[]))))
}

fn original(message: &Message) -> Option<&[u8]> {
    message.attributes().find(|(kind, _)| *kind == CTA_TUPLE_ORIG).map(|(_, tuple)| tuple)
}

/// Of UDP.
fn destination_port(tuple: &[u8]) -> Option<u16> {
    let (_, protocol) = attributes(tuple).find(|(kind, _)| *kind == CTA_TUPLE_PROTO)?;
    let field = |wanted| attributes(protocol).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    if field(CTA_PROTO_NUM)? != [libc::IPPROTO_UDP as u8] {
        return None;
    }
    field(CTA_PROTO_DST_PORT)?.first_chunk().map(|port| u16::from_be_bytes(*port))
}

/// Flags of a filter are in the host's byte order, unlike all else.
fn flags(kind: u16, value: u32) -> Attribute {
    bytes(kind, value.to_ne_bytes())
}

fn message(kind: i32, family: u8, attributes: &[Attribute]) -> Message {
    Message::new(libc::NFNL_SUBSYS_CTNETLINK, kind, family, attributes)
}
