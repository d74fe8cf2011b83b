//! Every link of this host by what it is: what a cleanup looks through.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::netlink::{Connection, NetlinkError, Request};
use crate::model::IfName;

#[derive(Clone, Debug)]
pub struct Device {
    pub index: u32,
    pub name: IfName,
    /// `None` for hardware.
    pub kind: Option<InfoKind>,
    /// The bridge or bond it is a port of.
    pub controller: Option<u32>,
}

pub fn devices(connection: &mut Connection) -> Result<Vec<Device>, NetlinkError> {
    let request = Request::dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let messages: Vec<RouteNetlinkMessage> = connection.dump(request).map_err(|cause| cause.of("links"))?;
    Ok(messages.iter().filter_map(Device::of).collect())
}

impl Device {
    fn of(message: &RouteNetlinkMessage) -> Option<Device> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let (mut name, mut kind, mut controller) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = text.parse().ok(),
                LinkAttribute::Controller(index) => controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => kind = infos.iter().find_map(kind_of),
                _ => {}
            }
        }
        Some(Device { index: message.header.index, name: name?, kind, controller })
    }

    /// Whether it is a tunnel such as weft or flannel makes, by name and kind:
    /// `flannel.1`, `flannel-v6.1`, `flannel.ipip`, `flannel-wg`, `flannel0`.
    pub fn is_tunnel_of_ours(&self) -> bool {
        let name = self.name.as_str();
        let numbered = |prefix: &str| {
            let digits = name.strip_prefix(prefix).unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        };
        match self.kind {
            Some(InfoKind::Vxlan) => numbered("flannel.") || numbered("flannel-v6."),
            Some(InfoKind::IpIp) => name == "flannel.ipip",
            Some(InfoKind::Wireguard) => name == "flannel-wg" || name == "flannel-wg-v6",
            Some(InfoKind::Tun) => numbered("flannel"),
            _ => false,
        }
    }
}

fn kind_of(info: &LinkInfo) -> Option<InfoKind> {
    if let LinkInfo::Kind(kind) = info { Some(kind.clone()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_known_by_name_and_kind() {
        let is_ours = |name: &str, kind| {
            let device = Device { index: 1, name: name.parse().unwrap(), kind, controller: None };
            device.is_tunnel_of_ours()
        };
        for (name, kind) in [
            ("flannel.1", InfoKind::Vxlan),
            ("flannel-v6.42", InfoKind::Vxlan),
            ("flannel.ipip", InfoKind::IpIp),
            ("flannel-wg", InfoKind::Wireguard),
            ("flannel-wg-v6", InfoKind::Wireguard),
            ("flannel0", InfoKind::Tun),
        ] {
            assert!(is_ours(name, Some(kind.clone())), "{name}");
            assert!(!is_ours(name, Some(InfoKind::Bridge)) && !is_ours(name, None), "{name}");
        }
        for name in ["flannel.", "flannel.x", "flannel", "vxlan.1", "flannel.1.2"] {
            assert!(!is_ours(name, Some(InfoKind::Vxlan)), "{name}");
        }
    }
}
