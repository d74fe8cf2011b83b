//! The bridge plugin's work: a bridge with the gateways' addresses, and a veth
//! pair from it into the container (containernetworking/plugins
//! plugins/main/bridge).

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde_json::json;
use weft::model::{Family, IfName, Mac};

use super::masq::{Backend, Masquerade};
use crate::chain::Site;
use crate::kernel::netns::NetNs;
use crate::kernel::{Kernel, Port, VethPair, set_sysctl};
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::fields::Fields;
use crate::protocol::request::Request;
use crate::protocol::result::{Attachment, Dns, Interface, IpConfig, Route};

/// How long a port may take to come up, and an IPv6 address to become usable.
const PORT_LIMIT: Duration = Duration::from_millis(2550);
const ADDRESS_LIMIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_micros(500);

/// A bridge config, checked.
#[derive(Clone, Debug)]
pub struct Wiring {
    pub name: IfName,
    pub is_gateway: bool,
    pub is_default_gateway: bool,
    pub force_address: bool,
    pub promiscuous: bool,
    pub mtu: Option<u32>,
    port: Port,
    mac: Option<Mac>,
    detects_duplicates: bool,
    masq: Option<Backend>,
    dns: Dns,
}

impl Wiring {
    pub fn parse(conf: &Conf, request: &Request) -> Result<Wiring> {
        let fields = conf.fields();
        if fields.number("vlan", 0..=4094)?.is_some_and(|id| id > 0) {
            return Err(fields.unsupported("vlan", "0"));
        }
        if !fields.list("vlanTrunk")?.is_empty() {
            return Err(fields.unsupported("vlanTrunk", "an empty list"));
        }
        for key in ["macspoofchk", "disableContainerInterface"] {
            if fields.bool(key)? {
                return Err(fields.unsupported(key, "false"));
            }
        }
        let (hairpin, promiscuous) = (fields.bool("hairpinMode")?, fields.bool("promiscMode")?);
        if hairpin && promiscuous {
            return Err(fields.wrong("promiscMode", "false, since hairpinMode is true"));
        }
        let is_default_gateway = fields.bool("isDefaultGateway")?;
        let name = fields.parsed("bridge", "an interface name of at most 15 bytes")?;
        let dns = fields.get("dns").map_or_else(|| json!({}), Clone::clone);
        Ok(Wiring {
            name: name.map_or_else(|| "cni0".parse(), Ok).map_err(Error::internal)?,
            is_gateway: fields.bool("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: fields.bool("forceAddress")?,
            promiscuous,
            mtu: mtu(&fields)?,
            port: Port { hairpin, isolated: fields.bool("portIsolation")? },
            mac: container_mac(conf, request)?,
            detects_duplicates: fields.bool("enabledad")?,
            masq: if fields.bool("ipMasq")? { Some(Backend::parse(&fields)?) } else { None },
            dns: serde_json::from_value(dns)
                .map_err(|e| fields.wrong("dns", format_args!("CNI's dns ({e})")))?,
        })
    }

    /// Wire the container up with what IPAM gave. On an error nothing is left
    /// but the bridge.
    pub fn attach(&self, site: &Site, netns: &NetNs, ipam: Attachment) -> Result<Attachment> {
        let request = &site.request;
        let mut attachment = self.with_gateways(ipam)?;
        let mut host = Kernel::open()?;
        let bridge = self.ensure(&mut host)?;
        if self.is_gateway {
            self.ensure_gateways(&mut host, bridge, &gateways(&attachment)?)?;
        }
        let veth = self.create_veth(&mut host, request, netns, bridge)?;
        let masq = self.masq.map(|backend| Masquerade::of(&site.network, request, backend));
        let done = self.start(&mut host, veth, request, netns, &mut attachment).and_then(|()| match &masq {
            Some(masq) => masq.set_up(&attachment.ips),
            None => Ok(()),
        });
        if let Err(e) = done {
            if let Some(masq) = &masq {
                let ips: Vec<_> = attachment.ips.iter().map(|ip| ip.address.ip()).collect();
                let _ = masq.tear_down(&ips);
            }
            if let Ok(Some(link)) = host.link(veth) {
                host.delete_link(link.index)?;
            }
            return Err(e);
        }
        if !self.dns.is_empty() {
            attachment.dns = self.dns.clone();
        }
        Ok(attachment)
    }

    /// The addresses belong to the third interface, the container's; a gateway
    /// that IPAM leaves open is the subnet's first address.
    fn with_gateways(&self, mut ipam: Attachment) -> Result<Attachment> {
        for ip in &mut ipam.ips {
            ip.interface = Some(2);
            if ip.gateway.is_none() && self.is_gateway {
                ip.gateway = Some(first_host(ip.address));
            }
        }
        for v4 in [true, false] {
            let Some(ip) = ipam.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
            let is_default =
                |route: &Route| route.gw.is_some() && route.dst.is_ipv4() == v4 && route.dst.prefix() == 0;
            if self.is_default_gateway && !ipam.routes.iter().any(is_default) {
                ipam.routes.push(Route::to(default_route(v4)?, ip.gateway));
            }
        }
        Ok(ipam)
    }

    /// The bridge's index.
    fn ensure(&self, host: &mut Kernel) -> Result<u32> {
        let name = self.name;
        let link = match host.link(name)? {
            Some(link) => link,
            None => {
                host.create_bridge(name, self.mtu, Mac::local(random()?))?;
                host.existing_link(name)?
            }
        };
        if !link.is_bridge {
            return Err(Error::field("bridge", name, "a bridge: a link of another kind has that name"));
        }
        if self.promiscuous && !link.promiscuous {
            host.set_promiscuous(name)?;
        }
        // Before the link is up, and whatever the families in use: a container
        // must not be able to advertise itself as the host's router.
        set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        if !link.is_up {
            // The kernel asks for no neighbour from a link whose link-local
            // address is not proven unique yet, and no one else could hold it.
            // Where IPv6 is off there is nothing to prove.
            let _ = set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
            host.set_up(name)?;
        }
        Ok(link.index)
    }

    fn ensure_gateways(&self, host: &mut Kernel, bridge: u32, gateways: &[IpNetwork]) -> Result<()> {
        for v4 in [true, false] {
            let wanted = || gateways.iter().copied().filter(|net| net.is_ipv4() == v4);
            if wanted().next().is_none() {
                continue;
            }
            let present: Vec<_> = host.addresses(bridge, v4)?.iter().map(|a| a.net).collect();
            for net in wanted().filter(|net| !present.contains(net)) {
                self.make_room(host, bridge, net, &present, gateways)?;
                // No other node is on this link, and a container's first packets
                // must not wait for a second of duplicate address detection.
                host.add_address(bridge, net, true)?;
                // An address set by hand stays; the kernel's choice follows the
                // ports.
                if let Some(mac) = host.existing_link(self.name)?.mac {
                    host.set_mac(self.name, mac)?;
                }
            }
            enable_forwarding(v4)?;
        }
        Ok(())
    }

    /// Remove what is in the way of a gateway: from a bridge without ports, which
    /// serves nobody, the addresses of a subnet the node had before; from one
    /// that is used, those that conflict, and only by `forceAddress`.
    fn make_room(
        &self,
        host: &mut Kernel,
        bridge: u32,
        gateway: IpNetwork,
        present: &[IpNetwork],
        gateways: &[IpNetwork],
    ) -> Result<()> {
        let others: Vec<_> =
            present.iter().filter(|net| !gateways.contains(net) && !is_link_local(net.ip())).collect();
        if others.is_empty() {
            return Ok(());
        }
        let idle = !host.links()?.iter().any(|link| link.master == Some(bridge));
        for other in others {
            let conflicts = gateway.is_ipv4() || other.contains(gateway.ip()) || gateway.contains(other.ip());
            if idle || (conflicts && self.force_address) {
                host.delete_address(bridge, *other)?;
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

    fn create_veth(
        &self,
        host: &mut Kernel,
        request: &Request,
        netns: &NetNs,
        bridge: u32,
    ) -> Result<IfName> {
        let container = request.ifname;
        loop {
            let name = format!("veth{:08x}", u32::from_ne_bytes(random()?));
            let pair = VethPair {
                host: name.parse().map_err(Error::internal)?,
                master: bridge,
                container,
                netns: netns.as_fd(),
                mac: self.mac,
                mtu: self.mtu,
            };
            let Err(cause) = host.create_veth(&pair) else { return Ok(pair.host) };
            let taken = cause.errno() == Some(libc::EEXIST);
            if taken && host.link(pair.host)?.is_some() {
                continue;
            }
            let place = netns.path().display();
            return Err(Error::internal(cause.of(format_args!("interface {container} in {place}"))));
        }
    }

    fn start(
        &self,
        host: &mut Kernel,
        veth: IfName,
        request: &Request,
        netns: &NetNs,
        attachment: &mut Attachment,
    ) -> Result<()> {
        set_sysctl(&format!("ipv6/conf/{veth}/accept_ra"), "0")?;
        host.start_port(veth, self.port)?;
        let container = netns.enter(|| self.configure_container(request.ifname, attachment))?;
        let host_mac = wait_for_port(host, veth)?;
        let interface = |name: IfName, mac: Option<Mac>, sandbox: String| Interface {
            name: name.to_string(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            sandbox,
            ..Interface::default()
        };
        attachment.interfaces = vec![
            interface(self.name, host.existing_link(self.name)?.mac, String::new()),
            interface(veth, host_mac, String::new()),
            interface(request.ifname, container, netns.path().to_string_lossy().into_owned()),
        ];
        Ok(())
    }

    /// Inside the container. Its interface's MAC.
    fn configure_container(&self, name: IfName, attachment: &Attachment) -> Result<Option<Mac>> {
        let mut kernel = Kernel::open()?;
        let link = kernel.existing_link(name)?;
        let nets: Vec<_> = attachment.ips.iter().map(|ip| ip.address).collect();
        let has_v6 = nets.iter().any(IpNetwork::is_ipv6);
        if !nets.is_empty() {
            if self.detects_duplicates {
                set_sysctl(&format!("ipv6/conf/{name}/enhanced_dad"), "1")?;
            }
            let accept_dad = if self.detects_duplicates { "1" } else { "0" };
            set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), accept_dad)?;
            set_sysctl(&format!("ipv4/conf/{name}/arp_notify"), "1")?;
        }
        if has_v6 {
            enable_ipv6(name)?;
        }
        kernel.configure(name, link.index, &nets, &via_gateways(attachment))?;
        if has_v6 {
            wait_for_addresses(&mut kernel, name, link.index)?;
        }
        Ok(link.mac)
    }
}

/// The gateways as the bridge's addresses.
fn gateways(attachment: &Attachment) -> Result<Vec<IpNetwork>> {
    let gateway = |ip: &IpConfig| {
        let gateway =
            ip.gateway.ok_or_else(|| Error::internal(format_args!("{}: no gateway", ip.address)))?;
        IpNetwork::new(gateway, ip.address.prefix()).map_err(Error::internal)
    };
    attachment.ips.iter().map(gateway).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// runtimeConfig.mac, then args.cni.mac, then MAC of CNI_ARGS.
fn container_mac(conf: &Conf, request: &Request) -> Result<Option<Mac>> {
    let fields = conf.fields();
    let cni = fields.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
    for place in [fields.object("runtimeConfig")?, cni].into_iter().flatten() {
        let expected = "a unicast MAC address such as 0e:2a:00:00:00:01";
        let Some(mac) = place.parsed::<Mac>("mac", expected)? else { continue };
        return if mac.is_unicast() { Ok(Some(mac)) } else { Err(place.wrong("mac", expected)) };
    }
    Ok(request.args.mac)
}

/// 0 leaves it to the kernel, as no value does.
fn mtu(fields: &Fields<'_>) -> Result<Option<u32>> {
    match fields.number("mtu", 0..=65535)? {
        None | Some(0) => Ok(None),
        Some(1..68) => Err(fields.wrong("mtu", "0 or a number from 68 to 65535")),
        mtu => Ok(mtu),
    }
}

/// The routes with the gateway filled in that IPAM leaves open: the first one of
/// the family.
fn via_gateways(attachment: &Attachment) -> Vec<Route> {
    let gateway = |v4| attachment.ips.iter().filter_map(|ip| ip.gateway).find(|gw| gw.is_ipv4() == v4);
    let complete =
        |route: &Route| Route { gw: route.gw.or_else(|| gateway(route.dst.is_ipv4())), ..route.clone() };
    attachment.routes.iter().map(complete).collect()
}

fn enable_ipv6(name: IfName) -> Result<()> {
    for link in ["lo", name.as_str()] {
        set_sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "0")?;
    }
    set_sysctl(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1").map(drop)
}

fn enable_forwarding(v4: bool) -> Result<()> {
    set_sysctl(if v4 { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" }, "1").map(drop)
}

fn wait_for_port(host: &mut Kernel, name: IfName) -> Result<Option<Mac>> {
    let deadline = Instant::now() + PORT_LIMIT;
    loop {
        let link = host.existing_link(name)?;
        if link.carries {
            return Ok(link.mac);
        }
        if Instant::now() > deadline {
            return Err(Error::internal(format_args!("bridge port {name} is not up after {PORT_LIMIT:?}")));
        }
        thread::sleep(STEP);
    }
}

/// As long as the link is not up, its addresses stay tentative, and that is no
/// error.
fn wait_for_addresses(kernel: &mut Kernel, name: IfName, link: u32) -> Result<()> {
    let deadline = Instant::now() + ADDRESS_LIMIT;
    loop {
        let addresses = kernel.addresses(link, false)?;
        if let Some(duplicate) = addresses.iter().find(|a| a.duplicate) {
            return Err(Error::internal(format_args!("{} on {name}: another host has it", duplicate.net)));
        }
        if !addresses.iter().any(|a| a.tentative) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let up = kernel.existing_link(name)?.carries;
            let late =
                format_args!("{name} still has tentative addresses after {ADDRESS_LIMIT:?}").to_string();
            return if up { Err(Error::internal(late)) } else { Ok(()) };
        }
        thread::sleep(STEP);
    }
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

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(Error::internal)?;
    Ok(bytes)
}
