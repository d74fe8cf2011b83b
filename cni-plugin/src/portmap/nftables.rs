//! By nf_tables: a table for each family that all networks share. Its rules
//! carry the container's ID as their comment, by which the reference plugin
//! finds them, and the attachment's name, by which we do.

use ipnetwork::IpNetwork;

use super::config::Config;
use crate::chain::{Site, Valid};
use crate::iptables::run;
use crate::names;
use crate::nft::{Batch, Chain, End, Family, Hook, Is, Listed, Nft, Rule, Table};
use crate::protocol::error::{Error, Result};

const TABLE: &str = "cni_hostport";
const TABLES: [Table<'_>; 2] =
    [Table { family: Family::Ip, name: TABLE }, Table { family: Family::Ip6, name: TABLE }];
const TABLE_COMMENT: &str = "CNI portmap plugin";
const HOSTPORTS_ALL: &str = "hostports_all";
const HOSTPORTS: &str = "hostports";
/// Rules with a host's address stood here once.
const HOSTIP_HOSTPORTS: &str = "hostip_hostports";
const MASQUERADING: &str = "masquerading";
/// Where packets come in: from outside, and from the host itself.
const ENTRIES: [(&str, i32); 2] =
    [("prerouting", libc::NF_INET_PRE_ROUTING), ("output", libc::NF_INET_LOCAL_OUT)];
const DNAT_PRIORITY: i32 = -100;
const SNAT_PRIORITY: i32 = 100;

pub fn set_up(config: &Config, site: &Site, address: IpNetwork) -> Result<()> {
    let mut nft = Nft::open()?;
    let family = family(address);
    let owner = owner(site);
    let mut batch = Batch::default();
    lay_out(&mut nft, &mut batch, config, family)?;
    for chain in [chain(family, HOSTPORTS), chain(family, MASQUERADING)] {
        for stale in nft.rules(chain)?.iter().filter(|rule| rule.owner.as_ref() == Some(&owner)) {
            batch.delete_rule(chain, stale.handle);
        }
    }
    for rule in rules(config, address) {
        batch.rule(&rule.comment(&site.request.container_id).owner(&owner));
    }
    nft.apply(&batch)?;
    if config.conditions(address.is_ipv4()).is_empty() {
        return Ok(());
    }
    run("nft", &["-f", "-"], &conditional_entries(config, family)).map(drop)
}

/// The attachment's rules, and the ways to them.
pub fn check(config: &Config, site: &Site, address: IpNetwork) -> Result<()> {
    let mut nft = Nft::open()?;
    let family = family(address);
    let is_ours = is_ours(site);
    for name in [HOSTPORTS, MASQUERADING] {
        let chain = chain(family, name);
        let wanted: Vec<_> = rules(config, address).filter(|rule| rule.chain == chain).collect();
        let found = nft.standing(chain, &wanted, &is_ours)?;
        if found < wanted.len() {
            let wanted = wanted.len();
            let id = &site.request.container_id;
            let msg = format!("{chain}: {found} of {wanted} rules of container {id} are there");
            return Err(Error::internal(msg));
        }
    }
    for name in [ENTRIES[0].0, ENTRIES[1].0, HOSTPORTS_ALL] {
        let chain = chain(family, name);
        if nft.rules(chain)?.is_empty() {
            return Err(Error::internal(format!("{chain}: the jump to the mapped ports is gone")));
        }
    }
    Ok(())
}

pub fn tear_down(nft: &mut Nft, site: &Site) -> Result<()> {
    nft.delete_rules(&TABLES, is_ours(site))
}

/// What the reference plugin wrote does not tell its network, and stays.
pub fn collect(nft: &mut Nft, network: &str, valid: &Valid) -> Result<()> {
    let ours = names::network_part(network);
    let owners: Vec<_> = valid.iter().map(|(id, ifname)| names::attachment(network, ifname, id)).collect();
    nft.delete_rules(&TABLES, |rule| {
        rule.owner.as_ref().is_some_and(|owner| owner.starts_with(&ours) && !owners.contains(owner))
    })
}

/// The table and its chains, with the rules that all containers share.
fn lay_out(nft: &mut Nft, batch: &mut Batch, config: &Config, family: Family) -> Result<()> {
    let chain = |name| chain(family, name);
    let nat = |number, priority| Hook { kind: "nat", number, priority };
    batch.table(Table { family, name: TABLE }, Some(TABLE_COMMENT));
    for name in [HOSTPORTS, HOSTIP_HOSTPORTS, HOSTPORTS_ALL] {
        nft.need(batch, chain(name), None, None)?;
    }
    let all = Rule::new(chain(HOSTPORTS_ALL));
    let jumps = [HOSTIP_HOSTPORTS, HOSTPORTS].map(|name| all.clone().jump(name));
    nft.keep(batch, all.chain, &jumps)?;
    for (name, hook) in ENTRIES {
        nft.need(batch, chain(name), Some(nat(hook, DNAT_PRIORITY)), None)?;
        if config.conditions(family == Family::Ip).is_empty() {
            let entry = Rule::new(chain(name)).for_this_host().jump(HOSTPORTS_ALL);
            nft.keep(batch, chain(name), &[entry])?;
        }
    }
    if config.snat {
        let hook = nat(libc::NF_INET_POST_ROUTING, SNAT_PRIORITY);
        nft.need(batch, chain(MASQUERADING), Some(hook), None)?;
    }
    Ok(())
}

/// An attachment's own.
fn rules(config: &Config, address: IpNetwork) -> impl Iterator<Item = Rule<'static>> {
    let (family, to) = (family(address), address.ip());
    let forward = config.mappings_to(to).map(move |(mapping, host_ip)| {
        let rule = Rule::new(chain(family, HOSTPORTS));
        let rule = match host_ip {
            Some(ip) => rule.address(End::Destination, Is::Equal, ip.into()),
            None => rule,
        };
        rule.destination_port(mapping.protocol.number(), mapping.host_port)
            .destination_nat(mapping.target(to))
    });
    let mut sources: Vec<IpNetwork> = config.masqueraded(to.into()).into_iter().collect();
    if config.snat && !config.masq_all && to.is_ipv4() {
        sources.push(IpNetwork::from(std::net::IpAddr::from([127, 0, 0, 1])));
    }
    let masquerade = sources.into_iter().map(move |from| {
        Rule::new(chain(family, MASQUERADING))
            .address(End::Source, Is::Equal, from)
            .address(End::Destination, Is::Equal, to.into())
            .masquerade()
    });
    forward.chain(masquerade)
}

/// Conditions are in nft's own language, which only `nft` reads.
fn conditional_entries(config: &Config, family: Family) -> String {
    let conditions = config.conditions(family == Family::Ip).join(" ");
    ENTRIES
        .iter()
        .map(|(entry, _)| {
            format!(
                "flush chain {family} {TABLE} {entry}\n\
                 add rule {family} {TABLE} {entry} {conditions} fib daddr type local jump {HOSTPORTS_ALL}\n"
            )
        })
        .collect()
}

/// A rule without an owner is the reference plugin's, which knows one attachment
/// of a container.
fn is_ours(site: &Site) -> impl Fn(&Listed) -> bool {
    let (owner, id) = (owner(site), &site.request.container_id);
    move |rule| match &rule.owner {
        Some(other) => *other == owner,
        None => rule.comment.as_ref() == Some(id),
    }
}

fn owner(site: &Site) -> String {
    names::attachment(&site.network, site.request.ifname.as_str(), &site.request.container_id)
}

fn family(address: IpNetwork) -> Family {
    if address.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

fn chain(family: Family, name: &'static str) -> Chain<'static> {
    Chain { family, table: TABLE, name }
}
