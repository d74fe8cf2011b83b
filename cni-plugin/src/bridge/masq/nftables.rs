//! By nf_tables: one rule an address in a chain that all networks share. A
//! rule's comment begins with the attachment's name, by which it is found.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::Masquerade;
use crate::chain::Valid;
use crate::names;
use crate::nft::{Batch, Chain, End, Family, Hook, Is, Listed, Nft, Rule, Table};
use crate::protocol::error::Result;
use crate::protocol::result::IpConfig;

const TABLE: Table<'_> = Table { family: Family::Inet, name: "cni_plugins_masquerade" };
const TABLE_COMMENT: &str = "Masquerading for plugins from github.com/containernetworking/plugins";
const CHECKS: Chain<'_> = Chain { family: TABLE.family, table: TABLE.name, name: "masq_checks" };
const CHECKS_COMMENT: &str =
    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
const POSTROUTING: Chain<'_> = Chain { name: "postrouting", ..CHECKS };
const HOOK: Hook = Hook { kind: "nat", number: libc::NF_INET_POST_ROUTING, priority: 100 };

pub fn set_up(of: &Masquerade<'_>, ips: &[IpConfig]) -> Result<()> {
    let mut nft = Nft::open()?;
    let key = key(of);
    let comment = format!("{key}, net: {}, if: {}, id: {}", of.network, of.ifname, of.container_id);
    let mut batch = Batch::default();
    batch.table(TABLE, Some(TABLE_COMMENT));
    nft.need(&mut batch, CHECKS, None, Some(CHECKS_COMMENT))?;
    nft.need(&mut batch, POSTROUTING, Some(HOOK), None)?;
    let to_multicast = |net| Rule::new(POSTROUTING).address(End::Destination, Is::Equal, net).back();
    let mut shared: Vec<_> = multicast().map(to_multicast).collect();
    shared.push(Rule::new(POSTROUTING).goto(CHECKS.name));
    nft.keep(&mut batch, POSTROUTING, &shared)?;
    for stale in nft.rules(CHECKS)?.iter().filter(|rule| begins_with(rule, &key)) {
        batch.delete_rule(CHECKS, stale.handle);
    }
    for net in ips.iter().map(|ip| ip.address) {
        let rule = Rule::new(CHECKS).address(End::Source, Is::Equal, net.ip().into()).address(
            End::Destination,
            Is::Unequal,
            net,
        );
        batch.rule(&rule.masquerade().comment(&comment));
    }
    nft.apply(&batch)
}

pub fn tear_down(of: &Masquerade<'_>) -> Result<()> {
    let key = key(of);
    Nft::open()?.delete_rules(&[TABLE], |rule| begins_with(rule, &key))
}

pub fn collect(nft: &mut Nft, network: &str, valid: &Valid) -> Result<()> {
    let ours = names::network_part(network);
    let keys: Vec<_> = valid.iter().map(|(id, ifname)| names::attachment(network, ifname, id)).collect();
    nft.delete_rules(&[TABLE], |rule| {
        begins_with(rule, &ours) && !keys.iter().any(|key| begins_with(rule, key))
    })
}

fn key(of: &Masquerade<'_>) -> String {
    names::attachment(of.network, of.ifname, of.container_id)
}

fn begins_with(rule: &Listed, key: &str) -> bool {
    rule.comment.as_deref().is_some_and(|comment| comment.starts_with(key))
}

fn multicast() -> impl Iterator<Item = IpNetwork> {
    let v4 = Ipv4Network::new(Ipv4Addr::new(224, 0, 0, 0), 4).map(IpNetwork::V4);
    let v6 = Ipv6Network::new(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).map(IpNetwork::V6);
    [v4, v6].into_iter().flatten()
}
