//! Sysctls of a container's namespace, by their dotted names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use weft::model::IfName;

use crate::protocol::error::{Code, Error, Result};
use crate::protocol::fields::Fields;

/// Regular expressions, one a line; a sysctl has to match one of them. Without
/// the file every sysctl below `net` may be set.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

#[derive(Clone, Debug, Default)]
pub struct Sysctls(BTreeMap<String, String>);

impl Sysctls {
    /// `layers` from the weakest to the strongest.
    pub fn parse<'a>(layers: impl Iterator<Item = &'a Fields<'a>>) -> Result<Sysctls> {
        let mut all = BTreeMap::new();
        for layer in layers {
            let Some(fields) = layer.object("sysctl")? else { continue };
            for key in fields.keys() {
                path(key, None)?;
                let value = fields.text(key)?.unwrap_or_default();
                all.insert(key.to_owned(), value.to_owned());
            }
        }
        Ok(Sysctls(all))
    }

    /// That the node's administrator lets a network set them.
    pub fn must_be_allowed(&self) -> Result<()> {
        let list = match fs::read_to_string(ALLOWLIST) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            list => list.map_err(|e| Error::io("read", ALLOWLIST.as_ref(), &e))?,
        };
        self.must_match(&list)
    }

    /// Inside the container's namespace.
    pub fn write(&self, ifname: IfName) -> Result<()> {
        self.0.iter().try_for_each(|(key, value)| {
            let path = path(key, Some(ifname))?;
            fs::write(&path, value).map_err(|e| failed("write", key, &path, &e))
        })
    }

    pub fn check(&self, ifname: IfName) -> Result<()> {
        self.0.iter().try_for_each(|(key, value)| {
            let path = path(key, Some(ifname))?;
            let now = fs::read_to_string(&path).map_err(|e| failed("read", key, &path, &e))?;
            // The kernel puts tabs between the numbers of a list.
            if now.split_whitespace().eq(value.split_whitespace()) {
                return Ok(());
            }
            Err(Error::internal(format_args!("sysctl {key} is {:?}, expected {value:?}", now.trim_end())))
        })
    }

    fn must_match(&self, list: &str) -> Result<()> {
        let lines: Vec<_> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let expression = |line: &&str| {
            let wrong = |e| Error::field(ALLOWLIST, line, format_args!("a regular expression ({e})"));
            Regex::new(line).map_err(wrong)
        };
        let expressions = lines.iter().map(expression).collect::<Result<Vec<_>>>()?;
        let Some(key) = self.0.keys().find(|key| !expressions.iter().any(|e| e.is_match(key))) else {
            return Ok(());
        };
        let msg = format!("sysctl: {key:?} is not allowed: {ALLOWLIST} allows {}", lines.join(", "));
        Err(Error::new(Code::NetworkConfig, msg))
    }
}

/// Dots and slashes both separate, so that no part can be ".."; `IFNAME` stands
/// for the interface.
fn path(key: &str, ifname: Option<IfName>) -> Result<PathBuf> {
    let ifname = ifname.map(|name| name.to_string()).unwrap_or_else(|| "IFNAME".to_owned());
    let parts = key.replace('.', "/").replacen("IFNAME", &ifname, 1);
    let parts: Vec<_> = parts.split('/').filter(|part| !part.is_empty()).collect();
    if parts.len() < 2 || parts[0] != "net" || key.contains("..") {
        return Err(Error::field(
            "sysctl",
            format_args!("{key:?}"),
            "a name below net, as net.ipv4.ip_forward",
        ));
    }
    Ok(Path::new("/proc/sys").join(parts.join("/")))
}

fn failed(what: &str, key: &str, path: &Path, cause: &io::Error) -> Error {
    let hint = match cause.kind() {
        io::ErrorKind::NotFound => ": the namespace has no such sysctl",
        io::ErrorKind::InvalidInput => ": the kernel does not take that value",
        _ => "",
    };
    Error::new(Code::Internal, format!("sysctl {key}: {what} {}: {cause}{hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_below_proc_sys_net_and_nowhere_else() {
        let eth = Some("eth0.5".parse().unwrap());
        for (key, expected) in [
            ("net.ipv4.conf.IFNAME.arp_filter", "/proc/sys/net/ipv4/conf/eth0.5/arp_filter"),
            ("net/ipv4/conf/IFNAME/arp_filter", "/proc/sys/net/ipv4/conf/eth0.5/arp_filter"),
            ("net.core.IFNAME.IFNAME", "/proc/sys/net/core/eth0.5/IFNAME"),
            ("/net//core/somaxconn", "/proc/sys/net/core/somaxconn"),
        ] {
            assert_eq!(path(key, eth).unwrap(), Path::new(expected), "{key}");
        }
        for key in [
            "kernel.hostname",
            "net",
            "",
            "network.x",
            "IFNAME.x",
            "net/../kernel/x",
            "net..core.x",
            "../net.x.y",
        ] {
            let error = path(key, eth).unwrap_err();
            assert!(error.msg.starts_with(&format!("sysctl: {key:?}: expected a name below net")), "{error}");
        }
    }

    #[test]
    fn the_allowlist_is_of_regular_expressions() {
        let sysctls = |key: &str| Sysctls([(key.to_owned(), "1".to_owned())].into());
        let list = "^net\\.ipv4\\.conf\\.[a-z0-9]*\\.arp_filter$\n\n  net.core.somax  \n";
        for key in ["net.ipv4.conf.eth0.arp_filter", "net.core.somaxconn", "net.core_somax"] {
            assert_eq!(sysctls(key).must_match(list), Ok(()));
        }
        let error = sysctls("net.ipv4.ip_forward").must_match(list).unwrap_err();
        assert!(
            error.msg.contains("\"net.ipv4.ip_forward\" is not allowed")
                && error.msg.contains("net.core.somax")
        );
        assert!(sysctls("net.x.y").must_match("").is_err());
        assert!(sysctls("net.x.y").must_match("(").unwrap_err().msg.contains("a regular expression"));
    }
}
