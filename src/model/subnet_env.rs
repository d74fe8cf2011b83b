use std::fmt;

use ipnetwork::IpNetwork;
use serde::Serialize;
use thiserror::Error;

use super::family::{masked, number, text};
use super::gojson::{MAX_TEXT, clip};
use super::{Family, NetworkConfig, PerFamily, SubnetKey};

/// `subnet.env`: how the daemon tells the CNI plugin and Docker what this node
/// has (flannel pkg/subnet/subnet.go, `WriteSubnetFile`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`, `FLANNEL_IPV6_NETWORK`. One a family as we and
    /// flanneld write it; a reader of the CNI plugin's takes a comma list.
    pub networks: PerFamily<Vec<IpNetwork>>,
    /// `FLANNEL_SUBNET`, `FLANNEL_IPV6_SUBNET`: the first host's address with
    /// the lease's prefix length (`10.5.41.1/24`).
    pub subnet: PerFamily<IpNetwork>,
    pub mtu: u32,
    pub ip_masq: bool,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SubnetEnvError {
    #[error("line {line}: {key}: {value:?}: expected {expected}")]
    Value { line: usize, key: &'static str, value: String, expected: String },
    #[error("{keys} missing: expected a line {example}")]
    Missing { keys: &'static str, example: &'static str },
    #[error("{0} bytes; expected at most {MAX_TEXT}")]
    TooLong(usize),
}

impl SubnetEnv {
    /// What a node that holds `own` tells its containers; `mtu` is theirs.
    pub fn new(config: &NetworkConfig, own: &SubnetKey, mtu: u32, ip_masq: bool) -> SubnetEnv {
        let first_host =
            |family: Family, net: IpNetwork| IpNetwork::new(family.addr(number(net.ip()) + 1), net.prefix());
        SubnetEnv {
            networks: config.pools.map(|_, pool| vec![pool.network]),
            subnet: own
                .nets()
                .map(|(family, net)| (family, first_host(family, net).unwrap_or(net)))
                .collect(),
            mtu,
            ip_masq,
        }
    }

    /// Takes what flannel's daemon and CNI plugin take between them: blank
    /// lines, comments, unknown keys, `export`, quotes, comma lists of networks.
    /// Unlike them it refuses an address of the wrong family, an MTU no link can
    /// have and a `FLANNEL_IPMASQ` that is neither true nor false. The last of
    /// several equal keys wins.
    pub fn parse(env: &str) -> Result<SubnetEnv, SubnetEnvError> {
        if env.len() > MAX_TEXT {
            return Err(SubnetEnvError::TooLong(env.len()));
        }
        let (mut networks, mut subnet) = (PerFamily::default(), PerFamily::default());
        let (mut mtu, mut ip_masq) = (None, None);
        for entry in env.lines().enumerate().filter_map(Entry::of) {
            match entry.key {
                Key::Network(family) => networks.set(family, Some(entry.networks(family)?)),
                Key::Subnet(family) => subnet.set(family, Some(entry.subnet(family)?)),
                Key::Mtu => mtu = Some(entry.mtu()?),
                Key::IpMasq => ip_masq = Some(entry.ip_masq()?),
            }
        }
        let missing = |keys, example| SubnetEnvError::Missing { keys, example };
        if networks.is_empty() {
            return Err(missing("FLANNEL_NETWORK and FLANNEL_IPV6_NETWORK", "FLANNEL_NETWORK=10.5.0.0/16"));
        }
        if subnet.is_empty() {
            return Err(missing("FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET", "FLANNEL_SUBNET=10.5.41.1/24"));
        }
        let mtu = mtu.ok_or_else(|| missing("FLANNEL_MTU", "FLANNEL_MTU=1450"))?;
        let ip_masq = ip_masq.ok_or_else(|| missing("FLANNEL_IPMASQ", "FLANNEL_IPMASQ=false"))?;
        Ok(SubnetEnv { networks, subnet, mtu, ip_masq })
    }

    /// The lease that the file speaks of. `None` only where `subnet` was not
    /// made by `new` or `parse`.
    pub fn subnet_key(&self) -> Option<SubnetKey> {
        SubnetKey::new(self.subnet.map(|_, net| masked(net)))
    }
}

/// The file, byte for byte as flannel writes it.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cidr = |net: &IpNetwork| format!("{}/{}", text(net.ip()), net.prefix());
        for family in Family::BOTH {
            if let Some(networks) = self.networks.get(family) {
                let networks: Vec<_> = networks.iter().map(cidr).collect();
                writeln!(f, "{}={}", Key::Network(family).name(), networks.join(","))?;
            }
            if let Some(subnet) = self.subnet.get(family) {
                writeln!(f, "{}={}", Key::Subnet(family).name(), cidr(subnet))?;
            }
        }
        writeln!(f, "{}={}", Key::Mtu.name(), self.mtu)?;
        writeln!(f, "{}={}", Key::IpMasq.name(), self.ip_masq)
    }
}

