use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use weft::model::{IfName, Mac};

use super::error::{Code, Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Command {
    /// Of the variable `CNI_COMMAND`.
    pub fn parse(text: &str) -> Result<Command> {
        Ok(match text {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            _ => return Err(environment("CNI_COMMAND", text, "ADD, DEL, CHECK, GC, STATUS or VERSION")),
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Status => "STATUS",
            Command::Gc => "GC",
            Command::Version => "VERSION",
        }
    }
}

/// One interface of one container: what ADD, CHECK and DEL are about.
#[derive(Clone, Debug)]
pub struct Request {
    pub container_id: String,
    pub ifname: IfName,
    /// Empty only for DEL, when the namespace is gone.
    pub netns: Option<PathBuf>,
    pub args: Args,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub own_netns_allowed: bool,
}

impl Request {
    /// `var` looks up an environment variable.
    pub fn from_env(command: Command, var: impl Fn(&str) -> Option<String>) -> Result<Request> {
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let container_id = var("CNI_CONTAINERID");
        let ifname = var("CNI_IFNAME");
        let netns = var("CNI_NETNS");
        let needs = [
            ("CNI_CONTAINERID", container_id.is_none()),
            ("CNI_IFNAME", ifname.is_none()),
            ("CNI_NETNS", netns.is_none() && command != Command::Del),
        ];
        let missing: Vec<_> = needs.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(Error::new(Code::Environment, msg));
        }
        let container_id = container_id.unwrap_or_default();
        if !is_identifier(&container_id) {
            return Err(environment("CNI_CONTAINERID", &container_id, IDENTIFIER));
        }
        let ifname = ifname.unwrap_or_default();
        let ifname = ifname.parse().map_err(|e| environment("CNI_IFNAME", &ifname, &format!("{e}")))?;
        Ok(Request {
            container_id,
            ifname,
            netns: netns.map(PathBuf::from),
            args: Args::parse(&var("CNI_ARGS").unwrap_or_default())?,
            own_netns_allowed: var("CNI_NETNS_OVERRIDE")
                .is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")),
        })
    }
}

/// What `CNI_ARGS` may say to the plugins this one stands for: bridge (MAC) and
/// host-local (IP).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub mac: Option<Mac>,
    pub ip: Option<IpAddr>,
}

impl Args {
    /// `K=V;K2=V2`, keys case-sensitive. An unknown key is an error unless
    /// `IgnoreUnknown=1` is among them (containernetworking/cni
    /// pkg/types/args.go).
    pub fn parse(text: &str) -> Result<Args> {
        let mut args = Args::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let wrong = |expected: &str| environment("CNI_ARGS", pair, expected);
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong("KEY=VALUE"))?;
            if value.contains('=') {
                return Err(wrong("KEY=VALUE"));
            }
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = match value.to_ascii_lowercase().as_str() {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(wrong("IgnoreUnknown=1 or 0, true or false")),
                    }
                }
                "MAC" if value.is_empty() => args.mac = None,
                "MAC" => {
                    let mac = value.parse().ok().filter(|mac: &Mac| mac.is_unicast());
                    args.mac = Some(mac.ok_or_else(|| wrong("MAC=<unicast MAC address>"))?);
                }
                "IP" => args.ip = Some(parse_address(value).ok_or_else(|| wrong("IP=<address>"))?),
                _ => unknown.push(pair),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(environment(
                "CNI_ARGS",
                &unknown.join(";"),
                "the keys IP, MAC and IgnoreUnknown; IgnoreUnknown=1 admits others",
            ));
        }
        Ok(args)
    }
}

/// An address, with or without the prefix length that some runtimes add.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| text.contains('/').then(|| text.parse::<IpNetwork>().ok())?.map(|net| net.ip()))
}

pub const IDENTIFIER: &str = "a letter or digit, then letters, digits, '_', '.' and '-', 200 at most";

/// A container ID or a network name. Both become file names, hence the bound.
pub fn is_identifier(text: &str) -> bool {
    text.len() <= 200
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn environment(variable: &str, value: &str, expected: &str) -> Error {
    Error::new(Code::Environment, format!("{variable}: {value:?}: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cni_args_follow_the_reference_plugins_rules() {
        let args =
            Args::parse("IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.5.17.9/24;MAC=0e:00:00:00:00:01").unwrap();
        assert_eq!(args.ip, Some([10, 5, 17, 9].into()));
        assert_eq!(args.mac, Some(Mac([0x0e, 0, 0, 0, 0, 1])));
        assert_eq!(Args::parse(""), Ok(Args::default()));
        for wrong in
            ["K8S_POD_NAME=x", "ip=10.0.0.1", "IP", "IP=x", "IP=1=2", "MAC=zz", "IgnoreUnknown=maybe", "=x"]
        {
            let error = Args::parse(wrong).unwrap_err();
            assert!(error.code == 4 && error.msg.contains(wrong), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_becomes_a_file_name_or_a_link_name_is_checked() {
        let request = |id: &str, ifname: &str| {
            let var = |name: &str| match name {
                "CNI_CONTAINERID" => Some(id.to_owned()),
                "CNI_IFNAME" => Some(ifname.to_owned()),
                "CNI_NETNS" => Some("/n".to_owned()),
                _ => None,
            };
            Request::from_env(Command::Add, var)
        };
        assert!(request("a.B-c_1", "eth0").is_ok());
        for (id, ifname) in [
            ("../x", "eth0"),
            ("a/b", "eth0"),
            ("-a", "eth0"),
            ("a", "../e"),
            ("a", "e/0"),
            ("a", "e:0"),
            ("a", ".."),
            ("a", "sixteen-bytes-xx"),
        ] {
            assert_eq!(request(id, ifname).unwrap_err().code, 4, "{id} {ifname}");
        }
        assert!(request("", "eth0").unwrap_err().msg.contains("CNI_CONTAINERID"));
    }
}
