//! Which interface other nodes reach this one by (flannel main.go and
//! pkg/ipmatch/match.go), and what else this host reaches. A pure function of
//! what `kernel::host` read.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use regex::Regex;
use thiserror::Error;

use crate::backends::Node;
use crate::kernel::host::{Host, HostAddress, HostLink, HostRoute, Reach};
use crate::model::{Family, IfName, PerFamily, Pool};

/// What a person asked for. The first that fits wins: `ifaces`, `patterns`,
/// `can_reach`. Where all three are empty, the owner of `public_ip` is taken,
/// and where that is empty too, the default route's interface.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names or addresses.
    pub ifaces: Vec<String>,
    /// Matched against addresses, then against names.
    pub patterns: Vec<Regex>,
    /// How the kernel would reach a given address.
    pub can_reach: Option<(IpAddr, Option<Reach>)>,
    pub public_ip: PerFamily<IpAddr>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum UplinkError {
    #[error("--iface {wanted}: no such interface or address: this host has {have}")]
    NoSuchInterface { wanted: String, have: String },
    #[error("--iface-regex {pattern}: no address and no name matches: this host has {have}")]
    NothingMatches { pattern: String, have: String },
    #[error("--iface-can-reach {0}: the kernel has no route to it")]
    Unreachable(IpAddr),
    #[error("no {0} default route, and no --iface or --public-ip names an interface: give --iface")]
    NoDefaultRoute(Family),
    #[error("the default routes of IPv4 and IPv6 leave by {0} and {1}: choose one with --iface")]
    TwoDefaults(IfName, IfName),
    #[error("no interface owns the public address {0}: give --iface beside it")]
    NobodyOwns(IpAddr),
    #[error("the public addresses belong to two interfaces, {0} and {1}: choose one with --iface")]
    TwoOwners(IfName, IfName),
    #[error(
        "interface {0} has no usable {1} address, which the network config asks for: add one or choose another with --iface"
    )]
    NoAddress(IfName, Family),
    #[error("interface {0} has MTU 0")]
    NoMtu(IfName),
    #[error("no interface fits: {0}")]
    NoneFits(String),
}

/// The link to take, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub node: Node,
    pub because: String,
}

/// flannel's rules in flannel's order. An address of `current`, what was chosen
/// before, is kept while it can be used, whatever others came to its link.
pub fn choose(
    host: &Host,
    request: &Request,
    families: &[Family],
    current: Option<&Node>,
) -> Result<Choice, UplinkError> {
    let mut passed = Vec::new();
    for found in finds(host, request, families) {
        match found.and_then(|find| settle(find, request, families, current)) {
            Ok(choice) if passed.is_empty() => return Ok(choice),
            Ok(Choice { node, because }) => {
                return Ok(Choice { node, because: format!("{because} ({})", list(&passed)) });
            }
            Err(error) => passed.push(error),
        }
    }
    match passed.len() {
        1 => Err(passed.remove(0)),
        _ => Err(UplinkError::NoneFits(list(&passed))),
    }
}

/// The first network of this host that `pool` overlaps, in words. `own` names
/// links whose addresses and routes are the fabric's.
pub fn overlap(
    host: &Host,
    pool: &Pool,
    own: impl Fn(&HostRoute, Option<&HostLink>) -> bool,
) -> Option<String> {
    let link = |index: u32| host.links.iter().find(|link| link.index == index);
    let meets = |net: IpNetwork| {
        Family::of_net(net) == Family::of_net(pool.network)
            && (net.contains(pool.network.ip()) || pool.network.contains(net.ip()))
    };
    host.routes
        .iter()
        .filter(|route| route.dst.prefix() > 0 && meets(route.dst) && !own(route, link(route.link)))
        .map(|route| match link(route.link) {
            Some(link) => format!("route {} dev {}", route.dst, link.name),
            None => format!("route {}", route.dst),
        })
        .next()
}

/// An interface that fits one wish, the addresses that this names, and why.
struct Find<'a> {
    link: &'a HostLink,
    named: PerFamily<IpAddr>,
    because: String,
}

