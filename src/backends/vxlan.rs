//! VXLAN: a tunnel device for each address family, and for each peer a
//! neighbour, an FDB entry and a route (flannel pkg/backend/vxlan).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::value::RawValue;

use super::peers::{Peer, Side, check_addresses, forwarding, sides, strangers};
use super::{Backend, Encapsulation, Identity, Node, Peers, Rejected, networks};
use crate::desired::{Desired, LinkKind, LinkSpec, Nexthop, Ownership, VxlanSpec};
use crate::model::gojson::Fields;
use crate::model::{
    BackendData, ConfigError, Family, IfName, LeaseAttrs, Mac, NetworkConfig, PerFamily, SubnetKey, Vtep,
};

/// The kernel's default (`vxlan.udp_port`), not IANA's 4789. Said outright, so
/// that a device left with another port is seen to differ.
const KERNEL_PORT: u16 = 8472;

const MAX_VNI: u32 = 0xff_ffff;

#[derive(Debug)]
pub(super) struct Vxlan {
    options: Options,
    networks: PerFamily<IpNetwork>,
    devices: PerFamily<IfName>,
    ownership: Ownership,
    tx_checksum_off: bool,
}

/// `Backend` of the network config. Other keys are ignored: `Type`, and what
/// only Windows knows (`MacPrefix`, `Name`).
#[derive(Debug)]
struct Options {
    vni: u32,
    port: u16,
    /// Of the underlay; what is left for the tunnel is less the encapsulation.
    mtu: Option<u32>,
    gbp: bool,
    learning: bool,
    direct_routing: bool,
}

impl Vxlan {
    pub(super) fn new(config: &NetworkConfig, tx_checksum_off: bool) -> Result<Vxlan, ConfigError> {
        let options = Options::parse(&config.backend.options)?;
        let networks = networks(config);
        let devices = devices(&networks, options.vni)?;
        // A device of a family that is switched off is ours to remove.
        let names = Family::BOTH.map(|family| device_name(family, options.vni));
        let ownership = Ownership {
            links: names.iter().filter_map(|name| name.parse().ok()).collect(),
            networks: networks.iter().map(|(_, net)| *net).collect(),
        };
        Ok(Vxlan { options, networks, devices, ownership, tx_checksum_off })
    }

    /// An MTU above the uplink's would be cut down by the kernel, and packets of
    /// that size lost: the uplink bounds it.
    fn underlay_mtu(&self, node: &Node) -> u32 {
        self.options.mtu.unwrap_or(node.uplink_mtu).min(node.uplink_mtu)
    }

    fn device_mtu(&self, node: &Node, family: Family) -> u32 {
        self.underlay_mtu(node).saturating_sub(overhead(family))
    }

    fn join(
        &self,
        side: &Side<'_>,
        id: &Identity,
        peers: &Peers,
        out: &mut Desired,
        rejected: &mut Vec<Rejected>,
    ) {
        let (Some(&dev), Some(&mac)) = (self.devices.get(side.family), id.mac.get(side.family)) else {
            return;
        };
        self.own_device(side, dev, mac, out);
        let mut vteps = HashMap::from([(mac, side.public_ip)]);
        let admitted =
            side.admit(self.kind(), peers, rejected, |peer| self.vtep(side.family, peer, &mut vteps));
        let is_direct = |peer: &Peer<'_>| self.options.direct_routing && peer.is_on_link(side.node);
        let (direct, tunnelled): (Vec<_>, Vec<_>) =
            admitted.into_iter().partition(|(peer, _)| is_direct(peer));
        let via_uplink =
            |peer: &Peer<'_>| Nexthop { dev: side.node.uplink, via: peer.public_ip, onlink: false };
        let via_tunnel = |peer: &Peer<'_>| Nexthop { dev, via: peer.subnet.ip(), onlink: true };
        let tunnelled = || tunnelled.iter().map(|(peer, mac)| (peer, *mac));
        // Maps made whole and joined cost a fraction of as many insertions.
        let mut routes: BTreeMap<_, _> =
            tunnelled().map(|(peer, _)| (peer.subnet, via_tunnel(peer))).collect();
        routes.extend(direct.iter().map(|(peer, _)| (peer.subnet, via_uplink(peer))));
        out.routes.append(&mut routes);
        out.neighbours.append(&mut tunnelled().map(|(peer, mac)| ((dev, peer.subnet.ip()), mac)).collect());
        out.fdb.append(&mut tunnelled().map(|(peer, mac)| ((dev, mac), peer.public_ip)).collect());
    }

    /// The base address alone, without its subnet, so that no broadcast routes
    /// come with it: it is what the host itself sends from.
    fn own_device(&self, side: &Side<'_>, dev: IfName, mac: Mac, out: &mut Desired) {
        let vxlan = VxlanSpec {
            vni: self.options.vni,
            underlay: side.node.uplink,
            local: side.public_ip,
            port: self.options.port,
            learning: self.options.learning,
            gbp: self.options.gbp,
        };
        let link = LinkSpec {
            mac,
            mtu: self.device_mtu(side.node, side.family),
            kind: LinkKind::Vxlan(vxlan),
            tx_checksum: self.tx_checksum_off.then_some(false),
        };
        out.links.insert(dev, link);
        out.addresses.insert((dev, IpNetwork::from(side.own.ip())));
        out.sysctls.extend(forwarding(side.family, Some(dev)));
        // CVE-2020-10749: no router advertisement from a container moves us.
        out.sysctls.insert(format!("net/ipv6/conf/{dev}/accept_ra"), "0".to_owned());
    }

