//! The codec of `RTM_{NEW,DEL,GET}NEXTHOP` (linux/nexthop.h), which
//! netlink-packet-route does not have. Written as that crate writes its own
//! messages, so that it can move there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, Nla, NlaBuffer, NlasIterator, Parseable, parse_ip, parse_u16, parse_u32,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteFlags, RouteProtocol};

pub const RTM_NEWNEXTHOP: u16 = 104;
pub const RTM_DELNEXTHOP: u16 = 105;
pub const RTM_GETNEXTHOP: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_MASTER: u16 = 10;
const NHA_FDB: u16 = 11;

const HEADER_LEN: usize = 8;
const GROUP_ENTRY_LEN: usize = 8;

/// What a message asks for or reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NexthopNetlinkMessage {
    New(NexthopMessage),
    Del(NexthopMessage),
    Get(NexthopMessage),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NexthopMessage {
    pub header: NexthopHeader,
    pub attributes: Vec<NexthopAttribute>,
}

/// `struct nhmsg`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NexthopHeader {
    pub family: AddressFamily,
    /// Set by the kernel; 0 in requests.
    pub scope: u8,
    pub protocol: RouteProtocol,
    /// `RTNH_F_*`; a request may hold `RTNH_F_ONLINK` alone.
    pub flags: RouteFlags,
}

/// `NHA_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NexthopAttribute {
    Id(u32),
    Group(Vec<NexthopGroupEntry>),
    GroupType(u16),
    Blackhole,
    Oif(u32),
    Gateway(IpAddr),
    Master(u32),
    Fdb,
    Other(DefaultNla),
}

/// `struct nexthop_grp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NexthopGroupEntry {
    pub id: u32,
    /// One less than the weight that `ip nexthop` shows.
    pub weight: u8,
    /// The upper byte of the weight (Linux 6.12).
    pub weight_high: u8,
}

impl NetlinkSerializable for NexthopNetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::New(_) => RTM_NEWNEXTHOP,
            Self::Del(_) => RTM_DELNEXTHOP,
            Self::Get(_) => RTM_GETNEXTHOP,
        }
    }

    fn buffer_len(&self) -> usize {
        self.message().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.message().emit(buffer);
    }
}

impl NetlinkDeserializable for NexthopNetlinkMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let message = NexthopMessage::parse(payload)?;
        match header.message_type {
            RTM_NEWNEXTHOP => Ok(Self::New(message)),
            RTM_DELNEXTHOP => Ok(Self::Del(message)),
            RTM_GETNEXTHOP => Ok(Self::Get(message)),
            other => Err(DecodeError::from(format!("{other} is not a nexthop message"))),
        }
    }
}

impl NexthopNetlinkMessage {
    pub fn message(&self) -> &NexthopMessage {
        let (Self::New(message) | Self::Del(message) | Self::Get(message)) = self;
        message
    }
}

impl Emitable for NexthopMessage {
    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let NexthopHeader { family, scope, protocol, flags } = &self.header;
        buffer[..4].copy_from_slice(&[u8::from(*family), *scope, u8::from(*protocol), 0]);
        buffer[4..HEADER_LEN].copy_from_slice(&flags.bits().to_ne_bytes());
        self.attributes.as_slice().emit(&mut buffer[HEADER_LEN..]);
    }
}

impl Parseable<[u8]> for NexthopMessage {
    fn parse(buffer: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[family, scope, protocol, _, f0, f1, f2, f3], rest)) =
            buffer.split_first_chunk::<HEADER_LEN>()
        else {
            return Err(DecodeError::invalid_buffer("nhmsg", buffer.len(), HEADER_LEN));
        };
        let header = NexthopHeader {
            family: family.into(),
            scope,
            protocol: protocol.into(),
            flags: RouteFlags::from_bits_retain(u32::from_ne_bytes([f0, f1, f2, f3])),
        };
        let attributes = NlasIterator::new(rest)
            .map(|nla| NexthopAttribute::parse(&nla?))
            .collect::<Result<_, DecodeError>>()?;
        Ok(NexthopMessage { header, attributes })
    }
}

