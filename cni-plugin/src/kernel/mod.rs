//! Links, addresses, routes and sysctls of the namespace the thread is in.

pub mod capabilities;
pub mod netns;
mod route;
pub mod settings;
pub mod tc;
pub mod vlan;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use weft::kernel::netlink::{Cause, Connection, NetlinkError, Request};
use weft::model::{IfName, Mac};

use crate::protocol::error::{Error, Result};
use crate::protocol::result::Route;

/// A link as the kernel describes it.
#[derive(Clone, Debug)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub group: u32,
    pub is_bridge: bool,
    /// Of a bridge: it tells VLANs apart.
    pub filters_vlans: bool,
    pub is_veth: bool,
    pub is_ifb: bool,
    pub is_up: bool,
    /// The operational state is UP: for a bridge port, that it forwards.
    pub carries: bool,
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub mtu: u32,
    pub tx_queue_len: u32,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of a veth's other end, in that end's namespace.
    pub peer: Option<u32>,
    /// That namespace is another.
    peer_elsewhere: bool,
}

impl Link {
    /// It is a veth with both ends in this namespace.
    pub fn peer_is_here(&self) -> bool {
        self.is_veth && self.peer.is_some() && !self.peer_elsewhere
    }
}

/// An address of a link.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub net: IpNetwork,
    /// Not yet usable: duplicate address detection is going on.
    pub tentative: bool,
    pub duplicate: bool,
}

/// What is wanted of a veth pair.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// The end that is a bridge's port.
    pub host: IfName,
    pub master: u32,
    /// `IFLA_GROUP` of the host's end.
    pub group: u32,
    pub peer: Peer<'a>,
    pub mtu: Option<u32>,
}

/// The other end.
#[derive(Debug)]
pub struct Peer<'a> {
    pub name: IfName,
    /// None for the host's own.
    pub netns: Option<BorrowedFd<'a>>,
    /// Chosen by the kernel if absent.
    pub mac: Option<Mac>,
}

/// Bridge port options of a host's end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Port {
    pub hairpin: bool,
    pub isolated: bool,
}

#[derive(Debug)]
pub struct Kernel(Connection);

impl Kernel {
    /// The namespace that the thread is in now, wherever it goes.
    pub fn open() -> Result<Kernel> {
        Connection::open().map(Kernel).map_err(Error::from)
    }

