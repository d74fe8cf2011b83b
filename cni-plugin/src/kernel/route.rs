//! Where the kernel would send a packet.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use weft::kernel::netlink::Request;

use super::Kernel;
use crate::protocol::error::Result;

impl Kernel {
    /// The name of the link on the way to an address; none if there is no way.
    pub fn link_towards(&mut self, ip: IpAddr) -> Result<Option<String>> {
        let mut message = RouteMessage::default();
        message.header.address_family = super::family(ip.is_ipv4());
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(ip)));
        let Ok(RouteNetlinkMessage::NewRoute(route)) =
            self.0.get(Request::get(RouteNetlinkMessage::GetRoute(message)))
        else {
            return Ok(None);
        };
        let index = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        index.map_or(Ok(None), |index| self.link_name(index))
    }

    fn link_name(&mut self, index: u32) -> Result<Option<String>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answer = self.0.get(Request::get(RouteNetlinkMessage::GetLink(message)));
        let Ok(RouteNetlinkMessage::NewLink(link)) = answer else { return Ok(None) };
        Ok(link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        }))
    }
}
