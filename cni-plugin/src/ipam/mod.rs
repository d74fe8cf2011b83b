//! Addresses for an attachment: host-local in this process, any other IPAM
//! plugin by executing it.

mod boot;
pub mod ranges;
pub mod store;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::chain::{Plugin, Site, Valid};
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::exec::{self, Program};
use crate::protocol::fields::Fields;
use crate::protocol::request::{Command, Request, parse_address};
use crate::protocol::result::{Attachment, Dns, IpConfig, Route};
use ranges::RangeSet;
use store::{Owner, Store};

const NETWORKS: &str = "/var/lib/cni/networks";

/// The IPAM of a rendered config.
#[derive(Debug)]
pub enum Ipam<'a> {
    /// No `ipam.type`: an interface without addresses.
    None,
    HostLocal(&'a Conf),
    Foreign(&'a Conf, Program),
}

impl<'a> Ipam<'a> {
    pub fn of(conf: &'a Conf) -> Result<Ipam<'a>> {
        let name = match conf.fields().object("ipam")? {
            Some(ipam) => Conf::plugin_name(&ipam, "type")?,
            None => String::new(),
        };
        match name.as_str() {
            "" => Ok(Ipam::None),
            "host-local" => Ok(Ipam::HostLocal(conf)),
            other => Ok(Ipam::Foreign(conf, Program::find(other)?)),
        }
    }

    /// Addresses, routes and DNS, no interfaces. `fresh` says that the container
    /// cannot have addresses yet, which saves looking for them.
    pub fn add(&self, request: &Request, fresh: bool) -> Result<Attachment> {
        match self {
            Ipam::None => Ok(Attachment::default()),
            Ipam::HostLocal(conf) => HostLocal::parse(conf, request)?.add(request, fresh),
            Ipam::Foreign(conf, plugin) => {
                let out = plugin.run(Command::Add, &conf.with_prev_result(None))?;
                Attachment::parse(&exec::json(&out, plugin)?, plugin.name())
            }
        }
    }

    /// Release all the attachment has; the addresses released, as far as known.
    /// `known` are those it is thought to have.
    pub fn del(&self, request: &Request, prev: Option<&Attachment>, known: &[IpAddr]) -> Result<Vec<IpAddr>> {
        match self {
            Ipam::None => Ok(Vec::new()),
            Ipam::HostLocal(conf) => {
                let dir = directory(conf)?;
                if !dir.exists() {
                    return Ok(Vec::new());
                }
                let sets = range_sets(conf).map_or(0, |sets| sets.len());
                let hint = if known.len() == sets { known } else { &[] };
                Store::open(&dir)?.release(&owner(request), hint)
            }
            Ipam::Foreign(conf, plugin) => {
                plugin.run(Command::Del, &conf.with_prev_result(prev))?;
                Ok(known.to_vec())
            }
        }
    }

    /// That the attachment has addresses.
    pub fn check(&self, request: &Request, prev: &Attachment) -> Result<()> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal(conf) => {
                let dir = directory(conf)?;
                if dir.exists() && !Store::open(&dir)?.of(&owner(request))?.is_empty() {
                    return Ok(());
                }
                let Owner { container_id, ifname } = owner(request);
                let dir = dir.display();
                Err(Error::internal(format_args!(
                    "{dir}: no address is reserved for {ifname} of container {container_id}"
                )))
            }
            Ipam::Foreign(conf, plugin) => {
                plugin.run(Command::Check, &conf.with_prev_result(Some(prev))).map(drop)
            }
        }
    }

    /// Release what belongs to no valid attachment.
    pub fn gc(&self, valid: &Valid) -> Result<()> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal(conf) => {
                let dir = directory(conf)?;
                if !dir.exists() {
                    return Ok(());
                }
                Store::open(&dir)?.retain(|id, ifname| match ifname {
                    Some(ifname) => valid.contains(id, ifname),
                    None => valid.iter().any(|(valid, _)| valid == id),
                })
            }
            Ipam::Foreign(conf, plugin) => plugin.run(Command::Gc, &valid.put_into(conf)).map(drop),
        }
    }

    pub fn status(&self) -> Result<()> {
        match self {
            Ipam::None | Ipam::HostLocal(_) => Ok(()),
            Ipam::Foreign(conf, plugin) => plugin.run(Command::Status, &conf.to_bytes()).map(drop),
        }
    }
}

