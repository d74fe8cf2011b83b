//! host-gw: a plain route to each peer's subnet by way of the peer itself, no
//! tunnel (flannel pkg/backend/hostgw, pkg/backend/route_network.go).

use ipnetwork::IpNetwork;

use super::peers::{Side, check_addresses, forwarding, public_ip_key, sides, strangers};
use super::{Backend, Identity, Node, Peers, Rejected, networks};
use crate::desired::{Desired, Nexthop, Ownership};
use crate::model::{ConfigError, IfName, LeaseAttrs, NetworkConfig, PerFamily, SubnetKey};

#[derive(Debug)]
pub(super) struct HostGw {
    networks: PerFamily<IpNetwork>,
}

impl HostGw {
    pub(super) fn new(config: &NetworkConfig) -> HostGw {
        HostGw { networks: networks(config) }
    }

    fn join(&self, side: &Side<'_>, peers: &Peers, out: &mut Desired, rejected: &mut Vec<Rejected>) {
        let node = side.node;
        let admitted = side.admit(self.kind(), peers, rejected, |peer| {
            if peer.is_on_link(node) {
                return Ok(());
            }
            let (ip, uplink) = (peer.public_ip, node.uplink);
            Err(format!("{ip} is not on-link on {uplink}: host-gw needs all nodes in one layer-2 network"))
        });
        out.sysctls.extend(forwarding(side.family, None));
        for (peer, ()) in admitted {
            let nexthop = Nexthop { dev: node.uplink, via: peer.public_ip, onlink: false };
            out.routes.insert(peer.subnet, nexthop);
        }
    }
}

impl Backend for HostGw {
    fn kind(&self) -> &'static str {
        "host-gw"
    }

    /// Peers send to our public address by ARP or neighbour discovery, so it has
    /// to be the uplink's own: behind NAT nobody would answer.
    fn check(&self, node: &Node) -> Result<(), ConfigError> {
        check_addresses(&self.networks, node)?;
        for (family, _) in self.networks.iter() {
            let (public, own) = (node.public_ip.get(family), node.address.get(family));
            let (Some(public), true) = (public, public != own) else { continue };
            let own = own.map_or("which has none".to_owned(), |own| format!("which is {own}"));
            let expected = format!("{}'s own address, {own}: host-gw does not work behind NAT", node.uplink);
            return Err(ConfigError::Value {
                key: public_ip_key(family),
                value: public.to_string(),
                expected,
            });
        }
        Ok(())
    }

    fn attrs(&self, node: &Node, _id: &Identity) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.networks.map(|family, _| node.public_ip.get(family).copied()).flatten(),
            backend_type: self.kind().into(),
            backend_data: PerFamily::default(),
        }
    }

    fn mtu(&self, node: &Node) -> u32 {
        node.uplink_mtu
    }

    fn devices(&self) -> PerFamily<IfName> {
        PerFamily::default()
    }

    fn published_identity(&self, _attrs: &LeaseAttrs) -> Identity {
        Identity::default()
    }

    fn desired(
        &self,
        node: &Node,
        _id: &Identity,
        own: &SubnetKey,
        peers: &Peers,
    ) -> (Desired, Vec<Rejected>) {
        let mut out = Desired::default();
        let mut rejected = strangers(self.kind(), &self.networks, peers);
        for side in sides(&self.networks, node, own) {
            self.join(&side, peers, &mut out, &mut rejected);
        }
        (out, rejected)
    }

    fn ownership(&self) -> Ownership {
        Ownership { networks: self.networks.iter().map(|(_, net)| *net).collect(), ..Ownership::default() }
    }
}
