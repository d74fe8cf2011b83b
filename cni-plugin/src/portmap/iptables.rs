//! By iptables: a chain a container, which its host ports lead to, below a chain
//! that all share.

use ipnetwork::IpNetwork;

use super::config::{Config, Mapping};
use crate::chain::{Site, Valid};
use crate::iptables::{Tools, quoted};
use crate::names;
use crate::nft::Nft;
use crate::protocol::error::{Error, Result};
use crate::protocol::result::Attachment;

const TABLE: &str = "nat";
const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// The match `multiport` takes no more.
const PORTS_MAX: usize = 15;
/// iptables' own limit for a comment.
const COMMENT_MAX: usize = 255;
/// Two ADDs may make the shared chains at the same time: one of them fails, and
/// finds them there.
const TRIES: usize = 3;

pub fn set_up(config: &Config, site: &Site, address: IpNetwork) -> Result<()> {
    let tools = Tools::of(address.is_ipv4());
    let own = own_lines(config, site, address);
    let mut result = Ok(());
    for _ in 0..TRIES {
        let rules = tools.rules(TABLE);
        let mut lines = shared_lines(config, &rules);
        let stale = rules.iter().filter(|rule| rule.ends_with(&format!(" -j {}", chain(site))));
        lines.extend(stale.filter_map(|rule| rule.strip_prefix("-A ")).map(|rule| format!("-D {rule}")));
        lines.extend_from_slice(&own);
        result = tools.restore(TABLE, &lines);
        if result.is_ok() {
            break;
        }
    }
    result
}

pub fn check(config: &Config, site: &Site, address: IpNetwork) -> Result<()> {
    let rules = Tools::of(address.is_ipv4()).rules(TABLE);
    let chain = chain(site);
    let gone = |what: &str| Error::internal(format!("iptables chain {chain}: {what} is gone"));
    let (jump, begin) = (format!(" -j {chain}"), format!("-A {chain} "));
    if !rules.iter().any(|rule| rule.starts_with(&format!("-A {DNAT} ")) && rule.ends_with(&jump)) {
        return Err(gone(&format!("the jump from {DNAT}")));
    }
    for entry in ENTRIES {
        if !rules.iter().any(|rule| *rule == entry_line(entry)) {
            return Err(gone(&format!("the jump from {entry} to {DNAT}")));
        }
    }
    for (mapping, host_ip) in config.mappings_to(address.ip()) {
        let at = host_ip.map(|ip| format!(" -d {} ", IpNetwork::from(ip))).unwrap_or_default();
        let port = format!(" --dport {} ", mapping.host_port);
        let target = format!(" --to-destination {}", mapping.target(address.ip()));
        let stands = |rule: &String| {
            rule.starts_with(&begin) && rule.contains(&at) && rule.contains(&port) && rule.ends_with(&target)
        };
        if !rules.iter().any(stands) {
            return Err(gone(&format!("port {}/{}", mapping.host_port, mapping.protocol.name())));
        }
    }
    Ok(())
}

pub fn may_have(nft: &mut Nft, site: &Site, v4: bool) -> Result<bool> {
    Tools::of(v4).may_have(nft, TABLE, &chain(site))
}

/// The chain is named after the container. If it leads to other addresses than
/// this interface's, then it is another interface's.
pub fn tear_down(nft: &mut Nft, site: &Site, prev: Option<&Attachment>) -> Result<()> {
    let chain = chain(site);
    let ours: Vec<_> = prev.into_iter().flat_map(|prev| &prev.ips).map(|ip| ip.address.ip()).collect();
    for tools in Tools::both() {
        if !tools.may_have(nft, TABLE, &chain)? {
            continue;
        }
        let rules = tools.rules(TABLE);
        let targets: Vec<_> = rules
            .iter()
            .filter(|rule| rule.starts_with(&format!("-A {chain} ")))
            .filter_map(|rule| rule.rsplit_once(" --to-destination ")?.1.parse::<std::net::SocketAddr>().ok())
            .collect();
        let is_other = !ours.is_empty()
            && !targets.is_empty()
            && !targets.iter().any(|target| ours.contains(&target.ip()));
        if !is_other {
            tools.remove_chain(TABLE, &rules, &chain, |_| true)?;
        }
    }
    Ok(())
}