/// What fits each wish, in their order.
fn finds<'a>(host: &'a Host, request: &Request, families: &[Family]) -> Vec<Result<Find<'a>, UplinkError>> {
    let by_name = request.ifaces.iter().map(|wanted| named(host, wanted));
    let by_pattern = request.patterns.iter().map(|pattern| matching(host, pattern, families));
    let by_reach = request.can_reach.iter().map(|(target, reach)| reaching(host, *target, *reach));
    let asked: Vec<_> = by_name.chain(by_pattern).chain(by_reach).collect();
    if !asked.is_empty() {
        return asked;
    }
    let public: Vec<IpAddr> = families.iter().filter_map(|f| request.public_ip.get(*f).copied()).collect();
    match public.is_empty() {
        false => vec![owning(host, &public)],
        true => vec![default_route(host, families)],
    }
}

fn named<'a>(host: &'a Host, wanted: &str) -> Result<Find<'a>, UplinkError> {
    let missing = || UplinkError::NoSuchInterface { wanted: wanted.to_owned(), have: names(host) };
    let because = format!("--iface {wanted} names it");
    match wanted.parse::<IpAddr>() {
        Ok(ip) => {
            let link = owner(host, ip).ok_or_else(missing)?;
            Ok(Find { link, named: [(Family::of(ip), ip)].into_iter().collect(), because })
        }
        Err(_) => {
            let link = host.links.iter().find(|link| link.name.as_str() == wanted).ok_or_else(missing)?;
            Ok(Find { link, named: PerFamily::default(), because })
        }
    }
}

/// Addresses first, an address of each family on one link; then names.
fn matching<'a>(host: &'a Host, pattern: &Regex, families: &[Family]) -> Result<Find<'a>, UplinkError> {
    // A tunnel of ours is never the way to itself.
    let links = || host.links.iter().filter(|link| !link.name.as_str().starts_with("flannel"));
    let matched = |link: &HostLink| -> PerFamily<IpAddr> {
        let of = |family| candidates(link, family, None).into_iter();
        let first = |family| of(family).find(|ip| pattern.is_match(&ip.to_string()));
        families.iter().filter_map(|family| Some((*family, first(*family)?))).collect()
    };
    let by_address = links().map(|link| (link, matched(link)));
    if let Some((link, named)) =
        by_address.into_iter().find(|(_, named)| families.iter().all(|family| named.get(*family).is_some()))
    {
        let because = format!("its address matches --iface-regex {pattern}");
        return Ok(Find { link, named, because });
    }
    let link = links().find(|link| pattern.is_match(link.name.as_str())).ok_or_else(|| {
        UplinkError::NothingMatches {
            pattern: pattern.to_string(),
            have: names_and_addresses(host, families),
        }
    })?;
    let because = format!("its name matches --iface-regex {pattern}");
    Ok(Find { link, named: PerFamily::default(), because })
}

fn reaching(host: &Host, target: IpAddr, reach: Option<Reach>) -> Result<Find<'_>, UplinkError> {
    let unreachable = UplinkError::Unreachable(target);
    let Some(reach) = reach else { return Err(unreachable) };
    let link = by_index(host, reach.link).ok_or(unreachable)?;
    let named = reach.source.map(|ip| (Family::of(ip), ip)).into_iter().collect();
    Ok(Find { link, named, because: format!("it reaches {target}") })
}

fn owning<'a>(host: &'a Host, public: &[IpAddr]) -> Result<Find<'a>, UplinkError> {
    let owners = public.iter().map(|ip| owner(host, *ip).ok_or(UplinkError::NobodyOwns(*ip)));
    let link = one_link(owners, UplinkError::TwoOwners)?;
    let owned = public.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ");
    let named = public.iter().map(|ip| (Family::of(*ip), *ip)).collect();
    Ok(Find { link, named, because: format!("it owns {owned}") })
}

fn default_route<'a>(host: &'a Host, families: &[Family]) -> Result<Find<'a>, UplinkError> {
    let defaults =
        families.iter().map(|family| default_link(host, *family).ok_or(UplinkError::NoDefaultRoute(*family)));
    let link = one_link(defaults, UplinkError::TwoDefaults)?;
    Ok(Find { link, named: PerFamily::default(), because: "the default route leaves by it".to_owned() })
}