#[derive(Clone, Copy)]
enum Key {
    Network(Family),
    Subnet(Family),
    Mtu,
    IpMasq,
}

impl Key {
    const ALL: [Key; 6] = [
        Key::Network(Family::V4),
        Key::Subnet(Family::V4),
        Key::Network(Family::V6),
        Key::Subnet(Family::V6),
        Key::Mtu,
        Key::IpMasq,
    ];

    fn name(self) -> &'static str {
        match self {
            Key::Network(Family::V4) => "FLANNEL_NETWORK",
            Key::Network(Family::V6) => "FLANNEL_IPV6_NETWORK",
            Key::Subnet(Family::V4) => "FLANNEL_SUBNET",
            Key::Subnet(Family::V6) => "FLANNEL_IPV6_SUBNET",
            Key::Mtu => "FLANNEL_MTU",
            Key::IpMasq => "FLANNEL_IPMASQ",
        }
    }
}

/// A line with a key of ours.
struct Entry<'a> {
    line: usize,
    key: Key,
    value: &'a str,
}

impl<'a> Entry<'a> {
    fn of((index, line): (usize, &'a str)) -> Option<Entry<'a>> {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let key = Key::ALL.into_iter().find(|key| key.name() == name.trim())?;
        Some(Entry { line: index + 1, key, value: unquoted(value) })
    }

    fn networks(&self, family: Family) -> Result<Vec<IpNetwork>, SubnetEnvError> {
        let mut networks = Vec::new();
        for part in self.value.split(',') {
            let net = family.parse_net(part.trim(), '/').map(masked);
            let net = net.ok_or_else(|| {
                self.expected(format!("{family} networks in CIDR form, separated by commas"))
            })?;
            if !networks.contains(&net) {
                networks.push(net);
            }
        }
        Ok(networks)
    }

    fn subnet(&self, family: Family) -> Result<IpNetwork, SubnetEnvError> {
        let longest = family.bits() - 1;
        family.parse_net(self.value, '/').filter(|net| (1..=longest).contains(&net.prefix())).ok_or_else(
            || {
                self.expected(format!(
                    "an {family} address in CIDR form, with a prefix length of 1 to {longest}"
                ))
            },
        )
    }

    /// Bounded as the kernel bounds a link's (`ETH_MIN_MTU` and `ETH_MAX_MTU`,
    /// include/uapi/linux/if_ether.h).
    fn mtu(&self) -> Result<u32, SubnetEnvError> {
        let digits = self.value.bytes().all(|b| b.is_ascii_digit());
        let mtu = self.value.parse().ok().filter(|mtu| digits && (68..=65535).contains(mtu));
        mtu.ok_or_else(|| self.expected("68 to 65535"))
    }

    fn ip_masq(&self) -> Result<bool, SubnetEnvError> {
        self.value.parse().map_err(|_| self.expected("true or false"))
    }

    fn expected(&self, expected: impl Into<String>) -> SubnetEnvError {
        SubnetEnvError::Value {
            line: self.line,
            key: self.key.name(),
            value: clip(self.value),
            expected: expected.into(),
        }
    }
}

/// A value without its quotes, or without the comment after it.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    for quote in ['"', '\''] {
        let inner = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote));
        if let Some((inner, rest)) = inner
            && (rest.trim().is_empty() || rest.trim_start().starts_with('#'))
        {
            return inner.trim();
        }
    }
    value.split_once(" #").map_or(value, |(value, _)| value.trim_end())
}
