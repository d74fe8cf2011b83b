use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::fields::Fields;

/// What a config of portmap asks for.
#[derive(Clone, Debug)]
pub struct Config {
    pub mappings: Vec<Mapping>,
    /// nftables, and iptables where the kernel does not have that, if none.
    pub backend: Option<Backend>,
    /// Masquerade what would not find back: the container's own connections to
    /// the host's port, and those from the host's loopback address.
    pub snat: bool,
    /// Masquerade what comes from elsewhere, too.
    pub masq_all: bool,
    /// iptables: the bit of the packet mark that asks for masquerading.
    pub mark_bit: u32,
    /// iptables: a chain of someone else's that marks for masquerading.
    pub mark_chain: Option<String>,
    /// Words of the backend's own language that a packet must meet, too.
    conditions: [Vec<String>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Nftables,
    Iptables,
}

/// One port of the host that leads to one of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    host_ip: Option<IpAddr>,
}

/// Ordered by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Sctp,
    Tcp,
    Udp,
}

/// Kubernetes uses 14 and 15, Calico 20 to 31.
const MARK_BIT: u32 = 13;
/// What `iptables` takes for a chain.
const CHAIN_MAX: usize = 28;
/// Well below what one line of `iptables-restore` holds.
const CONDITIONS_MAX: usize = 64;
const CONDITION_MAX: usize = 128;

impl Config {
    pub fn parse(conf: &Conf) -> Result<Config> {
        let fields = &conf.fields();
        let mark_bit = fields.number("markMasqBit", 0..=31)?;
        let mark_chain = fields.text("externalSetMarkChain")?;
        if mark_bit.is_some() && mark_chain.is_some() {
            return Err(fields.wrong("externalSetMarkChain", "no such field beside markMasqBit"));
        }
        if mark_chain.is_some_and(|name| !is_chain_name(name)) {
            return Err(fields.wrong("externalSetMarkChain", "the name of an iptables chain"));
        }
        let conditions = [conditions(fields, "conditionsV4")?, conditions(fields, "conditionsV6")?];
        Ok(Config {
            mappings: mappings(fields)?,
            backend: backend(fields, mark_chain.is_some(), &conditions)?,
            snat: fields.get("snat").is_none() || fields.bool("snat")?,
            masq_all: fields.bool("masqAll")?,
            mark_bit: mark_bit.unwrap_or(MARK_BIT),
            mark_chain: mark_chain.map(str::to_owned),
            conditions,
        })
    }

    pub fn conditions(&self, v4: bool) -> &[String] {
        &self.conditions[usize::from(!v4)]
    }

    /// The mappings that lead to an address, each with the host's address that
    /// it is bound to.
    pub fn mappings_to(&self, to: IpAddr) -> impl Iterator<Item = (&Mapping, Option<IpAddr>)> {
        let of_family = move |m: &&Mapping| m.host_ip.is_none_or(|ip| ip.is_ipv4() == to.is_ipv4());
        self.mappings.iter().filter(of_family).map(|m| (m, m.host_ip.filter(|ip| !ip.is_unspecified())))
    }

    /// Whose connections to the container are masqueraded, `subnet` being its
    /// address with the length of its prefix.
    pub fn masqueraded(&self, subnet: IpNetwork) -> Option<IpNetwork> {
        match (self.snat, self.masq_all) {
            (false, _) => None,
            (true, false) => Some(subnet),
            (true, true) => {
                let all = if subnet.is_ipv4() { weft::model::Family::V4 } else { weft::model::Family::V6 };
                IpNetwork::new(all.unspecified(), 0).ok()
            }
        }
    }
}

impl Mapping {
    pub fn target(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.container_port)
    }
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Sctp => "sctp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Sctp => libc::IPPROTO_SCTP as u8,
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            Protocol::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

fn mappings(fields: &Fields<'_>) -> Result<Vec<Mapping>> {
    let Some(runtime) = fields.object("runtimeConfig")? else { return Ok(Vec::new()) };
    let mapping = |(i, value)| {
        let entry = runtime.inner(&format!("portMappings[{i}]"), value)?;
        let port = |key| {
            let port = entry.number(key, 1..=u32::from(u16::MAX))?.and_then(|port| u16::try_from(port).ok());
            port.ok_or_else(|| entry.wrong(key, "a port"))
        };
        let wanted = entry.text("protocol")?.unwrap_or_default();
        let protocol = [Protocol::Sctp, Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(wanted));
        let host_ip: Option<IpAddr> = entry.parsed("hostIP", "an IP address")?;
        Ok(Mapping {
            host_port: port("hostPort")?,
            container_port: port("containerPort")?,
            protocol: protocol.ok_or_else(|| entry.wrong("protocol", "\"tcp\", \"udp\" or \"sctp\""))?,
            host_ip: host_ip.map(|ip| ip.to_canonical()),
        })
    };
    runtime.list("portMappings")?.iter().enumerate().map(mapping).collect()
}

