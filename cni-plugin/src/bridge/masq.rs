//! Masquerading of what a container sends out of its subnet, under the names
//! that the reference plugins use (pkg/ip/ipmasq_{iptables,nftables}_linux.go),
//! so that either can remove what the other made.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipnetwork::IpNetwork;
use serde_json::Value;
use sha2::{Digest, Sha512};

use crate::protocol::error::{Code, Error, Result};
use crate::protocol::fields::Fields;
use crate::protocol::request::Request;
use crate::protocol::result::IpConfig;

/// `ipMasqBackend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// iptables where it is installed, else nftables.
    Any,
    Iptables,
    Nftables,
}

impl Backend {
    pub fn parse(fields: &Fields<'_>) -> Result<Backend> {
        match fields.text("ipMasqBackend")? {
            None => Ok(Backend::Any),
            Some("iptables") => Ok(Backend::Iptables),
            Some("nftables") => Ok(Backend::Nftables),
            Some(_) => Err(fields.wrong("ipMasqBackend", "\"iptables\" or \"nftables\"")),
        }
    }
}

/// The rules of one attachment.
#[derive(Debug)]
pub struct Masquerade {
    backend: Backend,
    chain: String,
    iptables_comment: String,
    nft_key: String,
    nft_comment: String,
}

const TABLE: &str = "inet cni_plugins_masquerade";
const TABLE_COMMENT: &str = "Masquerading for plugins from github.com/containernetworking/plugins";
const CHAIN_COMMENT: &str =
    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";

impl Masquerade {
    pub fn of(network: &str, request: &Request, backend: Backend) -> Masquerade {
        let (id, ifname) = (&request.container_id, request.ifname);
        let nft_key = format!("{}-{}", hash(network, 16), hash(&format!("{ifname}:{id}"), 16));
        let mut nft_comment = format!("{nft_key}, net: {network}, if: {ifname}, id: {id}");
        // The kernel's limit for a rule's comment; all of it is ASCII but perhaps
        // the interface's name.
        while nft_comment.len() > 127 {
            nft_comment.pop();
        }
        Masquerade {
            backend,
            chain: format!("CNI-{}", hash(&format!("{network}{id}"), 24)),
            iptables_comment: format!("name: \\\"{network}\\\" id: \\\"{id}\\\""),
            nft_key,
            nft_comment,
        }
    }

    pub fn set_up(&self, ips: &[IpConfig]) -> Result<()> {
        match self.backend {
            Backend::Iptables => self.set_up_iptables(ips),
            Backend::Nftables => self.set_up_nftables(ips),
            Backend::Any if !is_installed(IPTABLES.restore) => self.set_up_nftables(ips),
            Backend::Any => self.set_up_iptables(ips).or_else(|e| match is_installed("nft") {
                true => self.set_up_nftables(ips),
                false => Err(e),
            }),
        }
    }

    /// Remove the rules of these addresses, all of the attachment's if none is
    /// known. Both kinds of rules are looked for: the config may have changed
    /// since.
    pub fn tear_down(&self, ips: &[IpAddr]) -> Result<()> {
        let mut results = Vec::new();
        for tools in [&IPTABLES, &IP6TABLES] {
            if is_installed(tools.command) {
                results.push(self.tear_down_iptables(tools, ips));
            }
        }
        if is_installed("nft") {
            results.push(self.tear_down_nftables());
        }
        results.into_iter().collect()
    }

    fn set_up_iptables(&self, ips: &[IpConfig]) -> Result<()> {
        for (tools, v4) in [(&IPTABLES, true), (&IP6TABLES, false)] {
            let ips: Vec<_> = ips.iter().map(|ip| ip.address).filter(|net| net.is_ipv4() == v4).collect();
            if ips.is_empty() {
                continue;
            }
            run(tools.restore, &["--noflush", "--wait"], &self.iptables_rules(&ips, tools.multicast))?;
        }
        Ok(())
    }

    fn iptables_rules(&self, ips: &[IpNetwork], multicast: &str) -> String {
        let (chain, comment) = (&self.chain, format!("-m comment --comment \"{}\"", self.iptables_comment));
        let mut rules = format!("*nat\n:{chain} - [0:0]\n");
        for net in ips {
            rules += &format!("-A {chain} -d {}/{} {comment} -j ACCEPT\n", net.network(), net.prefix());
        }
        rules += &format!("-A {chain} ! -d {multicast} {comment} -j MASQUERADE\n");
        for net in ips {
            rules += &format!("-A POSTROUTING -s {} {comment} -j {chain}\n", net.ip());
        }
        rules + "COMMIT\n"
    }

