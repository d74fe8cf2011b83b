//! The gateways of the container's subnets: addresses of the bridge, or, with
//! `vlan`, of an interface `<bridge>.<vlan>` that is in the container's VLAN.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft::model::{Family, IfName};

use super::config::Config;
use super::vlan::Vlans;
use crate::identity;
use crate::kernel::{Kernel, Link, Peer, VethPair, set_sysctl};
use crate::protocol::error::{Error, Result};
use crate::protocol::result::{Attachment, Interface, IpConfig, Route};

/// The addresses belong to the third interface, the container's; a gateway that
/// IPAM leaves open is the subnet's first address.
pub fn complete(config: &Config, mut ipam: Attachment) -> Result<Attachment> {
    for ip in &mut ipam.ips {
        ip.interface = Some(2);
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = Some(first_host(ip.address));
        }
    }
    for v4 in [true, false] {
        let Some(ip) = ipam.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
        let is_default =
            |route: &Route| route.gw.is_some() && route.dst.is_ipv4() == v4 && route.dst.prefix() == 0;
        if config.is_default_gateway && !ipam.routes.iter().any(is_default) {
            ipam.routes.push(Route::to(default_route(v4)?, ip.gateway));
        }
    }
    Ok(ipam)
}

/// Give the host the gateways. The interface that has them, where it is not the
/// bridge itself.
pub fn ensure(
    config: &Config,
    host: &mut Kernel,
    bridge: &Link,
    attachment: &Attachment,
) -> Result<Option<Interface>> {
    if !config.is_gateway || attachment.ips.is_empty() {
        return Ok(None);
    }
    let gateways = gateways(attachment)?;
    let Some(vlan) = config.vlans.access else {
        Gateway { config, bridge, name: config.name, index: bridge.index }.ensure(host, &gateways)?;
        return Ok(None);
    };
    let link = ensure_vlan(config, host, bridge, vlan)?;
    let name = vlan_interface(config.name, vlan)?;
    Gateway { config, bridge, name, index: link.index }.ensure(host, &gateways)?;
    Ok(Some(Interface::of(name, link.mac, String::new())))
}

/// A container must not be able to advertise itself as the host's router,
/// whatever the families in use: set before the link is up, and on one that is
/// found up, too.
pub fn distrust_neighbours(name: IfName, is_up: bool) -> Result<()> {
    set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    if !is_up {
        // The kernel asks for no neighbour from a link whose link-local address
        // is not proven unique yet, and no one else could hold it. Where IPv6 is
        // off there is nothing to prove.
        let _ = set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
    }
    Ok(())
}

/// A veth pair within the host: one end has the gateways, the other is the
/// bridge's port in the VLAN. The port comes up last, so that one that is up is
/// complete, whatever crashed.
fn ensure_vlan(config: &Config, host: &mut Kernel, bridge: &Link, vlan: u16) -> Result<Link> {
    let name = vlan_interface(config.name, vlan)?;
    if host.link(name)?.is_none() {
        let pair = VethPair {
            host: identity::vlan_port(config.name, vlan)?,
            master: bridge.index,
            group: 0,
            peer: Peer { name, netns: None, mac: None },
            mtu: Some(bridge.mtu),
        };
        match host.create_veth(&pair) {
            Err(cause) if cause.errno() != Some(libc::EEXIST) => {
                return Err(Error::internal(cause.of(format_args!("interface {name}"))));
            }
            _ => {}
        }
    }
    let link = host.existing_link(name)?;
    let port = identity::vlan_port(config.name, vlan)?;
    if let Some(end) = host.link(port)?.filter(|end| !end.is_up && link.peer == Some(end.index)) {
        host.set_port_vlans(port, end.index, config.vlans.replace_default(), &Vlans::of_gateway(vlan))?;
        distrust_neighbours(port, true)?;
        host.set_up(port)?;
    }
    distrust_neighbours(name, link.is_up)?;
    if !link.is_up {
        host.set_up(name)?;
    }
    Ok(link)
}

/// Where gateways are put.
struct Gateway<'a> {
    config: &'a Config,
    bridge: &'a Link,
    name: IfName,
    index: u32,
}

impl Gateway<'_> {
    fn ensure(&self, host: &mut Kernel, gateways: &[IpNetwork]) -> Result<()> {
        for v4 in [true, false] {
            let wanted = || gateways.iter().copied().filter(|net| net.is_ipv4() == v4);
            if wanted().next().is_none() {
                continue;
            }
            let present: Vec<_> = host.addresses(self.index, v4)?.iter().map(|a| a.net).collect();
            for net in wanted().filter(|net| !present.contains(net)) {
                self.make_room(host, net, &present, gateways)?;
                // No other node is on this link, and a container's first packets
                // must not wait for a second of duplicate address detection.
                host.add_address(self.index, net, true)?;
                // An address set by hand stays; the kernel's choice follows the
                // ports.
                if let Some(mac) = host.existing_link(self.name)?.mac {
                    host.set_mac(self.name, mac)?;
                }
            }
            set_sysctl(if v4 { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" }, "1")?;
        }
        Ok(())
    }

    /// Remove what is in the way of a gateway: from a bridge without ports, which
    /// serves nobody, the addresses of a subnet the node had before; from one
    /// that is used, those that conflict, and only by `forceAddress`.
    fn make_room(
        &self,
        host: &mut Kernel,
        gateway: IpNetwork,
        present: &[IpNetwork],
        gateways: &[IpNetwork],
    ) -> Result<()> {
        let others: Vec<_> =
            present.iter().filter(|net| !gateways.contains(net) && !is_link_local(net.ip())).collect();
        if others.is_empty() {
            return Ok(());
        }
        let idle =
            !host.links()?.iter().any(|link| link.master == Some(self.bridge.index) && !link.peer_is_here());
        for other in others {
            let conflicts = gateway.is_ipv4() || other.contains(gateway.ip()) || gateway.contains(other.ip());
            if idle || (conflicts && self.config.force_address) {
                host.delete_address(self.index, *other)?;
            } else if conflicts {
                let name = self.name;
                return Err(Error::internal(format_args!(
                    "bridge {name} has the address {other} and ports that use it, so it cannot be {gateway}: \
                     remove the containers on it or set forceAddress"
                )));
            }
        }
        Ok(())
    }
}

/// The gateways as the host's addresses.
fn gateways(attachment: &Attachment) -> Result<Vec<IpNetwork>> {
    let gateway = |ip: &IpConfig| {
        let gateway =
            ip.gateway.ok_or_else(|| Error::internal(format_args!("{}: no gateway", ip.address)))?;
        IpNetwork::new(gateway, ip.address.prefix()).map_err(Error::internal)
    };
    attachment.ips.iter().map(gateway).collect()
}

fn vlan_interface(bridge: IfName, vlan: u16) -> Result<IfName> {
    let name = format!("{bridge}.{vlan}");
    let expected = "a bridge's name so short that the name of the VLAN's interface has at most 15 bytes";
    name.parse().map_err(|_| Error::field("vlan", &name, expected))
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn first_host(net: IpNetwork) -> IpAddr {
    match net.network() {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + 1).into()),
    }
}

fn default_route(v4: bool) -> Result<IpNetwork> {
    let family = if v4 { Family::V4 } else { Family::V6 };
    IpNetwork::new(family.unspecified(), 0).map_err(Error::internal)
}
