//! By iptables: a chain a container, which the addresses of its interfaces jump
//! to.

use std::net::IpAddr;

use super::Masquerade;
use crate::chain::Valid;
use crate::iptables::Tools;
use crate::names;
use crate::nft::Nft;
use crate::protocol::error::Result;
use crate::protocol::result::IpConfig;

pub fn set_up(of: &Masquerade<'_>, ips: &[IpConfig]) -> Result<()> {
    let (chain, comment) = (chain(of), comment(of.network, of.container_id));
    for (v4, multicast) in [(true, "224.0.0.0/4"), (false, "ff00::/8")] {
        let nets: Vec<_> = ips.iter().map(|ip| ip.address).filter(|net| net.is_ipv4() == v4).collect();
        if nets.is_empty() {
            continue;
        }
        let mut lines = vec![format!(":{chain} - [0:0]")];
        lines.extend(
            nets.iter()
                .map(|net| format!("-A {chain} -d {}/{} {comment} -j ACCEPT", net.network(), net.prefix())),
        );
        lines.push(format!("-A {chain} ! -d {multicast} {comment} -j MASQUERADE"));
        lines.extend(nets.iter().map(|net| format!("-A POSTROUTING -s {} {comment} -j {chain}", net.ip())));
        Tools::of(v4).restore("nat", &lines)?;
    }
    Ok(())
}

/// The chain is named after the container, whose other interfaces may have
/// jumps to it.
pub fn tear_down(of: &Masquerade<'_>, ips: &[IpAddr]) -> Result<()> {
    let (mut nft, chain) = (Nft::open()?, chain(of));
    for tools in Tools::both() {
        if tools.may_have(&mut nft, "nat", &chain)? {
            let ours =
                |jump: &str| ips.is_empty() || ips.iter().any(|ip| jump.contains(&format!(" -s {ip}/")));
            tools.remove_chain("nat", &tools.rules("nat"), &chain, ours)?;
        }
    }
    Ok(())
}

/// A chain does not tell its network, but the comments of the jumps to it do.
pub fn collect(nft: &mut Nft, network: &str, valid: &Valid) -> Result<()> {
    let of_network = format!("--comment \"name: \\\"{network}\\\" id: ");
    let chains: Vec<_> = valid.iter().map(|(id, _)| names::chain("", network, id)).collect();
    for tools in Tools::both() {
        if !tools.may_have(nft, "nat", "POSTROUTING")? {
            continue;
        }
        let rules = tools.rules("nat");
        let jumps =
            rules.iter().filter(|rule| rule.starts_with("-A POSTROUTING ") && rule.contains(&of_network));
        let mut stale: Vec<_> = jumps
            .filter_map(|jump| jump.rsplit_once(" -j "))
            .map(|(_, chain)| chain)
            .filter(|chain| chain.starts_with("CNI-") && !chains.iter().any(|valid| valid == chain))
            .collect();
        stale.sort_unstable();
        stale.dedup();
        stale.into_iter().try_for_each(|chain| tools.remove_chain("nat", &rules, chain, |_| true))?;
    }
    Ok(())
}

fn chain(of: &Masquerade<'_>) -> String {
    names::chain("", of.network, of.container_id)
}

/// As `iptables-restore` reads it and `--list-rules` prints it.
fn comment(network: &str, container_id: &str) -> String {
    format!("-m comment --comment \"name: \\\"{network}\\\" id: \\\"{container_id}\\\"\"")
}
