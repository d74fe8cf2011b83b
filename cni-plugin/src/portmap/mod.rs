//! The portmap plugin (containernetworking/plugins plugins/meta/portmap): ports
//! of the host that lead to ports of the container. A packet is taken only if it
//! is for the host itself, not if it merely passes through to such a port
//! elsewhere (CVE-2025-67499).

pub mod config;
mod conntrack;
mod iptables;
mod nftables;

use ipnetwork::IpNetwork;

use crate::chain::{Plugin, Site, Valid};
use crate::iptables::Tools;
use crate::kernel::{Kernel, set_sysctl};
use crate::nft::Nft;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Code, Error, Result};
use crate::protocol::result::Attachment;
use config::{Backend, Config, Protocol};

#[derive(Debug)]
pub struct PortMap {
    conf: Conf,
}

impl PortMap {
    pub fn new(conf: Conf) -> PortMap {
        PortMap { conf }
    }
}

impl Plugin for PortMap {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        let config = Config::parse(&self.conf)?;
        if config.mappings.is_empty() {
            return Ok(());
        }
        if *result == Attachment::default() {
            let msg = "prevResult: missing: portmap goes after a plugin that gives the container addresses";
            return Err(Error::new(Code::NetworkConfig, msg));
        }
        addresses(result, site).try_for_each(|address| map(&config, site, address)).inspect_err(|_| {
            let _ = remove(site, Some(result));
        })
    }

    /// Whatever the config says now: the runtime need not repeat the mappings,
    /// and another backend may have been named then.
    fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()> {
        remove(site, prev)
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        let config = Config::parse(&self.conf)?;
        if config.mappings.is_empty() {
            return Ok(());
        }
        addresses(prev, site).try_for_each(|address| match config.backend {
            Some(Backend::Nftables) => nftables::check(&config, site, address),
            Some(Backend::Iptables) => iptables::check(&config, site, address),
            None => nftables::check(&config, site, address).or_else(|e| {
                match iptables::may_have(&mut Nft::open()?, site, address.is_ipv4())? {
                    true => iptables::check(&config, site, address),
                    false => Err(e),
                }
            }),
        })
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        let mut nft = Nft::open()?;
        nftables::collect(&mut nft, network, valid).and(iptables::collect(&mut nft, network, valid))
    }
}

/// Lead the host's ports to one address of the container.
fn map(config: &Config, site: &Site, address: IpNetwork) -> Result<()> {
    match config.backend {
        Some(Backend::Nftables) => nftables::set_up(config, site, address)?,
        Some(Backend::Iptables) => iptables::set_up(config, site, address)?,
        None => nftables::set_up(config, site, address).or_else(|e| {
            match Tools::of(address.is_ipv4()).is_installed() {
                true => iptables::set_up(config, site, address),
                false => Err(e),
            }
        })?,
    }
    let ports: Vec<_> =
        config.mappings.iter().filter(|m| m.protocol == Protocol::Udp).map(|m| m.host_port).collect();
    if !ports.is_empty()
        && let Err(e) = conntrack::forget_udp(address.is_ipv4(), &ports)
    {
        // New connections find their way all the same.
        eprintln!("weft-cni: connections to UDP ports {ports:?} were not forgotten: {e}");
    }
    if config.snat && address.is_ipv4() { let_loopback_through(address) } else { Ok(()) }
}

/// A packet from 127.0.0.1 may leave towards the container, to be masqueraded on
/// the way.
fn let_loopback_through(address: IpNetwork) -> Result<()> {
    let Some(link) = Kernel::open()?.link_towards(address.ip())? else { return Ok(()) };
    set_sysctl(&format!("ipv4/conf/{link}/route_localnet"), "1").map(drop)
}

fn remove(site: &Site, prev: Option<&Attachment>) -> Result<()> {
    let mut nft = Nft::open()?;
    nftables::tear_down(&mut nft, site).and(iptables::tear_down(&mut nft, site, prev))
}

/// The container's first address of each family.
fn addresses<'a>(of: &'a Attachment, site: &'a Site) -> impl Iterator<Item = IpNetwork> + 'a {
    let is_inside = |index: usize| {
        let interface = of.interfaces.get(index);
        interface.is_none_or(|i| i.name == site.request.ifname.as_str() && !i.sandbox.is_empty())
    };
    let inside = move |v4: bool| {
        let mut ips = of.ips.iter().filter(|ip| ip.interface.is_none_or(is_inside));
        ips.find(|ip| ip.address.is_ipv4() == v4).map(|ip| ip.address)
    };
    [true, false].into_iter().filter_map(inside)
}