    pub fn link(&mut self, name: IfName) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.0.get(Request::get(RouteNetlinkMessage::GetLink(message))) {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::from(&message))),
            Ok(_) => Err(Cause::NoAnswer.of(format!("link {name}")).into()),
            Err(cause) if cause.errno() == Some(libc::ENODEV) => Ok(None),
            Err(cause) => Err(cause.of(format!("link {name}")).into()),
        }
    }

    pub fn existing_link(&mut self, name: IfName) -> Result<Link> {
        self.link(name)?.ok_or_else(|| Error::internal(format_args!("link {name} not found")))
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answers = self.0.dump(Request::dump(RouteNetlinkMessage::GetLink(message)));
        let answers = answers.map_err(|cause| cause.of("links"))?;
        Ok(answers
            .iter()
            .filter_map(|m| if let RouteNetlinkMessage::NewLink(m) = m { Some(m.into()) } else { None })
            .collect())
    }

    /// False when a link of that name exists. A bridge that is made with a MAC
    /// keeps it; otherwise it would follow its ports'.
    pub fn create_bridge(
        &mut self,
        name: IfName,
        mtu: Option<u32>,
        mac: Mac,
        filters_vlans: bool,
    ) -> Result<bool> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        if filters_vlans {
            info.push(LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])));
        }
        message.attributes.push(LinkAttribute::LinkInfo(info));
        match self.0.request(Request::create(RouteNetlinkMessage::NewLink(message))) {
            Ok(()) => Ok(true),
            Err(cause) if cause.errno() == Some(libc::EEXIST) => Ok(false),
            Err(cause) if filters_vlans => Err(cause.of(format!("bridge {name} with VLAN filtering")).into()),
            Err(cause) => Err(cause.of(format!("bridge {name}")).into()),
        }
    }

    /// Both ends, each in its namespace and the host's end on its bridge, by one
    /// request: no crash leaves half of it.
    pub fn create_veth(&mut self, pair: &VethPair<'_>) -> std::result::Result<(), Cause> {
        let mut peer = named(pair.peer.name);
        peer.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        peer.attributes.extend(pair.peer.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        peer.attributes.extend(pair.peer.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        let mut message = named(pair.host);
        message.attributes.push(LinkAttribute::Group(pair.group));
        message.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::Controller(pair.master));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.0.request(Request::create(RouteNetlinkMessage::NewLink(message)))
    }

    /// Set a bridge port's options and bring it up.
    pub fn start_port(&mut self, name: IfName, port: Port) -> Result<()> {
        let mut options = named(name);
        options.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(port.hairpin),
                InfoBridgePort::Isolated(port.isolated),
            ])),
        ]));
        let requests = vec![change_link(options), change_link(with_flags(named(name), LinkFlags::Up))];
        self.all(requests, |_| format!("bridge port {name}"))
    }

    pub fn set_up(&mut self, name: IfName) -> Result<()> {
        self.set_flags(name, LinkFlags::Up)
    }

    /// Nothing passes any more. It may be gone already.
    pub fn stop(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        match self.0.request(change_link(message)) {
            Err(cause) if cause.errno() != Some(libc::ENODEV) => {
                Err(cause.of(format!("link number {index} down")).into())
            }
            _ => Ok(()),
        }
    }

    pub fn set_promiscuous(&mut self, name: IfName) -> Result<()> {
        self.set_flags(name, LinkFlags::Promisc)
    }

    pub fn set_mac(&mut self, name: IfName, mac: Mac) -> Result<()> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.0.request(change_link(message)).map_err(|c| c.of(format!("link {name} address {mac}")).into())
    }

    /// False when there is none of that name.
    pub fn delete_named(&mut self, name: IfName) -> Result<bool> {
        match self.link(name)? {
            Some(link) => self.delete_link(link.index),
            None => Ok(false),
        }
    }

    /// False when it is gone already.
    pub fn delete_link(&mut self, index: u32) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.0.request(Request::change(RouteNetlinkMessage::DelLink(message))) {
            Ok(()) => Ok(true),
            Err(cause) if cause.errno() == Some(libc::ENODEV) => Ok(false),
            Err(cause) => Err(cause.of(format!("link number {index}")).into()),
        }
    }

    /// The addresses of a link in one family.
    pub fn addresses(&mut self, link: u32, v4: bool) -> Result<Vec<Address>> {
        let mut message = AddressMessage::default();
        message.header.index = link;
        message.header.family = family(v4);
        let answers = self.0.dump(Request::dump(RouteNetlinkMessage::GetAddress(message)));
        let answers = answers.map_err(|cause| cause.of(format!("addresses of link number {link}")))?;
        let of_link = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(m) if m.header.index == link => address(m),
            _ => None,
        });
        Ok(of_link.collect())
    }

    pub fn add_address(&mut self, link: u32, net: IpNetwork, without_dad: bool) -> Result<()> {
        match self.0.request(add_address(link, net, without_dad)) {
            Err(cause) if cause.errno() != Some(libc::EEXIST) => {
                Err(cause.of(format!("address {net}")).into())
            }
            _ => Ok(()),
        }
    }

    pub fn delete_address(&mut self, link: u32, net: IpNetwork) -> Result<()> {
        let request = Request::change(RouteNetlinkMessage::DelAddress(address_message(link, net)));
        match self.0.request(request) {
            Err(cause) if cause.errno() != Some(libc::EADDRNOTAVAIL) => {
                Err(cause.of(format!("address {net}")).into())
            }
            _ => Ok(()),
        }
    }

    /// Addresses, up, routes: a container's interface made ready at one go.
    pub fn configure(&mut self, name: IfName, link: u32, nets: &[IpNetwork], routes: &[Route]) -> Result<()> {
        let mut requests: Vec<_> = nets.iter().map(|net| add_address(link, *net, false)).collect();
        requests.push(change_link(with_flags(named(name), LinkFlags::Up)));
        requests.extend(routes.iter().map(|route| add_route(link, route)));
        self.all(requests, |i| match i.checked_sub(nets.len()) {
            None => format!("address {} dev {name}", nets[i]),
            Some(0) => format!("link {name} up"),
            Some(i) => match routes[i - 1].gw {
                Some(gw) => format!("route {} via {gw} dev {name}", routes[i - 1].dst),
                None => format!("route {} dev {name}", routes[i - 1].dst),
            },
        })
    }

    /// Destination and gateway of every unicast route.
    pub fn routes(&mut self, v4: bool) -> Result<Vec<(IpNetwork, Option<IpAddr>)>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v4);
        let answers = self.0.dump(Request::dump(RouteNetlinkMessage::GetRoute(message)));
        let answers = answers.map_err(|cause| cause.of("routes"))?;
        let route = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewRoute(m) if m.header.kind == RouteType::Unicast => route(m, v4),
            _ => None,
        };
        Ok(answers.iter().filter_map(route).collect())
    }

    fn set_flags(&mut self, name: IfName, flags: LinkFlags) -> Result<()> {
        self.0
            .request(change_link(with_flags(named(name), flags)))
            .map_err(|cause| cause.of(format!("link {name}")).into())
    }

    fn all(&mut self, requests: Vec<Request>, object: impl Fn(usize) -> String) -> Result<()> {
        let results = self.0.batch(requests).into_iter().enumerate();
        for (i, result) in results {
            result.map_err(|cause| cause.of(object(i)))?;
        }
        Ok(())
    }
}

