//! Messages of `NETLINK_NETFILTER` (linux/netfilter/nfnetlink.h), shared by
//! nf_tables and conntrack: a header of four bytes, then attributes whose
//! numbers are big-endian.

use std::convert::Infallible;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    NlasIterator,
};

pub type Attribute = DefaultNla;

/// `struct nfgenmsg` and what follows it.
#[derive(Clone, Debug)]
pub struct Message {
    kind: u16,
    family: u8,
    resource: u16,
    body: Vec<u8>,
}

const HEADER_LEN: usize = 4;
const NFNETLINK_V0: u8 = 0;

impl Message {
    /// A message of a subsystem, `NFNL_SUBSYS_*`, about one `NFPROTO_*`.
    pub fn new(subsystem: i32, kind: i32, family: u8, attributes: &[Attribute]) -> Message {
        Message { kind: ((subsystem << 8) | kind) as u16, family, resource: 0, body: encode(attributes) }
    }

    /// What begins or ends the transaction of a subsystem.
    pub fn batch(kind: i32, subsystem: i32) -> Message {
        Message { kind: kind as u16, family: 0, resource: subsystem as u16, body: Vec::new() }
    }

    pub fn attributes(&self) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(&self.body)
    }
}

/// Kinds and values, up to the first broken attribute.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    walk(bytes).map(|nla| (nla.kind, nla.value))
}

/// Whether all attributes `wanted` are among those `found`: the first of a kind as
/// the first of that kind there, and so on.
pub fn contain(found: &[u8], wanted: &[u8]) -> bool {
    walk(wanted).enumerate().all(|(index, nla)| {
        let nth = walk(wanted).take(index).filter(|before| before.kind == nla.kind).count();
        let found = attributes(found).filter(|(kind, _)| *kind == nla.kind).nth(nth);
        found.is_some_and(|(_, value)| match nla.is_nested {
            true => contain(value, nla.value),
            false => value == nla.value,
        })
    })
}

struct Nla<'a> {
    kind: u16,
    is_nested: bool,
    value: &'a [u8],
}

fn walk(bytes: &[u8]) -> impl Iterator<Item = Nla<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        // The iterator's own items borrow from the iterator, ours from `bytes`.
        let nla = NlasIterator::new(rest).next()?.ok()?;
        let (kind, is_nested, length) = (nla.kind(), nla.nested_flag(), nla.length() as usize);
        let value = rest.get(HEADER_LEN..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Nla { kind, is_nested, value })
    })
}

pub fn be32(kind: u16, value: u32) -> Attribute {
    Attribute::new(kind, value.to_be_bytes().to_vec())
}

pub fn be64(kind: u16, value: u64) -> Attribute {
    Attribute::new(kind, value.to_be_bytes().to_vec())
}

pub fn text(kind: u16, value: &str) -> Attribute {
    Attribute::new(kind, [value.as_bytes(), b"\0"].concat())
}

pub fn bytes(kind: u16, value: impl Into<Vec<u8>>) -> Attribute {
    Attribute::new(kind, value.into())
}

pub fn nested(kind: u16, inner: &[Attribute]) -> Attribute {
    Attribute::new(kind | NLA_F_NESTED, encode(inner))
}

pub fn encode(attributes: &[Attribute]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        buffer[..HEADER_LEN].copy_from_slice(&[self.family, NFNETLINK_V0, high, low]);
        buffer[HEADER_LEN..][..self.body.len()].copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Message, Infallible> {
        let (family, body) = match payload {
            [family, _, _, _, body @ ..] => (*family, body.to_vec()),
            _ => (0, Vec::new()),
        };
        Ok(Message { kind: header.message_type, family, resource: 0, body })
    }
}
