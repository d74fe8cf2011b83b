//! Lets containers' traffic through a host that forwards none of itself, and
//! keeps bridges apart where `ingressPolicy` says so
//! (containernetworking/plugins plugins/meta/firewall).

mod firewalld;
pub mod owners;
mod rules;

use std::net::IpAddr;

use weft::model::IfName;

use crate::chain::{Plugin, Site, Valid};
use crate::iptables::Tools;
use crate::nft::Nft;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Code, Error, Result};
use crate::protocol::fields::Fields;
use crate::protocol::result::Attachment;
use owners::{Owner, Owners};
use rules::{ACCEPT_CHAIN, Isolation, Wanted, removals};

const DATA_DIR: &str = "/run/cni/firewall";
const TABLE: &str = "filter";
/// How often somebody else may be in the way of a change.
const TRIES: u32 = 50;

#[derive(Debug)]
pub struct Firewall(Conf);

impl Firewall {
    pub fn new(conf: Conf) -> Firewall {
        Firewall(conf)
    }
}

impl Plugin for Firewall {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        if *result == Attachment::default() {
            let msg = "prevResult: missing: firewall goes after a plugin that gives the container addresses";
            return Err(Error::new(Code::NetworkConfig, msg));
        }
        let rules = Rules::parse(&self.0, result)?;
        let addresses = addresses(result);
        let zone = self.zone()?;
        let (owners, owner) = (self.owners()?, Owner::of(site, zone.clone()));
        let recorded = addresses.iter().try_for_each(|address| owners.put(*address, &owner));
        let done = recorded.and_then(|()| rules.set_up(&addresses, zone.as_deref()));
        if done.is_err() {
            let owned: Vec<_> = addresses.into_iter().map(|address| (address, owner.clone())).collect();
            if let Err(e) = tear_down(&owners, &owned) {
                eprintln!("weft-cni: while undoing a failed ADD: {e}");
            }
        }
        done
    }

    /// A bridge's isolation stays: other containers may still need it.
    fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()> {
        let owners = self.owners()?;
        let Some(prev) = prev else { return tear_down(&owners, &owners.of(site)?) };
        let mut ours = Vec::new();
        for address in addresses(prev) {
            match owners.get(address)? {
                Some(owner) if owner.is(site) => ours.push((address, owner)),
                Some(_) => {}
                None => ours.push((address, Owner::of(site, self.zone()?))),
            }
        }
        tear_down(&owners, &ours)
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        let addresses = addresses(prev);
        let owners = self.owners()?;
        let owner = addresses.first().map(|address| owners.get(*address)).transpose()?.flatten();
        let zone = match owner.filter(|owner| owner.is(site)) {
            Some(owner) => owner.zone,
            None => self.zone()?,
        };
        if let Some(zone) = &zone {
            firewalld::check(zone, &addresses)?;
        }
        let rules = Rules::parse(&self.0, prev)?;
        for (tools, addresses) in by_family(&addresses) {
            let wanted = rules.wanted(&addresses, zone.as_deref());
            if let Some(missing) = wanted.additions(&tools.rules(TABLE)).first() {
                return Err(Error::internal(format_args!("iptables, table {TABLE}: missing: {missing}")));
            }
        }
        Ok(())
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        let owners = self.owners()?;
        let stale = owners.stale(network, valid)?;
        tear_down(&owners, &stale)
    }
}

impl Firewall {
    fn owners(&self) -> Result<Owners> {
        Owners::at(&text(&self.0.fields(), "dataDir", DATA_DIR)?)
    }

    /// firewalld's zone, where that is the backend: for any other word than these
    /// two if it runs, as for the reference plugin.
    fn zone(&self) -> Result<Option<String>> {
        let fields = self.0.fields();
        let firewalld = match fields.text("backend")? {
            Some("iptables") => false,
            Some("firewalld") => true,
            _ => firewalld::is_running()?,
        };
        if firewalld { text(&fields, "firewalldZone", "trusted").map(Some) } else { Ok(None) }
    }
}

/// What a config asks for, checked.
#[derive(Debug)]
struct Rules {
    admin_chain: String,
    isolation: Option<Isolation>,
}

