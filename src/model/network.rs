use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::family::{masked, number, text};
use super::gojson::{FieldError, Fields};
use super::{Family, PerFamily};

/// Each becomes a rule that packets are held against.
const MAX_NON_MASQUERADE: usize = 256;

/// Why a network config is refused. The text names the key, its value and what
/// is accepted; the caller adds where the config came from.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("{key}: {value}: expected {expected}")]
    Value { key: &'static str, value: String, expected: String },
}

impl From<FieldError> for ConfigError {
    fn from(e: FieldError) -> Self {
        match e {
            FieldError::Json(reason) => ConfigError::Json(reason),
            FieldError::Value { key, value, expected } => ConfigError::Value { key, value, expected },
        }
    }
}

/// The network config of the whole cluster: `<prefix>/config` in the store,
/// `net-conf.json` in Kubernetes (flannel pkg/subnet/config.go).
#[derive(Clone, Serialize)]
pub struct NetworkConfig {
    /// As it stands in the store; never shown, like the backend's options.
    #[serde(skip)]
    pub text: Box<str>,
    /// The address pool of each enabled family; never empty.
    pub pools: PerFamily<Pool>,
    pub enable_nftables: bool,
    /// Networks that containers reach with their own source address, also where
    /// nodes masquerade: `nonMasqueradeCIDRs`, a key that flannel ignores.
    pub non_masquerade: Vec<IpNetwork>,
    pub backend: BackendConfig,
}

impl NetworkConfig {
    /// Takes a config with every default and every check that flannel applies
    /// when etcd holds it (`CheckNetworkConfig`), and one more: flannel does not
    /// see that SubnetMin lies after SubnetMax until it finds no free subnet.
    pub fn parse(json: &str) -> Result<NetworkConfig, ConfigError> {
        let fields = Fields::parse(json)?;
        let mut pools = PerFamily::default();
        for keys in [PoolKeys::V4, PoolKeys::V6] {
            // What a disabled family says must be well-formed all the same.
            let pool = PoolText::read(&fields, &keys)?;
            if fields.bool(keys.enable, keys.family == Family::V4)? {
                pools.set(keys.family, Some(pool.resolve(&keys)?));
            }
        }
        if pools.is_empty() {
            let expected = "EnableIPv4, EnableIPv6 or both to be true";
            return Err(FieldError::value("EnableIPv4", "false", expected).into());
        }
        let enable_nftables = fields.bool("EnableNFTables", false)?;
        let non_masquerade = non_masquerade(&fields)?;
        let backend = BackendConfig::read(&fields)?;
        Ok(NetworkConfig { text: json.into(), pools, enable_nftables, non_masquerade, backend })
    }
}

fn non_masquerade(fields: &Fields) -> Result<Vec<IpNetwork>, FieldError> {
    const KEY: &str = "nonMasqueradeCIDRs";
    let Some(raw) = fields.raw(KEY).filter(|raw| raw.get() != "null") else { return Ok(Vec::new()) };
    let refused = |value: &str| {
        FieldError::value(KEY, value, r#"a list of networks in CIDR form, as ["192.168.0.0/16","fd00::/8"]"#)
    };
    let texts: Vec<String> = serde_json::from_str(raw.get()).map_err(|_| refused(raw.get()))?;
    if texts.len() > MAX_NON_MASQUERADE {
        let expected = format!("at most {MAX_NON_MASQUERADE} networks");
        return Err(FieldError::value(KEY, &format!("{} networks", texts.len()), expected));
    }
    let parse = |text: &String| {
        let net = Family::BOTH.into_iter().find_map(|family| family.parse_net(text, '/'));
        net.map(masked).ok_or_else(|| refused(text))
    };
    texts.iter().map(parse).collect()
}

/// For a log: `10.5.0.0/16 in /24s from 10.5.1.0 to 10.5.255.0; backend vxlan`.
impl fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, pool) in self.pools.iter() {
            write!(f, "{pool}; ")?;
        }
        write!(f, "backend {}", self.backend.kind)
    }
}

/// The addresses that leases of one family are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Masked: no host bits.
    pub network: IpNetwork,
    /// Prefix length of each lease.
    pub subnet_len: u8,
    /// First address of the first subnet to lease, on a subnet boundary.
    pub subnet_min: IpAddr,
    /// First address of the last subnet to lease, inclusive.
    pub subnet_max: IpAddr,
}

impl Pool {
    pub fn family(&self) -> Family {
        Family::of_net(self.network)
    }

    /// How many subnets there are to lease.
    pub fn subnets(&self) -> u128 {
        let span = number(self.subnet_max).saturating_sub(number(self.subnet_min));
        (span >> self.host_bits()) + 1
    }

    /// The subnet that `i` others precede; `None` from `subnets()` on.
    pub fn nth(&self, i: u128) -> Option<IpNetwork> {
        if i >= self.subnets() {
            return None;
        }
        let base = number(self.subnet_min) + (i << self.host_bits());
        IpNetwork::new(self.family().addr(base), self.subnet_len).ok()
    }

    /// Whether `net` is one of the subnets to lease.
    pub fn contains_subnet(&self, net: IpNetwork) -> bool {
        Family::of_net(net) == self.family()
            && net.prefix() == self.subnet_len
            && net.ip() == net.network()
            && (self.subnet_min..=self.subnet_max).contains(&net.ip())
    }

    fn host_bits(&self) -> u8 {
        self.family().bits() - self.subnet_len
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pool { network, subnet_len, subnet_min, subnet_max } = self;
        write!(f, "{network} in /{subnet_len}s from {} to {}", text(*subnet_min), text(*subnet_max))
    }
}