/// The link that all of these are; `differ` where they are two.
fn one_link<'a>(
    links: impl Iterator<Item = Result<&'a HostLink, UplinkError>>,
    differ: fn(IfName, IfName) -> UplinkError,
) -> Result<&'a HostLink, UplinkError> {
    let mut found: Option<&HostLink> = None;
    for link in links {
        let link = link?;
        if let Some(other) = found.filter(|other| other.index != link.index) {
            return Err(differ(other.name, link.name));
        }
        found = Some(link);
    }
    found.ok_or(UplinkError::NoDefaultRoute(Family::V4))
}

/// The node that a find makes.
fn settle(
    find: Find<'_>,
    request: &Request,
    families: &[Family],
    current: Option<&Node>,
) -> Result<Choice, UplinkError> {
    let Find { link, named, because } = find;
    if link.mtu == 0 {
        return Err(UplinkError::NoMtu(link.name));
    }
    let mut address = PerFamily::default();
    for &family in families {
        let best = || candidates(link, family, current).first().copied();
        let ip = named.get(family).copied().or_else(best);
        address.set(family, Some(ip.ok_or(UplinkError::NoAddress(link.name, family))?));
    }
    let public_ip = address.map(|family, own| request.public_ip.get(family).copied().unwrap_or(own));
    let mut on_link: Vec<_> =
        link.addresses.iter().filter(|a| !a.link_local).map(|a| masked(a.net)).collect();
    // Many addresses of one prefix, in whatever order, make the same node.
    on_link.sort_unstable();
    on_link.dedup();
    let node = Node { uplink: link.name, uplink_mtu: link.mtu, address, public_ip, on_link };
    Ok(Choice { node, because })
}

fn owner(host: &Host, ip: IpAddr) -> Option<&HostLink> {
    host.links.iter().find(|link| link.addresses.iter().any(|a| a.net.ip() == ip))
}

fn by_index(host: &Host, index: u32) -> Option<&HostLink> {
    host.links.iter().find(|link| link.index == index)
}

fn default_link(host: &Host, family: Family) -> Option<&HostLink> {
    host.routes
        .iter()
        .filter(|route| route.dst.prefix() == 0 && Family::of_net(route.dst) == family)
        .min_by_key(|route| route.metric)
        .and_then(|route| by_index(host, route.link))
}

/// The addresses that a node can be reached at for long, best first: global
/// before link-local, what is in use, then permanent before leased. Temporary
/// ones (RFC 8981) change by the day, and deprecated ones are on their way out.
fn candidates(link: &HostLink, family: Family, current: Option<&Node>) -> Vec<IpAddr> {
    let in_use = |a: &HostAddress| current.is_some_and(|node| node.address.get(family) == Some(&a.net.ip()));
    let usable = |a: &&HostAddress| Family::of_net(a.net) == family && !a.unusable && !a.temporary;
    let mut usable: Vec<_> = link.addresses.iter().filter(usable).collect();
    usable.sort_by_key(|a| (a.link_local, !in_use(a), !a.permanent));
    usable.into_iter().map(|a| a.net.ip()).collect()
}

fn masked(net: IpNetwork) -> IpNetwork {
    // The prefix length comes from a valid network of the same family.
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

fn names(host: &Host) -> String {
    host.links.iter().map(|link| link.name.to_string()).collect::<Vec<_>>().join(", ")
}

fn names_and_addresses(host: &Host, families: &[Family]) -> String {
    let shown = host.links.iter().map(|link| {
        let ips = families.iter().flat_map(|family| candidates(link, *family, None));
        let ips = ips.map(|ip| ip.to_string()).collect::<Vec<_>>().join(" ");
        if ips.is_empty() { link.name.to_string() } else { format!("{} {ips}", link.name) }
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn list(errors: &[UplinkError]) -> String {
    errors.iter().map(UplinkError::to_string).collect::<Vec<_>>().join("; ")
}
