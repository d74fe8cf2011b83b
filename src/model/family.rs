use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::Serialize;

/// An address family. What differs between the two families is said here or
/// asked of the address itself; no other code branches on it without a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// Length of an address in bits.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    pub fn of(addr: IpAddr) -> Family {
        match addr {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    pub fn of_net(net: IpNetwork) -> Family {
        Family::of(net.ip())
    }

    /// An address of this family and no other, as text.
    pub(super) fn parse_addr(self, text: &str) -> Option<IpAddr> {
        text.parse().ok().filter(|addr| Family::of(*addr) == self)
    }

    /// An address and its prefix length, as `10.5.1.1/24` with `/` for
    /// `separator`. Stricter than ipnetwork's own: the length must be there, as
    /// a decimal number.
    pub(super) fn parse_net(self, text: &str, separator: char) -> Option<IpNetwork> {
        let (addr, prefix) = text.rsplit_once(separator)?;
        if !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        IpNetwork::new(self.parse_addr(addr)?, prefix.parse().ok()?).ok()
    }

    /// The address whose number is `number`, cut to the family's bits.
    pub(super) fn addr(self, number: u128) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
            Family::V6 => Ipv6Addr::from_bits(number).into(),
        }
    }
}

/// The address as a number, most significant octet first.
pub(super) fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// The prefix an address stands in: `10.5.1.1/24` in `10.5.1.0/24`.
pub(super) fn masked(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// An address as flannel's files take it: lower-case and compressed (RFC 5952),
/// yet never with a dotted quad, which flannel's subnet keys have no room for.
pub(super) fn text(addr: IpAddr) -> String {
    let IpAddr::V6(v6) = addr else { return addr.to_string() };
    match (v6.to_ipv4_mapped(), v6.segments()) {
        (Some(_), [.., high, low]) => format!("::ffff:{high:x}:{low:x}"),
        _ => v6.to_string(),
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// At most one value for each address family: how dual stack is written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PerFamily<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v4: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6: Option<T>,
}

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        PerFamily { v4: None, v6: None }
    }
}

impl<T> PerFamily<T> {
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    pub fn set(&mut self, family: Family, value: Option<T>) {
        match family {
            Family::V4 => self.v4 = value,
            Family::V6 => self.v6 = value,
        }
    }

    /// The families that have a value, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::BOTH.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// The value of one family alone.
    pub fn only(self, family: Family) -> PerFamily<T> {
        match family {
            Family::V4 => PerFamily { v4: self.v4, v6: None },
            Family::V6 => PerFamily { v4: None, v6: self.v6 },
        }
    }

    pub fn map<U>(self, mut f: impl FnMut(Family, T) -> U) -> PerFamily<U> {
        PerFamily { v4: self.v4.map(|v| f(Family::V4, v)), v6: self.v6.map(|v| f(Family::V6, v)) }
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl<T> PerFamily<Option<T>> {
    pub fn flatten(self) -> PerFamily<T> {
        PerFamily { v4: self.v4.flatten(), v6: self.v6.flatten() }
    }
}

impl<T> FromIterator<(Family, T)> for PerFamily<T> {
    fn from_iter<I: IntoIterator<Item = (Family, T)>>(iter: I) -> Self {
        let mut out = PerFamily::default();
        for (family, value) in iter {
            out.set(family, Some(value));
        }
        out
    }
}