impl Rules {
    fn parse(conf: &Conf, result: &Attachment) -> Result<Rules> {
        let fields = conf.fields();
        let isolation = match text(&fields, "ingressPolicy", "open")?.as_str() {
            "open" => None,
            "same-bridge" => Some(Isolation { bridge: bridge(result)?, within: false }),
            "isolated" => Some(Isolation { bridge: bridge(result)?, within: true }),
            _ => return Err(fields.wrong("ingressPolicy", "\"open\", \"same-bridge\" or \"isolated\"")),
        };
        Ok(Rules { admin_chain: admin_chain(&fields)?, isolation })
    }

    fn set_up(&self, addresses: &[IpAddr], zone: Option<&str>) -> Result<()> {
        if let Some(zone) = zone {
            firewalld::add(zone, addresses)?;
        }
        by_family(addresses).try_for_each(|(tools, addresses)| {
            let wanted = self.wanted(&addresses, zone);
            if wanted.is_empty() { Ok(()) } else { edit(tools, |listing| wanted.additions(listing)) }
        })
    }

    fn wanted<'a>(&'a self, addresses: &'a [IpAddr], zone: Option<&str>) -> Wanted<'a> {
        let accept = if zone.is_none() { addresses } else { &[] };
        Wanted { accept, admin_chain: &self.admin_chain, isolation: self.isolation.as_ref() }
    }
}

fn tear_down(owners: &Owners, owned: &[(IpAddr, Owner)]) -> Result<()> {
    let mut in_chain = Vec::new();
    for (address, owner) in owned {
        match &owner.zone {
            Some(zone) => firewalld::remove(zone, *address)?,
            None => in_chain.push(*address),
        }
    }
    for (tools, addresses) in by_family(&in_chain) {
        if tools.is_installed() && tools.may_have(&mut Nft::open()?, TABLE, ACCEPT_CHAIN)? {
            edit(tools, |listing| removals(&addresses, listing))?;
        }
    }
    owned.iter().try_for_each(|(address, _)| owners.remove(*address))
}

fn addresses(result: &Attachment) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.ip()).collect()
}

fn by_family(addresses: &[IpAddr]) -> impl Iterator<Item = (&'static Tools, Vec<IpAddr>)> {
    [true, false].into_iter().filter_map(|v4| {
        let of_family: Vec<_> = addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
        (!of_family.is_empty()).then(|| (Tools::of(v4), of_family))
    })
}

/// Change the rules by what `change` makes of their listing. It is done as a whole
/// or, where somebody else was faster, refused: then it is made anew.
fn edit(tools: &Tools, change: impl Fn(&[String]) -> Vec<String>) -> Result<()> {
    let mut before = None;
    let mut tries = 0;
    loop {
        let listing = tools.rules(TABLE);
        let lines = change(&listing);
        if lines.is_empty() {
            return Ok(());
        }
        let Err(e) = tools.restore(TABLE, &lines) else { return Ok(()) };
        tries += 1;
        if before.as_ref() == Some(&listing) || tries == TRIES {
            return Err(e);
        }
        before = Some(listing);
    }
}

fn text(fields: &Fields<'_>, key: &str, default: &str) -> Result<String> {
    Ok(fields.text(key)?.filter(|text| !text.is_empty()).unwrap_or(default).to_owned())
}

fn admin_chain(fields: &Fields<'_>) -> Result<String> {
    let key = "iptablesAdminChainName";
    let name = text(fields, key, "CNI-ADMIN")?;
    if name.len() > 28 || !is_word(&name) {
        let expected = "a chain's name: letters, digits, '_', '.', ':', '@', '+' and '-', 28 at most";
        return Err(fields.wrong(key, expected));
    }
    Ok(name)
}

/// The first interface, as the bridge plugin reports it. A '+' at the end would
/// stand for any name that begins so.
fn bridge(result: &Attachment) -> Result<IfName> {
    let name = result.interfaces.first().map(|interface| interface.name.as_str()).unwrap_or_default();
    name.parse().ok().filter(|_| is_word(name) && !name.ends_with('+')).ok_or_else(|| {
        let expected = "a bridge's name: an ingressPolicy goes after the bridge plugin";
        Error::field("prevResult.interfaces[0].name", format_args!("{name:?}"), expected)
    })
}

/// That it can stand as one word in a line for `iptables-restore`.
fn is_word(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-' | b'@' | b'+');
    !text.is_empty() && !text.starts_with('-') && text.bytes().all(fits)
}