impl Nla for NexthopAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Id(_) | Self::Oif(_) | Self::Master(_) => 4,
            Self::Group(entries) => entries.len() * GROUP_ENTRY_LEN,
            Self::GroupType(_) => 2,
            Self::Blackhole | Self::Fdb => 0,
            Self::Gateway(IpAddr::V4(_)) => size_of::<Ipv4Addr>(),
            Self::Gateway(IpAddr::V6(_)) => size_of::<Ipv6Addr>(),
            Self::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Id(_) => NHA_ID,
            Self::Group(_) => NHA_GROUP,
            Self::GroupType(_) => NHA_GROUP_TYPE,
            Self::Blackhole => NHA_BLACKHOLE,
            Self::Oif(_) => NHA_OIF,
            Self::Gateway(_) => NHA_GATEWAY,
            Self::Master(_) => NHA_MASTER,
            Self::Fdb => NHA_FDB,
            Self::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Id(value) | Self::Oif(value) | Self::Master(value) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Group(entries) => {
                for (entry, out) in entries.iter().zip(buffer.chunks_exact_mut(GROUP_ENTRY_LEN)) {
                    out[..4].copy_from_slice(&entry.id.to_ne_bytes());
                    out[4..].copy_from_slice(&[entry.weight, entry.weight_high, 0, 0]);
                }
            }
            Self::GroupType(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::Blackhole | Self::Fdb => {}
            Self::Gateway(IpAddr::V4(addr)) => buffer.copy_from_slice(&addr.octets()),
            Self::Gateway(IpAddr::V6(addr)) => buffer.copy_from_slice(&addr.octets()),
            Self::Other(nla) => nla.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for NexthopAttribute {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<Self, DecodeError> {
        let value = nla.value();
        Ok(match nla.kind() {
            NHA_ID => Self::Id(parse_u32(value).context("invalid NHA_ID")?),
            NHA_GROUP => Self::Group(group_entries(value)?),
            NHA_GROUP_TYPE => Self::GroupType(parse_u16(value).context("invalid NHA_GROUP_TYPE")?),
            NHA_BLACKHOLE => Self::Blackhole,
            NHA_OIF => Self::Oif(parse_u32(value).context("invalid NHA_OIF")?),
            NHA_GATEWAY => Self::Gateway(parse_ip(value).context("invalid NHA_GATEWAY")?),
            NHA_MASTER => Self::Master(parse_u32(value).context("invalid NHA_MASTER")?),
            NHA_FDB => Self::Fdb,
            _ => Self::Other(DefaultNla::parse(nla).context("invalid nexthop attribute")?),
        })
    }
}

fn group_entries(value: &[u8]) -> Result<Vec<NexthopGroupEntry>, DecodeError> {
    let (entries, rest) = value.as_chunks::<GROUP_ENTRY_LEN>();
    if !rest.is_empty() {
        return Err(DecodeError::invalid_buffer("NHA_GROUP", value.len(), GROUP_ENTRY_LEN));
    }
    let entry = |&[a, b, c, d, weight, weight_high, _, _]: &[u8; GROUP_ENTRY_LEN]| NexthopGroupEntry {
        id: u32::from_ne_bytes([a, b, c, d]),
        weight,
        weight_high,
    };
    Ok(entries.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};

    use super::*;

    /// `ip nexthop add id 5 via 10.1.2.3 dev v0 onlink protocol 87`, as the
    /// kernel (6.18) reported it.
    const GATEWAY: &[u8] = &[
        0x30, 0, 0, 0, 0x68, 0, 5, 6, 0xd8, 0x23, 3, 0x6b, 0x6f, 0x60, 0, 0, // nlmsghdr
        2, 0xfd, 0x57, 0, 4, 0, 0, 0, // AF_INET, scope link, protocol 87, RTNH_F_ONLINK
        8, 0, 1, 0, 5, 0, 0, 0, // NHA_ID 5
        8, 0, 5, 0, 3, 0, 0, 0, // NHA_OIF 3
        8, 0, 6, 0, 10, 1, 2, 3, // NHA_GATEWAY 10.1.2.3
    ];

    /// `ip nexthop add id 8 group 5,3`.
    const GROUP: &[u8] = &[
        0x3c, 0, 0, 0, 0x68, 0, 5, 6, 0xd8, 0x23, 3, 0x6b, 0x75, 0x60, 0, 0, // nlmsghdr
        0, 0, 0, 0, 0, 0, 0, 0, // AF_UNSPEC
        8, 0, 1, 0, 8, 0, 0, 0, // NHA_ID 8
        6, 0, 3, 0, 0, 0, 0, 0, // NHA_GROUP_TYPE multipath
        12, 0, 2, 0, 5, 0, 0, 0, 2, 0, 0, 0, // NHA_GROUP: id 5, weight 3
        8, 0, 14, 0, 0, 0, 0, 0x80, // NHA_OP_FLAGS
    ];

    /// `ip nexthop add id 9 blackhole`.
    const BLACKHOLE: &[u8] = &[
        0x24, 0, 0, 0, 0x68, 0, 5, 6, 0xd8, 0x23, 3, 0x6b, 0x77, 0x60, 0, 0, // nlmsghdr
        2, 0, 0, 0, 0, 0, 0, 0, // AF_INET
        8, 0, 1, 0, 9, 0, 0, 0, // NHA_ID 9
        4, 0, 4, 0, // NHA_BLACKHOLE
    ];

    #[test]
    fn captured_messages_decode_and_encode_to_the_same_bytes() {
        for bytes in [GATEWAY, GROUP, BLACKHOLE] {
            let message = NetlinkMessage::<NexthopNetlinkMessage>::deserialize(bytes).unwrap();
            let mut again = vec![0; message.buffer_len()];
            message.serialize(&mut again);
            assert_eq!(again, bytes);
        }
    }

    #[test]
    fn attributes_mean_what_the_header_file_says() {
        let gateway = decode(GATEWAY);
        assert_eq!(gateway.header.protocol, RouteProtocol::Other(87));
        assert_eq!(gateway.header.flags, RouteFlags::Onlink);
        assert_eq!(
            gateway.attributes,
            [
                NexthopAttribute::Id(5),
                NexthopAttribute::Oif(3),
                NexthopAttribute::Gateway([10, 1, 2, 3].into())
            ]
        );
        let entry = NexthopGroupEntry { id: 5, weight: 2, weight_high: 0 };
        assert!(decode(GROUP).attributes.contains(&NexthopAttribute::Group(vec![entry])));
        assert!(decode(BLACKHOLE).attributes.contains(&NexthopAttribute::Blackhole));
    }

    #[test]
    fn a_cut_off_message_is_an_error() {
        for length in 0..GATEWAY.len() - 16 {
            let cut = NexthopMessage::parse(&GATEWAY[16..16 + length]);
            // Between two attributes a message may well end.
            assert_eq!(cut.is_ok(), length >= HEADER_LEN && length % 8 == 0, "{length} bytes");
        }
    }

    fn decode(bytes: &[u8]) -> NexthopMessage {
        match NetlinkMessage::deserialize(bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(NexthopNetlinkMessage::New(message)) => message,
            other => panic!("{other:?}"),
        }
    }
}