    /// The chain is named after the container, whose other interfaces may have
    /// jumps to it.
    fn tear_down_iptables(&self, tools: &Tools, ips: &[IpAddr]) -> Result<()> {
        let chain = &self.chain;
        // Where the table cannot be read, nothing was put into it.
        let Ok(all) = run(tools.command, &["--wait", "--table", "nat", "--list-rules"], "") else {
            return Ok(());
        };
        if !all.lines().any(|line| line == format!("-N {chain}")) {
            return Ok(());
        }
        let jump = format!(" -j {chain}");
        let jumps =
            all.lines().filter(|line| line.ends_with(&jump)).filter_map(|line| line.strip_prefix("-A "));
        let ours = |rule: &&str| ips.is_empty() || ips.iter().any(|ip| rule.contains(&format!(" -s {ip}/")));
        let (ours, others): (Vec<_>, Vec<_>) = jumps.partition(ours);
        let mut rules = String::from("*nat\n");
        rules.extend(ours.iter().map(|rule| format!("-D {rule}\n")));
        if others.is_empty() {
            rules += &format!("-F {chain}\n-X {chain}\n");
        }
        run(tools.restore, &["--noflush", "--wait"], &(rules + "COMMIT\n")).map(drop)
    }

    fn set_up_nftables(&self, ips: &[IpConfig]) -> Result<()> {
        let mut script = format!(
            "add table {TABLE} {{ comment \"{TABLE_COMMENT}\"; }}\n\
             add chain {TABLE} masq_checks {{ comment \"{CHAIN_COMMENT}\"; }}\n\
             add chain {TABLE} postrouting {{ type nat hook postrouting priority 100; }}\n\
             flush chain {TABLE} postrouting\n\
             add rule {TABLE} postrouting ip daddr 224.0.0.0/4 return\n\
             add rule {TABLE} postrouting ip6 daddr ff00::/8 return\n\
             add rule {TABLE} postrouting goto masq_checks\n"
        );
        script += &self.nft_deletions()?;
        for net in ips.iter().map(|ip| ip.address) {
            let family = if net.is_ipv4() { "ip" } else { "ip6" };
            let (ip, subnet) = (net.ip(), format!("{}/{}", net.network(), net.prefix()));
            let matches = format!("{family} saddr {ip} {family} daddr != {subnet}");
            script += &format!(
                "add rule {TABLE} masq_checks {matches} masquerade comment \"{}\"\n",
                self.nft_comment
            );
        }
        run("nft", &["-f", "-"], &script).map(drop)
    }

    fn tear_down_nftables(&self) -> Result<()> {
        let script = self.nft_deletions()?;
        if script.is_empty() { Ok(()) } else { run("nft", &["-f", "-"], &script).map(drop) }
    }

    /// Commands that delete the attachment's rules.
    fn nft_deletions(&self) -> Result<String> {
        let listing = ["-j", "list", "chain", "inet", "cni_plugins_masquerade", "masq_checks"];
        let Ok(chain) = run("nft", &listing, "") else { return Ok(String::new()) };
        let chain: Value =
            serde_json::from_str(&chain).map_err(|e| Error::new(Code::Decoding, format!("nft: {e}")))?;
        let rules = chain["nftables"].as_array().into_iter().flatten().map(|entry| &entry["rule"]);
        let ours =
            rules.filter(|rule| rule["comment"].as_str().is_some_and(|c| c.starts_with(&self.nft_key)));
        Ok(ours
            .filter_map(|rule| rule["handle"].as_u64())
            .map(|handle| format!("delete rule {TABLE} masq_checks handle {handle}\n"))
            .collect())
    }
}

struct Tools {
    command: &'static str,
    restore: &'static str,
    multicast: &'static str,
}

const IPTABLES: Tools = Tools { command: "iptables", restore: "iptables-restore", multicast: "224.0.0.0/4" };
const IP6TABLES: Tools = Tools { command: "ip6tables", restore: "ip6tables-restore", multicast: "ff00::/8" };

/// The first digits of a text's SHA-512 (pkg/utils/utils.go).
fn hash(text: &str, digits: usize) -> String {
    let digest = Sha512::digest(text.as_bytes());
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(digits);
    hex
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// What the program prints, without a shell in between.
fn run(program: &str, arguments: &[&str], stdin: &str) -> Result<String> {
    let failed = |e: io::Error| Error::new(Code::Io, format!("{program}: {e}: is it installed?"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that stops reading says why on its standard error.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::new(Code::Internal, format!("{program}: {}", output.status)).details(said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
