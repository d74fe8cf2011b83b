use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

use super::backend_data::BackendData;
use super::family::text;
use super::gojson::{FieldError, Fields, clip, compact};
use super::{Family, PerFamily};

/// A leased subnet, by family: what a lease is keyed by in the store. At least
/// one family is present, host bits are zero, and the prefix is 1 to 31 bits
/// long for IPv4, 1 to 127 for IPv6 (flannel pkg/subnet/subnet.go,
/// `ParseSubnetKey`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey(pub(super) PerFamily<IpNetwork>);

impl SubnetKey {
    /// `None` where `nets` breaks a rule above.
    pub fn new(nets: PerFamily<IpNetwork>) -> Option<SubnetKey> {
        let valid = |(family, net): (Family, &IpNetwork)| {
            Family::of_net(*net) == family && check(family, *net).is_ok()
        };
        (!nets.is_empty() && nets.iter().all(valid)).then_some(SubnetKey(nets))
    }

    pub fn net(&self, family: Family) -> Option<IpNetwork> {
        self.0.get(family).copied()
    }

    /// The subnet of each family, IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = (Family, IpNetwork)> {
        self.0.iter().map(|(family, net)| (family, *net))
    }

    /// Whether an address of one lies in the other.
    pub fn overlaps(&self, other: &SubnetKey) -> bool {
        self.nets()
            .any(|(family, a)| other.net(family).is_some_and(|b| a.contains(b.ip()) || b.contains(a.ip())))
    }
}

/// As it stands in the store: `10.5.1.0-24`, `10.5.1.0-24&fd00:5:1::-64`, or
/// `fd00:5:1::-64` for IPv6 alone.
impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.nets().map(|(_, net)| key_part(net)).collect();
        f.pad(&parts.join("&"))
    }
}

/// Takes what `Display` writes, so that a subnet has one key, and for IPv6 alone
/// also what flannel writes (`0.0.0.0-0&fd00:5:1::-64`). flannel itself takes
/// host bits and any spelling of an IPv6 address, and makes two leases of them.
impl FromStr for SubnetKey {
    type Err = KeyError;

    fn from_str(key: &str) -> Result<SubnetKey, KeyError> {
        let (v4, v6) = match key.split_once('&') {
            Some(("0.0.0.0-0", v6)) => (None, Some(v6)),
            Some((v4, v6)) => (Some(v4), Some(v6)),
            None if key.contains(':') => (None, Some(key)),
            None => (Some(key), None),
        };
        let parse = |family, part: Option<&str>| {
            let error = |reason| KeyError { key: clip(key), reason };
            part.map(|part| parse_key_part(family, part).map_err(error)).transpose()
        };
        Ok(SubnetKey(PerFamily { v4: parse(Family::V4, v4)?, v6: parse(Family::V6, v6)? }))
    }
}

impl Serialize for SubnetKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

fn parse_key_part(family: Family, part: &str) -> Result<IpNetwork, String> {
    let net = family.parse_net(part, '-').ok_or_else(|| {
        let form = match family {
            Family::V4 => "10.5.1.0-24",
            Family::V6 => "fd00:5:1::-64",
        };
        format!("{:?} is not an {family} subnet of the form {form}", clip(part))
    })?;
    check(family, net)?;
    let canonical = key_part(net);
    if canonical != part {
        return Err(format!("{:?} must be written {canonical}", clip(part)));
    }
    Ok(net)
}

fn key_part(net: IpNetwork) -> String {
    format!("{}-{}", text(net.ip()), net.prefix())
}

fn check(family: Family, net: IpNetwork) -> Result<(), String> {
    let longest = family.bits() - 1;
    if !(1..=longest).contains(&net.prefix()) {
        return Err(format!("an {family} prefix length is 1 to {longest}, not {}", net.prefix()));
    }
    if net.ip() != net.network() {
        return Err(format!("host bits of {net} are set; the subnet is {}/{}", net.network(), net.prefix()));
    }
    Ok(())
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{key:?} is not a subnet key: {reason}")]
pub struct KeyError {
    pub key: String,
    pub reason: String,
}

/// What a node publishes with its lease (flannel pkg/lease/lease.go). Of the
/// usual leases nothing lies elsewhere on the heap: a node holds everyone's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// The node's identity and its tunnel endpoint.
    pub public_ip: PerFamily<IpAddr>,
    /// `vxlan`, `host-gw`, …; empty for `udp` and `alloc`.
    pub backend_type: Cow<'static, str>,
    /// What the backend says to its peers, by family (`BackendData` and
    /// `BackendV6Data`).
    pub backend_data: PerFamily<BackendData>,
}

/// Types of backend that leases are known to name.
const BACKEND_TYPES: [&str; 7] = ["vxlan", "host-gw", "wireguard", "ipip", "ipsec", "extension", "udp"];

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LeaseError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("{key}: {value}: expected {expected}")]
    Value { key: &'static str, value: String, expected: String },
}

impl From<FieldError> for LeaseError {
    fn from(e: FieldError) -> Self {
        match e {
            FieldError::Json(reason) => LeaseError::Json(reason),
            FieldError::Value { key, value, expected } => LeaseError::Value { key, value, expected },
        }
    }
}

impl LeaseAttrs {
    /// Takes a lease's value in the store. A missing public address, or one of
    /// zeroes, is none.
    pub fn parse(json: &[u8]) -> Result<LeaseAttrs, LeaseError> {
        let fields = Fields::parse(&String::from_utf8_lossy(json))?;
        let public_ip = |family: Family, key, pointer| {
            let expected = format!("an {family} address");
            let addr = fields.parsed(key, pointer, |text| family.parse_addr(text), &expected)?;
            Ok::<_, FieldError>(addr.filter(|addr| !addr.is_unspecified()))
        };
        let data = |key| fields.raw(key).map(BackendData::from);
        let kind = fields.string("BackendType")?.unwrap_or_default();
        let known = BACKEND_TYPES.into_iter().find(|known| *known == kind);
        Ok(LeaseAttrs {
            public_ip: PerFamily {
                v4: public_ip(Family::V4, "PublicIP", false)?,
                v6: public_ip(Family::V6, "PublicIPv6", true)?,
            },
            backend_type: known.map_or(Cow::Owned(kind), Cow::Borrowed),
            backend_data: PerFamily { v4: data("BackendData"), v6: data("BackendV6Data") },
        })
    }

    /// A lease's value in the store, byte for byte as flannel's `json.Marshal`
    /// writes it.
    pub fn to_json(&self) -> String {
        let v4 = self.public_ip.v4.unwrap_or(Family::V4.unspecified());
        let v6 = self.public_ip.v6.map_or("null".to_owned(), |addr| format!("\"{}\"", text(addr)));
        let mut json = format!("{{\"PublicIP\":\"{v4}\",\"PublicIPv6\":{v6}");
        if !self.backend_type.is_empty() {
            json += &format!(",\"BackendType\":{}", Value::from(&*self.backend_type));
        }
        for (family, data) in self.backend_data.iter() {
            let key = match family {
                Family::V4 => "BackendData",
                Family::V6 => "BackendV6Data",
            };
            json += &format!(",\"{key}\":{data}");
        }
        compact(&(json + "}"))
    }
}

/// The object that the store holds; for serde_json alone.
impl Serialize for LeaseAttrs {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_json()).map_err(S::Error::custom)?.serialize(s)
    }
}

/// A node's subnet and what it publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    pub key: SubnetKey,
    pub attrs: LeaseAttrs,
}