/// host-local as a plugin by itself.
#[derive(Debug)]
pub struct HostLocalPlugin(Conf);

impl HostLocalPlugin {
    pub fn new(conf: Conf) -> HostLocalPlugin {
        HostLocalPlugin(conf)
    }

    fn ipam(&self) -> Ipam<'_> {
        Ipam::HostLocal(&self.0)
    }
}

impl Plugin for HostLocalPlugin {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        *result = self.ipam().add(&site.request, false)?;
        Ok(())
    }

    fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()> {
        let known: Vec<_> = prev.iter().flat_map(|prev| &prev.ips).map(|ip| ip.address.ip()).collect();
        self.ipam().del(&site.request, None, &known).map(drop)
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        self.ipam().check(&site.request, prev)
    }

    fn gc(&self, _: &str, valid: &Valid) -> Result<()> {
        self.ipam().gc(valid)
    }
}

/// A host-local config, ready to allocate from.
struct HostLocal<'a> {
    dir: PathBuf,
    sets: Vec<RangeSet>,
    requested: Vec<IpAddr>,
    ipam: Fields<'a>,
}

impl<'a> HostLocal<'a> {
    fn parse(conf: &'a Conf, request: &Request) -> Result<HostLocal<'a>> {
        Ok(HostLocal {
            dir: directory(conf)?,
            sets: range_sets(conf)?,
            requested: requested(conf, request)?,
            ipam: ipam_fields(conf)?,
        })
    }

    fn add(mut self, request: &Request, fresh: bool) -> Result<Attachment> {
        let dns = self.ipam.text("resolvConf")?.filter(|p| !p.is_empty()).map(resolv_conf).transpose()?;
        let routes = parse_routes(&self.ipam, "ipam.routes")?;
        let owner = owner(request);
        let store = Store::open(&self.dir)?;
        if let Some(boot) = boot::id() {
            store.forget_earlier_boots(&boot, boot::began)?;
        }
        let mut ips = Vec::new();
        if let Err(e) = self.allocate(&store, &owner, fresh, &mut ips) {
            let reserved: Vec<_> = ips.iter().map(|ip| ip.address.ip()).collect();
            if !reserved.is_empty() {
                store.release(&owner, &reserved)?;
            }
            return Err(e);
        }
        Ok(Attachment { ips, routes, dns: dns.unwrap_or_default(), ..Attachment::default() })
    }

    fn allocate(&mut self, store: &Store, owner: &Owner, fresh: bool, ips: &mut Vec<IpConfig>) -> Result<()> {
        if !fresh {
            self.refuse_duplicates(store, owner)?;
        }
        for (i, set) in self.sets.iter().enumerate() {
            let (ip, range) = match ranges::take_requested(&mut self.requested, set) {
                Some(ip) => self.reserve_requested(store, owner, i, ip)?,
                None => store.next(owner, i, set)?.ok_or_else(|| {
                    Error::internal(format_args!("no IP addresses available in range set {i}: {set}"))
                })?,
            };
            let address = IpNetwork::new(ip, range.subnet.prefix()).map_err(Error::internal)?;
            ips.push(IpConfig { interface: None, address, gateway: Some(range.gateway) });
        }
        if let Some(left) = self.requested.first() {
            let sets: Vec<_> = self.sets.iter().map(RangeSet::to_string).collect();
            return Err(Error::field(
                "requested IP",
                left,
                format_args!("one address of each of {}", sets.join("; ")),
            ));
        }
        Ok(())
    }

    fn refuse_duplicates(&self, store: &Store, owner: &Owner) -> Result<()> {
        let held = store.of(owner)?;
        let Some(ip) = held.iter().find(|ip| self.sets.iter().any(|set| set.range_of(**ip).is_some())) else {
            return Ok(());
        };
        let id = &owner.container_id;
        Err(Error::internal(format_args!(
            "{ip} has been allocated to {id}, duplicate allocation is not allowed"
        )))
    }

    fn reserve_requested(
        &self,
        store: &Store,
        owner: &Owner,
        i: usize,
        ip: IpAddr,
    ) -> Result<(IpAddr, &ranges::Range)> {
        let set = &self.sets[i];
        let range = set.range_of(ip).ok_or_else(|| Error::internal(format_args!("{ip} is not in {set}")))?;
        if ip == range.gateway {
            return Err(Error::field("requested IP", ip, "an address other than the subnet's gateway"));
        }
        if !store.reserve(owner, i, ip)? {
            return Err(Error::internal(format_args!(
                "requested IP address {ip} is not available in range set {set}"
            )));
        }
        Ok((ip, range))
    }
}

/// `routes` of an IPAM config; `at` is its place for errors.
pub fn parse_routes(ipam: &Fields<'_>, at: &str) -> Result<Vec<Route>> {
    let route = |(i, value): (usize, &Value)| {
        let expected = |e| format!("{{\"dst\":\"<subnet>\",\"gw\":\"<address>\"}} ({e})");
        Route::deserialize(value).map_err(|e| Error::field(format_args!("{at}[{i}]"), value, expected(e)))
    };
    ipam.list("routes")?.iter().enumerate().map(route).collect()
}

fn owner(request: &Request) -> Owner {
    Owner { container_id: request.container_id.clone(), ifname: request.ifname.to_string() }
}

fn ipam_fields(conf: &Conf) -> Result<Fields<'_>> {
    let fields = conf.fields();
    fields.object("ipam")?.ok_or_else(|| fields.wrong("ipam", "an object"))
}

