//! VLANs of bridge ports (include/uapi/linux/if_bridge.h, `bridge vlan`).

use netlink_packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use weft::kernel::netlink::Request;
use weft::model::IfName;

use super::Kernel;
use crate::protocol::error::Result;

/// VLANs `first` to `last` on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlan {
    pub first: u16,
    pub last: u16,
    /// Untagged on the port, in both directions. Of one VLAN only.
    pub native: bool,
}

const ALL: PortVlan = PortVlan { first: 1, last: 4094, native: false };

impl Kernel {
    /// Put the VLANs on a port, after taking off all it has if `clear`. In this
    /// order: a VLAN that comes twice is as it came last.
    pub fn set_port_vlans(
        &mut self,
        name: IfName,
        index: u32,
        clear: bool,
        vlans: &[PortVlan],
    ) -> Result<()> {
        let clearing = clear.then(|| Request::change(RouteNetlinkMessage::DelLink(message(index, &[ALL]))));
        let setting = Request::change(RouteNetlinkMessage::SetLink(message(index, vlans)));
        self.all(clearing.into_iter().chain([setting]).collect(), |_| format!("VLANs of bridge port {name}"))
    }
}

fn message(port: u32, vlans: &[PortVlan]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    let mut spec = vec![AfSpecBridge::Flags(BridgeFlag::Controller)];
    spec.extend(vlans.iter().flat_map(|vlan| infos(*vlan)).map(AfSpecBridge::VlanInfo));
    message.attributes.push(LinkAttribute::AfSpecBridge(spec));
    message
}

fn infos(vlan: PortVlan) -> Vec<BridgeVlanInfo> {
    let flags = match vlan.native {
        true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        false => BridgeVlanInfoFlags::empty(),
    };
    if vlan.first == vlan.last {
        return vec![BridgeVlanInfo { flags, vid: vlan.first }];
    }
    vec![
        BridgeVlanInfo { flags: flags | BridgeVlanInfoFlags::RangeBegin, vid: vlan.first },
        BridgeVlanInfo { flags: flags | BridgeVlanInfoFlags::RangeEnd, vid: vlan.last },
    ]
}