    /// The peer's MAC, unless another VTEP has it: both would fight over one FDB
    /// entry. Several leases of one node may share it.
    fn vtep(&self, family: Family, peer: &Peer<'_>, vteps: &mut HashMap<Mac, IpAddr>) -> Result<Mac, String> {
        let key = data_key(family);
        let Some(data) = peer.attrs.backend_data.get(family) else {
            return Err(format!("{key} is missing"));
        };
        let mac = self.read_data(data).map_err(|fault| format!("{key}: {fault}"))?;
        let owner = *vteps.entry(mac).or_insert(peer.public_ip);
        if owner != peer.public_ip {
            return Err(format!("{key}: VtepMAC {mac} is that of the node at {owner}"));
        }
        Ok(mac)
    }

    fn read_data(&self, data: &BackendData) -> Result<Mac, String> {
        let Vtep { vni, mac } = data.vtep()?;
        if vni != self.options.vni {
            return Err(format!("VNI {vni}: this network's is {}", self.options.vni));
        }
        if !mac.is_unicast() {
            return Err(format!("VtepMAC {mac} is not a unicast address"));
        }
        Ok(mac)
    }
}

impl Backend for Vxlan {
    fn kind(&self) -> &'static str {
        "vxlan"
    }

    fn check(&self, node: &Node) -> Result<(), ConfigError> {
        check_addresses(&self.networks, node)?;
        let mtu = self.underlay_mtu(node);
        for (family, _) in self.networks.iter() {
            let least = least_mtu(family) + overhead(family);
            if mtu < least {
                let expected = format!("{least} or more on {} to carry {family} in VXLAN", node.uplink);
                return Err(ConfigError::Value { key: "MTU", value: mtu.to_string(), expected });
            }
        }
        Ok(())
    }

    fn attrs(&self, node: &Node, id: &Identity) -> LeaseAttrs {
        let data = |mac| BackendData::from(Vtep { vni: self.options.vni, mac });
        LeaseAttrs {
            public_ip: self.networks.map(|family, _| node.public_ip.get(family).copied()).flatten(),
            backend_type: self.kind().into(),
            backend_data: self.networks.map(|family, _| id.mac.get(family).copied().map(data)).flatten(),
        }
    }

    /// `subnet.env` has room for one: that of the family with less.
    fn mtu(&self, node: &Node) -> u32 {
        let mtus = self.networks.iter().map(|(family, _)| self.device_mtu(node, family));
        mtus.min().unwrap_or(node.uplink_mtu)
    }

    fn encapsulation(&self) -> Option<Encapsulation> {
        Some(Encapsulation { port: self.options.port, vni: self.options.vni })
    }

    fn devices(&self) -> PerFamily<IfName> {
        self.devices
    }

    fn published_identity(&self, attrs: &LeaseAttrs) -> Identity {
        let data = attrs.backend_data.iter();
        Identity {
            mac: data.filter_map(|(family, data)| Some((family, self.read_data(data).ok()?))).collect(),
        }
    }

    fn desired(
        &self,
        node: &Node,
        id: &Identity,
        own: &SubnetKey,
        peers: &Peers,
    ) -> (Desired, Vec<Rejected>) {
        let mut out = Desired::default();
        let mut rejected = strangers(self.kind(), &self.networks, peers);
        for side in sides(&self.networks, node, own) {
            self.join(&side, id, peers, &mut out, &mut rejected);
        }
        (out, rejected)
    }

    fn ownership(&self) -> Ownership {
        self.ownership.clone()
    }
}

impl Options {
    fn parse(options: &RawValue) -> Result<Options, ConfigError> {
        let fields = Fields::parse(options.get())?;
        let vni = fields.uint::<u32>("VNI")?.unwrap_or(1);
        if vni > MAX_VNI {
            let expected = format!("a whole number from 0 to {MAX_VNI}");
            return Err(ConfigError::Value { key: "VNI", value: vni.to_string(), expected });
        }
        Ok(Options {
            vni,
            port: fields.uint::<u16>("Port")?.filter(|port| *port != 0).unwrap_or(KERNEL_PORT),
            mtu: fields.uint::<u32>("MTU")?,
            gbp: fields.bool("GBP", false)?,
            learning: fields.bool("Learning", false)?,
            direct_routing: fields.bool("DirectRouting", false)?,
        })
    }
}

fn devices(networks: &PerFamily<IpNetwork>, vni: u32) -> Result<PerFamily<IfName>, ConfigError> {
    let name = |(family, _)| {
        let name = device_name(family, vni);
        name.parse().map(|name| (family, name)).map_err(|_| ConfigError::Value {
            key: "VNI",
            value: vni.to_string(),
            expected: format!("a VNI that leaves the device's name, {name}, at 15 characters or fewer"),
        })
    };
    networks.iter().map(name).collect()
}

fn device_name(family: Family, vni: u32) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// What the encapsulation adds, by the underlay's family: outer IP header, UDP,
/// VXLAN and inner Ethernet header (RFC 7348; `vxlan_headroom()` in the kernel).
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 20 + 8 + 8 + 14,
        Family::V6 => 40 + 8 + 8 + 14,
    }
}

/// The least MTU that a link carries the family with (RFC 791, RFC 8200).
fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

fn data_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    }
}