/// The one named, or else the one whose options are used.
fn backend(fields: &Fields<'_>, mark_chain: bool, conditions: &[Vec<String>; 2]) -> Result<Option<Backend>> {
    let named = match fields.text("backend")? {
        None => None,
        Some("iptables") => Some(Backend::Iptables),
        Some("nftables") => Some(Backend::Nftables),
        Some(_) => return Err(fields.wrong("backend", "\"iptables\" or \"nftables\"")),
    };
    let mut used =
        vec![("backend", named), ("externalSetMarkChain", mark_chain.then_some(Backend::Iptables))];
    used.extend(["conditionsV4", "conditionsV6"].into_iter().zip(conditions.iter().map(|c| language(c))));
    used.retain(|(_, backend)| backend.is_some());
    match used[..] {
        [(_, first), ref rest @ ..] => match rest.iter().find(|(_, other)| *other != first) {
            Some((key, _)) => Err(fields.wrong(key, "nothing that the backend does not have")),
            None => Ok(first),
        },
        [] => Ok(None),
    }
}

/// iptables' conditions begin with an option or a negation, nftables' never do.
fn language(conditions: &[String]) -> Option<Backend> {
    let is_option = conditions.first()?.starts_with(['-', '!']);
    Some(if is_option { Backend::Iptables } else { Backend::Nftables })
}

/// Neither language gets more from us than one rule's words: what would end a
/// line, a command or a word is refused.
fn conditions(fields: &Fields<'_>, key: &str) -> Result<Vec<String>> {
    let list = fields.list(key)?;
    let expected = "a list of conditions, without control characters, ';', '#', '$' and '\\'";
    let refused = |c: char| c.is_control() || matches!(c, ';' | '#' | '$' | '\\');
    let word = |text: &str| {
        !text.is_empty()
            && text.len() <= CONDITION_MAX
            && !text.contains(refused)
            && text.matches('"').count().is_multiple_of(2)
    };
    let words: Option<Vec<String>> =
        list.iter().map(|value| value.as_str().filter(|text| word(text)).map(str::to_owned)).collect();
    words.filter(|words| words.len() <= CONDITIONS_MAX).ok_or_else(|| fields.wrong(key, expected))
}

fn is_chain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= CHAIN_MAX
        && !name.starts_with(['-', '!'])
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_backend_is_the_one_named_or_told_by_its_options() {
        for (conf, expected) in [
            (json!({}), Some(None)),
            (json!({ "backend": "nftables" }), Some(Some(Backend::Nftables))),
            (json!({ "externalSetMarkChain": "KUBE-MARK-MASQ" }), Some(Some(Backend::Iptables))),
            (json!({ "conditionsV6": ["!", "-d", "fd00::/8"] }), Some(Some(Backend::Iptables))),
            (json!({ "conditionsV4": ["ip daddr", "!= 10.0.0.0/8"] }), Some(Some(Backend::Nftables))),
            (json!({ "conditionsV4": [], "markMasqBit": 4 }), Some(None)),
            (json!({ "backend": "nftables", "externalSetMarkChain": "X" }), None),
            (json!({ "conditionsV4": ["-d", "10.0.0.1"], "conditionsV6": ["ip6 daddr ::1"] }), None),
        ] {
            assert_eq!(parse(&conf).map(|config| config.backend).ok(), expected, "{conf}");
        }
    }

    #[test]
    fn what_would_be_more_than_a_rules_words_is_refused() {
        for conditions in [
            json!(["ip daddr 1.2.3.4\nflush ruleset"]),
            json!(["ip daddr 1.2.3.4; flush ruleset"]),
            json!(["ip daddr 1.2.3.4 #"]),
            json!(["iifname \"eth0"]),
            json!(["$x"]),
            json!(["-d", "a\\\nb"]),
            json!([""]),
            json!(["x".repeat(129)]),
            json!(vec!["x"; 65]),
            json!([7]),
            json!("x"),
        ] {
            let error = parse(&json!({ "conditionsV4": conditions })).unwrap_err();
            assert!(error.code == 7 && error.msg.starts_with("conditionsV4: "), "{error}");
        }
        for chain in ["", "-j", "a b", "a\nb", "a\"b", &"x".repeat(29)] {
            assert_eq!(parse(&json!({ "externalSetMarkChain": chain })).unwrap_err().code, 7, "{chain}");
        }
    }

    #[test]
    fn a_mapping_is_for_the_family_of_its_host_address() {
        let at = |ip: &str| json!({ "hostPort": 1, "containerPort": 2, "protocol": "TCP", "hostIP": ip });
        let mappings: Vec<_> =
            ["", "0.0.0.0", "192.0.2.1", "::ffff:192.0.2.2", "::", "2001:db8::1"].map(at).into();
        let config = parse(&json!({ "runtimeConfig": { "portMappings": mappings } })).unwrap();

        let bound = |to: &str| -> Vec<_> {
            config.mappings_to(to.parse().unwrap()).map(|(_, ip)| ip.map(|ip| ip.to_string())).collect()
        };

        let some = |ip: &str| Some(ip.to_owned());
        assert_eq!(bound("10.1.2.3"), [None, None, some("192.0.2.1"), some("192.0.2.2")]);
        assert_eq!(bound("fd00::3"), [None, None, some("2001:db8::1")]);
    }

    fn parse(fields: &Value) -> Result<Config> {
        let mut conf = fields.clone();
        conf["name"] = "n".into();
        Config::parse(&Conf::parse(conf.to_string().as_bytes(), "test")?)
    }
}