/// A chain does not tell its network, but the comments of the jumps to it do.
pub fn collect(nft: &mut Nft, network: &str, valid: &Valid) -> Result<()> {
    let valid: Vec<_> = valid.iter().map(|(id, _)| names::chain("DN-", network, id)).collect();
    for tools in Tools::both() {
        if !tools.may_have(nft, TABLE, DNAT)? {
            continue;
        }
        let rules = tools.rules(TABLE);
        let of_network = format!("--comment \"dnat name: \\\"{network}\\\" id: ");
        let jumps = rules.iter().filter(|rule| rule.contains(&of_network));
        let mut stale: Vec<_> = jumps
            .filter_map(|jump| jump.rsplit_once(" -j "))
            .map(|(_, chain)| chain)
            .filter(|chain| chain.starts_with("CNI-DN-") && !valid.iter().any(|valid| valid == chain))
            .collect();
        stale.dedup();
        stale.into_iter().try_for_each(|chain| tools.remove_chain(TABLE, &rules, chain, |_| true))?;
    }
    Ok(())
}

const ENTRIES: [&str; 2] = ["PREROUTING", "OUTPUT"];

fn entry_line(entry: &str) -> String {
    format!("-A {entry} -m addrtype --dst-type LOCAL -j {DNAT}")
}

/// What is missing of the chains that all containers share, in the words in
/// which `--list-rules` has it.
fn shared_lines(config: &Config, rules: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    let missing = |line: &String| !rules.contains(line);
    let chain = |name: &str| format!("-N {name}");
    if config.snat && config.mark_chain.is_none() {
        let mark = 1u32 << config.mark_bit;
        // First of all, since the plugins' other rules would let the packets pass.
        let jump =
            format!("POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j {MASQUERADE}");
        lines.extend([chain(SET_MARK), chain(MASQUERADE)]);
        lines.push(format!(
            "-A {SET_MARK} -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark {mark:#x}/{mark:#x}"
        ));
        lines.push(format!("-A {MASQUERADE} -m mark --mark {mark:#x}/{mark:#x} -j MASQUERADE"));
        if missing(&format!("-A {jump}")) {
            lines.push(format!("-I {jump}"));
        }
    }
    lines.push(chain(DNAT));
    lines.extend(ENTRIES.map(entry_line));
    lines.retain(missing);
    lines
}

fn own_lines(config: &Config, site: &Site, address: IpNetwork) -> Vec<String> {
    let chain = chain(site);
    // A chain that is there is emptied by this.
    let mut lines = vec![format!(":{chain} - [0:0]")];
    let set_mark = config.mark_chain.as_deref().unwrap_or(SET_MARK);
    for (mapping, host_ip) in config.mappings_to(address.ip()) {
        let at = host_ip.map(|ip| format!(" -d {ip}")).unwrap_or_default();
        let base = format!("-A {chain} -p {} --dport {}{at}", mapping.protocol.name(), mapping.host_port);
        if let Some(sources) = config.masqueraded(address) {
            lines.push(format!("{base} -s {sources} -j {set_mark}"));
            if address.is_ipv4() && !config.masq_all {
                lines.push(format!("{base} -s 127.0.0.1 -j {set_mark}"));
            }
        }
        lines.push(format!("{base} -j DNAT --to-destination {}", mapping.target(address.ip())));
    }
    lines.extend(jumps(config, site, address.is_ipv4(), &chain));
    lines
}

fn jumps(config: &Config, site: &Site, v4: bool, chain: &str) -> Vec<String> {
    let mut comment = format!("dnat name: \"{}\" id: \"{}\"", site.network, site.request.container_id);
    if comment.len() > COMMENT_MAX {
        comment.truncate(COMMENT_MAX - 2);
        comment += "...";
    }
    let conditions: String = config.conditions(v4).iter().map(|word| format!(" {}", quoted(word))).collect();
    let mut sorted: Vec<&Mapping> = config.mappings.iter().collect();
    sorted.sort_by_key(|mapping| mapping.protocol);
    sorted
        .chunk_by(|a, b| a.protocol == b.protocol)
        .flat_map(|same| same.chunks(PORTS_MAX))
        .map(|mappings| {
            let ports: Vec<_> = mappings.iter().map(|mapping| mapping.host_port.to_string()).collect();
            format!(
                "-A {DNAT} -m comment --comment {} -m multiport -p {} --destination-ports {}{conditions} -j {chain}",
                quoted(&comment),
                mappings[0].protocol.name(),
                ports.join(",")
            )
        })
        .collect()
}

fn chain(site: &Site) -> String {
    names::chain("DN-", &site.network, &site.request.container_id)
}
