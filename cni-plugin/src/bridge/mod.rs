//! The bridge plugin (containernetworking/plugins plugins/main/bridge): addresses
//! and wiring put together, and undone where they fail.

mod check;
pub mod config;
mod container;
mod gateway;
mod masq;
mod spoof;
mod vlan;
mod wiring;

use std::collections::HashSet;
use std::net::IpAddr;

use weft::model::IfName;

use crate::chain::{Plugin, Site, Valid};
use crate::identity;
use crate::ipam::Ipam;
use crate::kernel::netns::NetNs;
use crate::kernel::{Kernel, Link};
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::result::Attachment;
use config::Config;
use masq::{Backend, Masquerade};
use spoof::SpoofCheck;
use wiring::Wiring;

#[derive(Debug)]
pub struct Bridge {
    conf: Conf,
    /// The container cannot have addresses yet, which saves looking for them.
    fresh: bool,
}

impl Bridge {
    pub fn new(conf: Conf) -> Bridge {
        Bridge { conf, fresh: false }
    }

    pub fn for_flannel(conf: Conf, fresh: bool) -> Bridge {
        Bridge { conf, fresh }
    }
}

impl Plugin for Bridge {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        let request = &site.request;
        let config = Config::parse(&self.conf, request)?;
        let ipam = Ipam::of(&self.conf)?;
        let netns = NetNs::of(request)?;
        let given = ipam.add(request, self.fresh)?;
        let addresses: Vec<_> = given.ips.iter().map(|ip| ip.address.ip()).collect();
        if addresses.is_empty() && !matches!(ipam, Ipam::None) {
            return Err(Error::internal("the IPAM plugin returned no address"));
        }
        match Wiring::new(&config, site, &netns).and_then(|wiring| wiring.attach(given)) {
            Ok(attachment) => *result = attachment,
            Err(e) => {
                ipam.del(request, None, &addresses)?;
                return Err(e);
            }
        }
        Ok(())
    }

    fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()> {
        let request = &site.request;
        let mut host = Kernel::open()?;
        let end = identity::host_end(&site.network, &request.container_id, request.ifname.as_str())?;
        let end = host.link(end)?.filter(|link| link.is_veth);
        let rules = self.remove_rules(site, &mut host, end.as_ref());
        let mut known = match NetNs::existing_of(request)? {
            Some(netns) => netns.enter(|| leave(request.ifname, end.as_ref()))?,
            None => Vec::new(),
        };
        if let Some(end) = end {
            host.delete_link(end.index)?;
        }
        if let Some(prev) = prev {
            delete_host_ends(&mut host, prev)?;
            if known.is_empty() {
                known = prev.ips.iter().map(|ip| ip.address.ip()).collect();
            }
        }
        let released = Ipam::of(&self.conf)?.del(request, prev, &known)?;
        match self.masquerade(site) {
            Some(masq) => masq.tear_down_iptables(&released).and(rules),
            None => rules,
        }
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        check::check(&self.conf, &site.request, prev)
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        let wires = delete_stale_ends(network, valid);
        let addresses = Ipam::of(&self.conf).and_then(|ipam| ipam.gc(valid));
        wires.and(addresses).and(spoof::collect(network, valid)).and(masq::collect(network, valid))
    }

    fn status(&self) -> Result<()> {
        Ipam::of(&self.conf)?.status()
    }
}

impl Bridge {
    /// Those of nftables, before the link goes: the kernel lets nobody close the
    /// socket until it has freed them, which it then does while it frees the link.
    /// But nothing may come from a link whose sender is not checked any more.
    fn remove_rules(&self, site: &Site, host: &mut Kernel, end: Option<&Link>) -> Result<()> {
        if self.conf.fields().bool("macspoofchk").unwrap_or(true) {
            if let Some(end) = end {
                host.stop(end.index)?;
            }
            SpoofCheck::of(site).tear_down()?;
        }
        self.masquerade(site).map_or(Ok(()), |masq| masq.tear_down_nftables())
    }

    /// DEL's, for which any backend may have been named then.
    fn masquerade<'a>(&self, site: &'a Site) -> Option<Masquerade<'a>> {
        let masquerades = self.conf.fields().bool("ipMasq").unwrap_or(true);
        masquerades.then(|| Masquerade::of(&site.network, &site.request, Backend::Any))
    }
}

/// Inside the container: the addresses the interface has. The interface goes with
/// the host's `end`; by itself where that is not known by its name, since another
/// plugin made it. One that is not the other end of `end` is none of ours.
fn leave(name: IfName, end: Option<&Link>) -> Result<Vec<IpAddr>> {
    let mut kernel = Kernel::open()?;
    let Some(link) = kernel.link(name)? else { return Ok(Vec::new()) };
    if end.is_some_and(|end| end.peer != Some(link.index) || link.peer != Some(end.index)) {
        return Ok(Vec::new());
    }
    let mut addresses = kernel.addresses(link.index, true)?;
    addresses.extend(kernel.addresses(link.index, false)?);
    if end.is_none() {
        kernel.delete_link(link.index)?;
    }
    let global = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Ok(addresses.iter().map(|a| a.net.ip()).filter(global).collect())
}

/// What another plugin made lives on when the namespace's name is gone but a
/// process still holds the namespace. It is the attachment's if it has the MAC
/// that ADD reported.
fn delete_host_ends(host: &mut Kernel, prev: &Attachment) -> Result<()> {
    for interface in prev.interfaces.iter().filter(|i| i.sandbox.is_empty() && !i.mac.is_empty()) {
        let Ok(name) = interface.name.parse() else { continue };
        let Some(link) = host.link(name)? else { continue };
        let same = link.mac.is_some_and(|mac| mac.to_string() == interface.mac);
        if link.is_veth && !link.peer_is_here() && same {
            host.delete_link(link.index)?;
        }
    }
    Ok(())
}

/// Whatever state its DEL left it in: the kernel says which ends are ours.
fn delete_stale_ends(network: &str, valid: &Valid) -> Result<()> {
    let ends = valid.iter().map(|(id, ifname)| identity::host_end(network, id, ifname));
    let ends: HashSet<_> = ends.map(|name| Ok(name?.to_string())).collect::<Result<_>>()?;
    let mut host = Kernel::open()?;
    let group = identity::group(network);
    let stale = |link: &Link| link.is_veth && link.group == group && !ends.contains(&link.name);
    for link in host.links()?.into_iter().filter(stale) {
        host.delete_link(link.index)?;
    }
    Ok(())
}
