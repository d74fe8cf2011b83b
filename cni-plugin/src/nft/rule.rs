//! Rules, as the expressions that the program `nft` would compile them to, so
//! that it lists them in the words of the rule they stand for.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use weft::model::{IfName, Mac};

use super::{Chain, Family, nfta};
use crate::names;
use crate::nfnetlink::{Attribute, Message, attributes, be32, bytes, contain, encode, nested, text};

/// Which end of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    Equal,
    Unequal,
}

/// A rule to be appended to its chain. Each method adds one more condition or
/// statement to its end.
#[derive(Clone, Debug)]
pub struct Rule<'a> {
    pub chain: Chain<'a>,
    pub(super) expressions: Vec<Attribute>,
    pub(super) userdata: Vec<u8>,
    /// The rule holds for one IP version already.
    versioned: bool,
}

/// Types in a rule's userdata. The program `nft` knows 0 and 1 and passes over
/// the rest (libnftnl/udata.h).
pub(super) const UDATA_COMMENT: u8 = 0;
pub(super) const UDATA_OWNER: u8 = 0x77;
/// With its final NUL (`NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT_MAX: usize = 128;

impl<'a> Rule<'a> {
    pub fn new(chain: Chain<'a>) -> Rule<'a> {
        let versioned = matches!(chain.family, Family::Ip | Family::Ip6);
        Rule { chain, expressions: Vec::new(), userdata: Vec::new(), versioned }
    }

    /// `ip saddr 10.1.2.0/24`, `ip6 daddr != fd00::1`, ….
    pub fn address(mut self, end: End, is: Is, net: IpNetwork) -> Self {
        let (version, octets, [source, destination]) = match net.network() {
            IpAddr::V4(ip) => (libc::NFPROTO_IPV4, ip.octets().to_vec(), [12, 16]),
            IpAddr::V6(ip) => (libc::NFPROTO_IPV6, ip.octets().to_vec(), [8, 24]),
        };
        if !self.versioned {
            self = self.meta(libc::NFT_META_NFPROTO).compare(Is::Equal, vec![version as u8]);
            self.versioned = true;
        }
        let offset = if end == End::Source { source } else { destination };
        let (bits, all) = (u32::from(net.prefix()), octets.len());
        // A prefix of whole bytes needs no mask, save the empty one.
        if bits > 0 && bits.is_multiple_of(8) {
            let length = bits as usize / 8;
            let rule = self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length as u32);
            return rule.compare(is, octets[..length].to_vec());
        }
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, all as u32)
            .masked(match net.mask() {
                IpAddr::V4(mask) => mask.octets().to_vec(),
                IpAddr::V6(mask) => mask.octets().to_vec(),
            })
            .compare(is, octets)
    }

    /// `tcp dport 80`, where `protocol` is an `IPPROTO_*` with ports.
    pub fn destination_port(self, protocol: u8, port: u16) -> Self {
        self.meta(libc::NFT_META_L4PROTO)
            .compare(Is::Equal, vec![protocol])
            .payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
            .compare(Is::Equal, port.to_be_bytes().to_vec())
    }

    /// `fib daddr type local`.
    pub fn for_this_host(self) -> Self {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_DADDR: u32 = 1 << 1;
        self.expression(
            "fib",
            &[
                be32(nfta::FIB_DREG, REGISTER),
                be32(nfta::FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
                be32(nfta::FIB_FLAGS, NFTA_FIB_F_DADDR),
            ],
        )
        .compare(Is::Equal, u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec())
    }

    /// `iifname "veth0"`.
    pub fn arriving_by(self, link: IfName) -> Self {
        let mut name = link.to_string().into_bytes();
        name.resize(libc::IFNAMSIZ, 0);
        self.meta(libc::NFT_META_IIFNAME).compare(Is::Equal, name)
    }

    /// `ether saddr 02:00:00:00:00:01`, for a chain of the bridge family.
    pub fn sent_by(self, mac: Mac) -> Self {
        self.payload(libc::NFT_PAYLOAD_LL_HEADER, 6, 6).compare(Is::Equal, mac.0.to_vec())
    }

    pub fn masquerade(self) -> Self {
        self.expression("masq", &[])
    }

    /// `dnat to 10.1.2.3:80`.
    pub fn destination_nat(self, to: SocketAddr) -> Self {
        const NFT_NAT_DNAT: u32 = 1;
        let (family, ip) = match to.ip() {
            IpAddr::V4(ip) => (libc::NFPROTO_IPV4, ip.octets().to_vec()),
            IpAddr::V6(ip) => (libc::NFPROTO_IPV6, ip.octets().to_vec()),
        };
        let port_register = libc::NFT_REG_2 as u32;
        self.immediate(REGISTER, value(nfta::IMMEDIATE_DATA, ip))
            .immediate(port_register, value(nfta::IMMEDIATE_DATA, to.port().to_be_bytes().to_vec()))
            .expression(
                "nat",
                &[
                    be32(nfta::NAT_TYPE, NFT_NAT_DNAT),
                    be32(nfta::NAT_FAMILY, family as u32),
                    be32(nfta::NAT_REG_ADDR_MIN, REGISTER),
                    be32(nfta::NAT_REG_PROTO_MIN, port_register),
                ],
            )
    }

    pub fn jump(self, chain: &str) -> Self {
        self.verdict(libc::NFT_JUMP, Some(chain))
    }

    pub fn goto(self, chain: &str) -> Self {
        self.verdict(libc::NFT_GOTO, Some(chain))
    }

    /// Back to the chain that jumped here.
    pub fn back(self) -> Self {
        self.verdict(libc::NFT_RETURN, None)
    }

    pub fn drop(self) -> Self {
        self.verdict(libc::NF_DROP, None)
    }

    /// What `nft` lists as the rule's comment, cut to what the kernel takes.
    pub fn comment(self, comment: &str) -> Self {
        self.user_text(UDATA_COMMENT, comment)
    }

    /// Whose rule this is, in a field that `nft` does not show.
    pub fn owner(self, owner: &str) -> Self {
        self.user_text(UDATA_OWNER, owner)
    }

    /// Tells rules apart by what they do.
    pub(super) fn digest(&self) -> String {
        names::hash(&format!("{:?}", self.expressions), 32)
    }

    /// Whether the kernel lists this rule as that. It adds attributes to
    /// expressions, but no expressions.
    pub(super) fn is(&self, listed: &Message) -> bool {
        let found = listed.attributes().find(|(kind, _)| *kind == nfta::RULE_EXPRESSIONS);
        found.is_some_and(|(_, found)| {
            attributes(found).count() == self.expressions.len() && contain(found, &encode(&self.expressions))
        })
    }

    fn user_text(mut self, kind: u8, value: &str) -> Self {
        self.userdata.extend(user_text(kind, value));
        self
    }

    fn meta(self, key: i32) -> Self {
        self.expression("meta", &[be32(nfta::META_DREG, REGISTER), be32(nfta::META_KEY, key as u32)])
    }

    fn payload(self, base: i32, offset: u32, length: u32) -> Self {
        self.expression(
            "payload",
            &[
                be32(nfta::PAYLOAD_DREG, REGISTER),
                be32(nfta::PAYLOAD_BASE, base as u32),
                be32(nfta::PAYLOAD_OFFSET, offset),
                be32(nfta::PAYLOAD_LEN, length),
            ],
        )
    }

    fn masked(self, mask: Vec<u8>) -> Self {
        let length = mask.len();
        self.expression(
            "bitwise",
            &[
                be32(nfta::BITWISE_SREG, REGISTER),
                be32(nfta::BITWISE_DREG, REGISTER),
                be32(nfta::BITWISE_LEN, length as u32),
                value(nfta::BITWISE_MASK, mask),
                value(nfta::BITWISE_XOR, vec![0; length]),
            ],
        )
    }

    fn compare(self, is: Is, with: Vec<u8>) -> Self {
        let operation = if is == Is::Equal { libc::NFT_CMP_EQ } else { libc::NFT_CMP_NEQ };
        self.expression(
            "cmp",
            &[
                be32(nfta::CMP_SREG, REGISTER),
                be32(nfta::CMP_OP, operation as u32),
                value(nfta::CMP_DATA, with),
            ],
        )
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let mut verdict = vec![be32(nfta::VERDICT_CODE, code as u32)];
        verdict.extend(chain.map(|chain| text(nfta::VERDICT_CHAIN, chain)));
        let data = nested(nfta::IMMEDIATE_DATA, &[nested(nfta::DATA_VERDICT, &verdict)]);
        self.immediate(libc::NFT_REG_VERDICT as u32, data)
    }

    fn immediate(self, register: u32, data: Attribute) -> Self {
        self.expression("immediate", &[be32(nfta::IMMEDIATE_DREG, register), data])
    }

    fn expression(mut self, name: &str, data: &[Attribute]) -> Self {
        let inner = [text(nfta::EXPR_NAME, name), nested(nfta::EXPR_DATA, data)];
        self.expressions.push(nested(nfta::LIST_ELEM, &inner));
        self
    }
}

/// The one register that everything but a port goes through.
const REGISTER: u32 = libc::NFT_REG_1 as u32;

fn value(kind: u16, value: Vec<u8>) -> Attribute {
    nested(kind, &[bytes(nfta::DATA_VALUE, value)])
}

/// One entry of userdata: type, length, text with a final NUL.
pub(super) fn user_text(kind: u8, text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.floor_char_boundary(COMMENT_MAX - 1)];
    [&[kind, text.len() as u8 + 1], text, b"\0"].concat()
}

/// The text of an entry of that type.
pub(super) fn find_user_text(mut userdata: &[u8], wanted: u8) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        userdata = rest;
    }
    None
}