/// `Backend` of the network config: its type, lower-cased, and the object as
/// it stood, for the backend itself to parse.
#[derive(Clone, Serialize)]
pub struct BackendConfig {
    pub kind: String,
    /// Never shown: a pre-shared key may be among them.
    #[serde(skip)]
    pub options: Box<RawValue>,
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NetworkConfig { text: _, pools, enable_nftables, non_masquerade, backend } = self;
        f.debug_struct("NetworkConfig")
            .field("pools", pools)
            .field("enable_nftables", enable_nftables)
            .field("non_masquerade", non_masquerade)
            .field("backend", backend)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BackendConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl BackendConfig {
    /// Without `Backend` flannel takes udp, and for a `Backend` without `Type`
    /// the backend of no name, which there is not.
    fn read(fields: &Fields) -> Result<BackendConfig, ConfigError> {
        let Some(options) = fields.raw("Backend") else {
            return Ok(BackendConfig { kind: "udp".to_owned(), options: RawValue::NULL.to_owned() });
        };
        let expected = r#"an object such as {"Type":"vxlan"}"#;
        let members = Fields::parse(options.get());
        let members = members.map_err(|_| FieldError::value("Backend", options.get(), expected))?;
        let kind = members.string("Type").map_err(|e| match e {
            FieldError::Value { value, expected, .. } => {
                FieldError::Value { key: "Backend.Type", value, expected }
            }
            e => e,
        })?;
        let kind = kind.unwrap_or_default().to_lowercase();
        Ok(BackendConfig { kind, options: options.to_owned() })
    }
}

/// What one family's part of the config is called, and what differs in it.
struct PoolKeys {
    family: Family,
    enable: &'static str,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// Length of a lease where the network has room for four of them.
    default_len: u8,
    /// Whether Go's `min` and `max` are pointers, to which null is no error.
    pointers: bool,
}

impl PoolKeys {
    const V4: PoolKeys = PoolKeys {
        family: Family::V4,
        enable: "EnableIPv4",
        network: "Network",
        len: "SubnetLen",
        min: "SubnetMin",
        max: "SubnetMax",
        default_len: 24,
        pointers: false,
    };
    const V6: PoolKeys = PoolKeys {
        family: Family::V6,
        enable: "EnableIPv6",
        network: "IPv6Network",
        len: "IPv6SubnetLen",
        min: "IPv6SubnetMin",
        max: "IPv6SubnetMax",
        default_len: 64,
        pointers: true,
    };
}

/// One family's part of the config as it stands, before defaults. Zero counts
/// as unset, as Go's zero values do.
struct PoolText {
    network: Option<IpNetwork>,
    len: Option<u8>,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

impl PoolText {
    fn read(fields: &Fields, keys: &PoolKeys) -> Result<PoolText, FieldError> {
        let family = keys.family;
        let addr = |key| {
            let expected = format!("an {family} address");
            let addr = fields.parsed(key, keys.pointers, |text| family.parse_addr(text), &expected)?;
            Ok::<_, FieldError>(addr.filter(|addr| !addr.is_unspecified()))
        };
        let expected = format!("an {family} network in CIDR form");
        let network = fields.parsed(keys.network, false, |text| family.parse_net(text, '/'), &expected)?;
        Ok(PoolText {
            network: network.map(masked).filter(|net| net.prefix() > 0),
            len: fields.uint(keys.len)?.filter(|len| *len > 0),
            min: addr(keys.min)?,
            max: addr(keys.max)?,
        })
    }

    fn resolve(self, keys: &PoolKeys) -> Result<Pool, FieldError> {
        let Some(network) = self.network else {
            let expected =
                format!("an {} network longer than /0, since {} is true", keys.family, keys.enable);
            return Err(FieldError::value(keys.network, "unset", expected));
        };
        let subnet_len = self.subnet_len(keys, network)?;

        let size = 1_u128 << (keys.family.bits() - subnet_len);
        let bound = |key, given: Option<IpAddr>, default| match given {
            None => Ok(keys.family.addr(default)),
            Some(addr) if network.contains(addr) && number(addr).is_multiple_of(size) => Ok(addr),
            Some(addr) => {
                let expected = format!("an address inside {network} that a /{subnet_len} starts at");
                Err(FieldError::value(key, &text(addr), expected))
            }
        };
        // The first subnet shares its first address with the network's.
        let subnet_min = bound(keys.min, self.min, number(network.network()) + size)?;
        let subnet_max = bound(keys.max, self.max, number(network.broadcast()) - (size - 1))?;
        if subnet_min > subnet_max {
            let expected = format!("{} ({}) or after it", keys.min, text(subnet_min));
            return Err(FieldError::value(keys.max, &text(subnet_max), expected));
        }
        Ok(Pool { network, subnet_len, subnet_min, subnet_max })
    }

    /// A network holds four subnets at least, three of them to lease, and a
    /// subnet four addresses, for a tunnel and a bridge to have theirs.
    fn subnet_len(&self, keys: &PoolKeys, network: IpNetwork) -> Result<u8, FieldError> {
        let longest = keys.family.bits() - 2;
        let shortest = network.prefix() + 2;
        if shortest > longest {
            let expected =
                format!("a prefix length of at most {}, to hold four subnets of four addresses", longest - 2);
            return Err(FieldError::value(keys.network, &network.to_string(), expected));
        }
        match self.len {
            None => Ok(keys.default_len.max(shortest)),
            Some(len) if (shortest..=longest).contains(&len) => Ok(len),
            Some(len) => {
                let expected = format!(
                    "{shortest} to {longest}, for {network} to hold four subnets of four addresses or more"
                );
                Err(FieldError::value(keys.len, &len.to_string(), expected))
            }
        }
    }
}
