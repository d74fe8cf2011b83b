//! CHECK: that an attachment still is as ADD left it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft::model::IfName;

use super::config::Config;
use crate::ipam::Ipam;
use crate::kernel::netns::NetNs;
use crate::kernel::{Kernel, Link};
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::request::Request;
use crate::protocol::result::{Attachment, Interface};

pub fn check(conf: &Conf, request: &Request, prev: &Attachment) -> Result<()> {
    let bridge = Config::parse(conf, request)?;
    let netns = NetNs::of(request)?;
    Ipam::of(conf)?.check(request, prev)?;

    let sandbox = netns.path().to_string_lossy();
    let container =
        find(prev, |i| i.name == request.ifname.as_str() && i.sandbox == sandbox, request.ifname)?;
    let inside = netns.enter(|| check_container(request.ifname, container, prev))?;
    let mut host = Kernel::open()?;
    let bridge_link = host.existing_link(bridge.name)?;
    check_bridge(&bridge, &bridge_link, prev)?;
    let ends = prev.interfaces.iter().filter(|i| i.sandbox.is_empty() && i.name != bridge.name.as_str());
    for end in ends {
        let Some(link) = end.name.parse().ok().map(|name| host.link(name)).transpose()?.flatten() else {
            continue;
        };
        if link.is_veth && link.peer == Some(inside.index) && inside.peer == Some(link.index) {
            if link.master != Some(bridge_link.index) {
                return Err(wrong(&end.name, format_args!("is not a port of bridge {}", bridge.name)));
            }
            return check_mac(end, &link);
        }
    }
    Err(wrong(request.ifname, "its other end is not among the host's interfaces of prevResult"))
}

fn check_bridge(bridge: &Config, link: &Link, prev: &Attachment) -> Result<()> {
    if !link.is_bridge {
        return Err(wrong(bridge.name, "is not a bridge"));
    }
    if link.promiscuous != bridge.promiscuous {
        return Err(wrong(
            bridge.name,
            format_args!("promiscMode is {}, expected {}", link.promiscuous, bridge.promiscuous),
        ));
    }
    check_mac(find(prev, |i| i.name == bridge.name.as_str() && i.sandbox.is_empty(), bridge.name)?, link)
}

/// Inside the container: the interface, its addresses and the routes.
fn check_container(name: IfName, expected: &Interface, prev: &Attachment) -> Result<Link> {
    let mut kernel = Kernel::open()?;
    let link = kernel.existing_link(name)?;
    if !link.is_veth {
        return Err(wrong(name, "is not a veth"));
    }
    check_mac(expected, &link)?;
    for v4 in [true, false] {
        let addresses = kernel.addresses(link.index, v4)?;
        let routes = kernel.routes(v4)?;
        if let Some(ip) = prev
            .ips
            .iter()
            .find(|ip| ip.address.is_ipv4() == v4 && !addresses.iter().any(|a| a.net == ip.address))
        {
            return Err(wrong(name, format_args!("has no address {}", ip.address)));
        }
        let there = |dst: IpNetwork, gw: Option<IpAddr>| {
            routes.iter().any(|(d, g)| {
                (d.ip(), d.prefix()) == (dst.network(), dst.prefix()) && (gw == *g || gw.is_none())
            })
        };
        if let Some(route) =
            prev.routes.iter().find(|r| r.dst.is_ipv4() == v4 && r.table.is_none() && !there(r.dst, r.gw))
        {
            return Err(wrong(name, format_args!("route to {} is gone", route.dst)));
        }
    }
    Ok(link)
}

fn find(prev: &Attachment, is: impl Fn(&Interface) -> bool, name: IfName) -> Result<&Interface> {
    prev.interfaces.iter().find(|i| is(i)).ok_or_else(|| wrong(name, "is not in prevResult"))
}

fn check_mac(expected: &Interface, link: &Link) -> Result<()> {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if expected.mac.is_empty() || expected.mac == mac {
        return Ok(());
    }
    Err(wrong(&expected.name, format_args!("MAC is {mac}, expected {}", expected.mac)))
}

fn wrong(name: impl std::fmt::Display, what: impl std::fmt::Display) -> Error {
    Error::internal(format_args!("interface {name}: {what}"))
}
