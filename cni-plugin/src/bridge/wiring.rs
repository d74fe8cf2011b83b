//! The bridge plugin's work: a bridge with the gateways' addresses, and a veth
//! pair from it into the container (containernetworking/plugins
//! plugins/main/bridge).

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use weft::model::{IfName, Mac};

use super::config::Config;
use super::masq::Masquerade;
use super::spoof::SpoofCheck;
use super::{container, gateway};
use crate::chain::Site;
use crate::identity;
use crate::kernel::netns::NetNs;
use crate::kernel::{Kernel, Link, Peer, VethPair};
use crate::protocol::error::{Error, Result};
use crate::protocol::result::{Attachment, Interface};

/// How long a port may take to come up.
const PORT_LIMIT: Duration = Duration::from_millis(2550);
const STEP: Duration = Duration::from_micros(500);

/// What wires one container up.
#[derive(Debug)]
pub struct Wiring<'a> {
    config: &'a Config,
    site: &'a Site,
    netns: &'a NetNs,
    /// Of the container's interface, where it is not left to the kernel.
    mac: Option<Mac>,
    host: Kernel,
}

impl<'a> Wiring<'a> {
    pub fn new(config: &'a Config, site: &'a Site, netns: &'a NetNs) -> Result<Wiring<'a>> {
        let mac = match config.mac {
            None if config.checks_mac => Some(Mac::local(random()?)),
            mac => mac,
        };
        Ok(Wiring { config, site, netns, mac, host: Kernel::open()? })
    }

    /// Wire the container up with what IPAM gave. On an error nothing is left
    /// but the bridge.
    pub fn attach(mut self, ipam: Attachment) -> Result<Attachment> {
        let config = self.config;
        let mut attachment = gateway::complete(config, ipam)?;
        let bridge = self.ensure_bridge()?;
        let vlan_gateway = gateway::ensure(config, &mut self.host, &bridge, &attachment)?;
        let veth = self.create_veth(&bridge)?;
        if let Err(e) = self.start(veth, &mut attachment) {
            self.undo(veth, &attachment)?;
            return Err(e);
        }
        attachment.interfaces.extend(vlan_gateway);
        if !config.dns.is_empty() {
            attachment.dns = config.dns.clone();
        }
        Ok(attachment)
    }

    fn ensure_bridge(&mut self) -> Result<Link> {
        let (config, name) = (self.config, self.config.name);
        let link = match self.host.link(name)? {
            Some(link) => link,
            None => {
                self.host.create_bridge(name, config.mtu, Mac::local(random()?), config.vlans.filtering)?;
                self.host.existing_link(name)?
            }
        };
        if !link.is_bridge {
            return Err(Error::field("bridge", name, "a bridge: a link of another kind has that name"));
        }
        // Where VLANs are not told apart, everybody would be in all of them.
        if config.vlans.filtering && !link.filters_vlans {
            let way =
                format!("a bridge that tells VLANs apart: ip link set {name} type bridge vlan_filtering 1");
            return Err(Error::field("bridge", name, way));
        }
        if config.promiscuous && !link.promiscuous {
            self.host.set_promiscuous(name)?;
        }
        gateway::distrust_neighbours(name, link.is_up)?;
        if !link.is_up {
            self.host.set_up(name)?;
        }
        Ok(link)
    }

    /// The host's end.
    fn create_veth(&mut self, bridge: &Link) -> Result<IfName> {
        let Site { network, request, .. } = self.site;
        let host = identity::host_end(network, &request.container_id, request.ifname.as_str())?;
        let pair = VethPair {
            host,
            master: bridge.index,
            group: identity::group(network),
            peer: Peer { name: request.ifname, netns: Some(self.netns.as_fd()), mac: self.mac },
            mtu: self.config.mtu,
        };
        let mut created = self.host.create_veth(&pair);
        if created.as_ref().is_err_and(|cause| cause.errno() == Some(libc::EEXIST)) && !self.is_wired()? {
            // The end of an attachment whose DEL never came. Its namespace is
            // another: this one's has no interface.
            self.host.delete_named(host)?;
            created = self.host.create_veth(&pair);
        }
        let place = self.netns.path().display();
        let object = format_args!("interface {} in {place}", request.ifname).to_string();
        created.map_err(|cause| Error::internal(cause.of(object)))?;
        Ok(host)
    }

    /// Whether the container has the interface.
    fn is_wired(&self) -> Result<bool> {
        self.netns.enter(|| Ok(Kernel::open()?.link(self.site.request.ifname)?.is_some()))
    }

    fn start(&mut self, veth: IfName, attachment: &mut Attachment) -> Result<()> {
        let (config, ifname) = (self.config, self.site.request.ifname);
        gateway::distrust_neighbours(veth, true)?;
        let vlans = config.vlans.of_port();
        if !vlans.is_empty() {
            let port = self.host.existing_link(veth)?;
            self.host.set_port_vlans(veth, port.index, config.vlans.replace_default(), &vlans)?;
        }
        if let (true, Some(mac)) = (config.checks_mac, self.mac) {
            SpoofCheck::of(self.site).set_up(veth, mac)?;
        }
        self.host.start_port(veth, config.port)?;
        let container = self.netns.enter(|| container::configure(config, ifname, attachment))?;
        let host_mac = match config.interface_disabled {
            true => self.host.existing_link(veth)?.mac,
            false => self.wait_for_port(veth)?,
        };
        attachment.interfaces = vec![
            Interface::of(config.name, self.host.existing_link(config.name)?.mac, String::new()),
            Interface::of(veth, host_mac, String::new()),
            Interface::of(ifname, container, self.netns.path().to_string_lossy().into_owned()),
        ];
        match self.masquerade() {
            Some(masq) => masq.set_up(&attachment.ips),
            None => Ok(()),
        }
    }

    fn undo(&mut self, veth: IfName, attachment: &Attachment) -> Result<()> {
        if let Some(masq) = self.masquerade() {
            let ips: Vec<_> = attachment.ips.iter().map(|ip| ip.address.ip()).collect();
            let _ = masq.tear_down_nftables().and(masq.tear_down_iptables(&ips));
        }
        if self.config.checks_mac {
            let _ = SpoofCheck::of(self.site).tear_down();
        }
        self.host.delete_named(veth).map(drop)
    }

    fn masquerade(&self) -> Option<Masquerade<'_>> {
        let Site { network, request, .. } = self.site;
        self.config.masq.map(|backend| Masquerade::of(network, request, backend))
    }

    /// The port's MAC, which may have changed on the way.
    fn wait_for_port(&mut self, name: IfName) -> Result<Option<Mac>> {
        let deadline = Instant::now() + PORT_LIMIT;
        loop {
            let link = self.host.existing_link(name)?;
            if link.carries {
                return Ok(link.mac);
            }
            if Instant::now() > deadline {
                return Err(Error::internal(format_args!(
                    "bridge port {name} is not up after {PORT_LIMIT:?}"
                )));
            }
            thread::sleep(STEP);
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(Error::internal)?;
    Ok(bytes)
}