fn directory(conf: &Conf) -> Result<PathBuf> {
    let data_dir = ipam_fields(conf)?.text("dataDir")?.filter(|p| !p.is_empty()).unwrap_or(NETWORKS);
    Ok(Path::new(data_dir).join(&conf.network))
}

fn range_sets(conf: &Conf) -> Result<Vec<RangeSet>> {
    ranges::parse(&ipam_fields(conf)?, conf.fields().object("runtimeConfig")?.as_ref())
}

/// Addresses asked for by `CNI_ARGS`, `args.cni.ips` and `runtimeConfig.ips`.
fn requested(conf: &Conf, request: &Request) -> Result<Vec<IpAddr>> {
    let fields = conf.fields();
    let mut ips: Vec<_> = request.args.ip.into_iter().collect();
    let args = fields.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
    for place in [args, fields.object("runtimeConfig")?].into_iter().flatten() {
        for value in place.list("ips")? {
            let ip = value.as_str().and_then(parse_address);
            ips.push(ip.ok_or_else(|| Error::field(place.place("ips"), value, "an IP address"))?);
        }
    }
    ips.iter_mut().for_each(|ip| *ip = ip.to_canonical());
    ips.sort_unstable();
    ips.dedup();
    Ok(ips)
}

/// DNS of a file in resolv.conf(5)'s format.
fn resolv_conf(path: &str) -> Result<Dns> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("ipam.resolvConf", Path::new(path), &e))?;
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match (words.next().as_deref(), words.next()) {
            (Some("nameserver"), Some(server)) => dns.nameservers.push(server),
            (Some("domain"), Some(domain)) => dns.domain = domain,
            (Some("search"), Some(first)) => dns.search.extend(std::iter::once(first).chain(words)),
            (Some("options"), Some(first)) => dns.options.extend(std::iter::once(first).chain(words)),
            _ => {}
        }
    }
    Ok(dns)
}
