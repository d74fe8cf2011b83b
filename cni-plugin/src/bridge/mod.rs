//! The bridge plugin (containernetworking/plugins plugins/main/bridge): addresses
//! and wiring put together, and undone where they fail.

mod check;
mod masq;
mod wiring;

use std::net::IpAddr;

use weft::model::IfName;

use crate::chain::{Plugin, Site, Valid};
use crate::ipam::Ipam;
use crate::kernel::Kernel;
use crate::kernel::netns::NetNs;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::result::Attachment;
use masq::{Backend, Masquerade};
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
        let wiring = Wiring::parse(&self.conf, request)?;
        let ipam = Ipam::of(&self.conf)?;
        let netns = NetNs::of(request)?;
        let given = ipam.add(request, self.fresh)?;
        let addresses: Vec<_> = given.ips.iter().map(|ip| ip.address.ip()).collect();
        if addresses.is_empty() && !matches!(ipam, Ipam::None) {
            return Err(Error::internal("the IPAM plugin returned no address"));
        }
        match wiring.attach(site, &netns, given) {
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
        let mut known = match NetNs::existing_of(request)? {
            Some(netns) => netns.enter(|| delete_interface(request.ifname))?,
            None => Vec::new(),
        };
        if let Some(prev) = prev {
            delete_host_ends(prev)?;
            if known.is_empty() {
                known = prev.ips.iter().map(|ip| ip.address.ip()).collect();
            }
        }
        let released = Ipam::of(&self.conf)?.del(request, prev, &known)?;
        if self.conf.fields().bool("ipMasq").unwrap_or(true) {
            Masquerade::of(&site.network, request, Backend::Any).tear_down(&released)?;
        }
        Ok(())
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        check::check(&self.conf, &site.request, prev)
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        masq::collect(network, valid)
    }
}

/// Inside the container. The addresses the interface had.
fn delete_interface(name: IfName) -> Result<Vec<IpAddr>> {
    let mut kernel = Kernel::open()?;
    let Some(link) = kernel.link(name)? else { return Ok(Vec::new()) };
    let mut addresses = kernel.addresses(link.index, true)?;
    addresses.extend(kernel.addresses(link.index, false)?);
    kernel.delete_link(link.index)?;
    let global = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Ok(addresses.iter().map(|a| a.net.ip()).filter(global).collect())
}

/// The host's end lives on when the namespace's name is gone but a process still
/// holds the namespace. It is ours if it has the MAC that ADD reported.
fn delete_host_ends(prev: &Attachment) -> Result<()> {
    let mut kernel = Kernel::open()?;
    for interface in prev.interfaces.iter().filter(|i| i.sandbox.is_empty() && !i.mac.is_empty()) {
        let Ok(name) = interface.name.parse() else { continue };
        let Some(link) = kernel.link(name)? else { continue };
        if link.is_veth && link.mac.is_some_and(|mac| mac.to_string() == interface.mac) {
            kernel.delete_link(link.index)?;
        }
    }
    Ok(())
}