/// Write a file below /proc/sys/net unless it reads so already. False when it
/// does not exist: the family is not there.
pub fn set_sysctl(path: &str, value: &str) -> Result<bool> {
    let path = format!("/proc/sys/net/{path}");
    let reads_so = |file: &File| {
        let mut now = [0; 16];
        let length = file.read_at(&mut now, 0)?;
        io::Result::Ok(now[..length].trim_ascii() == value.as_bytes())
    };
    let set = || {
        let file = File::options().read(true).write(true).open(&path)?;
        if reads_so(&file)? { Ok(()) } else { file.write_all_at(value.as_bytes(), 0) }
    };
    match set() {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        // It need not be writable.
        Err(_) if File::open(&path).is_ok_and(|file| reads_so(&file).unwrap_or(false)) => Ok(true),
        Err(e) => Err(Error::io("set sysctl", path.as_ref(), &e)),
    }
}

impl From<NetlinkError> for Error {
    fn from(e: NetlinkError) -> Error {
        Error::internal(e)
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: None,
            group: 0,
            is_bridge: false,
            filters_vlans: false,
            is_veth: false,
            is_ifb: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            carries: false,
            promiscuous: false,
            all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
            mtu: 0,
            tx_queue_len: 0,
            master: None,
            peer: None,
            peer_elsewhere: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::TxQueueLen(length) => link.tx_queue_len = *length,
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
                LinkAttribute::OperState(state) => link.carries = *state == State::Up,
                LinkAttribute::Promiscuity(count) => link.promiscuous = *count > 0,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_veth |= infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    link.is_ifb |= infos.contains(&LinkInfo::Kind(InfoKind::Ifb));
                    link.filters_vlans |= infos.iter().any(filters_vlans);
                }
                _ => {}
            }
        }
        link
    }
}

fn filters_vlans(info: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Bridge(options)) = info else { return false };
    options.contains(&InfoBridge::VlanFiltering(true))
}

fn named(name: IfName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn with_flags(mut message: LinkMessage, flags: LinkFlags) -> LinkMessage {
    message.header.flags = flags;
    message.header.change_mask = flags;
    message
}

fn change_link(message: LinkMessage) -> Request {
    Request::change(RouteNetlinkMessage::NewLink(message))
}

fn family(v4: bool) -> AddressFamily {
    if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(link: u32, net: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.is_ipv4());
    message.header.prefix_len = net.prefix();
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(net.ip()), AddressAttribute::Address(net.ip())];
    message
}

fn add_address(link: u32, net: IpNetwork, without_dad: bool) -> Request {
    let mut message = address_message(link, net);
    if let (IpAddr::V4(broadcast), true) = (net.broadcast(), net.prefix() < 31) {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    if without_dad && net.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    Request::create(RouteNetlinkMessage::NewAddress(message))
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        net: IpNetwork::new(ip?, message.header.prefix_len).ok()?,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
    })
}

/// Like `ip route prepend`: an IPAM route may cover the same prefix as the
/// address' own.
fn add_route(link: u32, route: &Route) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.is_ipv4());
    message.header.destination_prefix_length = route.dst.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = route.scope.map_or(RouteScope::Universe, RouteScope::from);
    message.header.kind = RouteType::Unicast;
    let attributes = &mut message.attributes;
    if route.dst.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    attributes.push(RouteAttribute::Oif(link));
    attributes.extend(route.gw.map(|gw| RouteAttribute::Gateway(gw.into())));
    if route.priority > 0 {
        attributes.push(RouteAttribute::Priority(route.priority));
    }
    if let Some(table) = route.table {
        attributes.push(RouteAttribute::Table(table));
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    }
    let metrics =
        [(route.mtu, RouteMetric::Mtu(route.mtu)), (route.advmss, RouteMetric::Advmss(route.advmss))];
    let metrics: Vec<_> =
        metrics.into_iter().filter(|(value, _)| *value > 0).map(|(_, metric)| metric).collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Request::new(RouteNetlinkMessage::NewRoute(message), NLM_F_ACK | NLM_F_CREATE)
}

fn route(message: &RouteMessage, v4: bool) -> Option<(IpNetwork, Option<IpAddr>)> {
    use netlink_packet_route::route::RouteAddress;
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let mut dst = Some(if v4 { weft::model::Family::V4 } else { weft::model::Family::V6 }.unspecified());
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    Some((IpNetwork::new(dst?, message.header.destination_prefix_length).ok()?, gateway))
}
