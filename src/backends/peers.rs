//! Which peers a backend takes, one address family at a time: a fault in one
//! family of a peer leaves its other family in place, so that a dual-stack
//! node is the sum of two single-stack ones.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Node, Peers, Rejected};
use crate::model::{ConfigError, Family, IfName, LeaseAttrs, PerFamily, SubnetKey};

/// One family of the fabric, as seen from this node.
pub(super) struct Side<'a> {
    pub(super) family: Family,
    pub(super) network: IpNetwork,
    pub(super) node: &'a Node,
    pub(super) public_ip: IpAddr,
    /// This node's own subnet.
    pub(super) own: IpNetwork,
}

/// One family of a peer's lease.
pub(super) struct Peer<'a> {
    pub(super) subnet: IpNetwork,
    pub(super) public_ip: IpAddr,
    pub(super) attrs: &'a LeaseAttrs,
}

/// The families that the network config, the node and its lease agree on.
pub(super) fn sides<'a>(networks: &PerFamily<IpNetwork>, node: &'a Node, own: &SubnetKey) -> Vec<Side<'a>> {
    let side = |(family, network): (Family, &IpNetwork)| {
        let public_ip = *node.public_ip.get(family)?;
        Some(Side { family, network: *network, node, public_ip, own: own.net(family)? })
    };
    networks.iter().filter_map(side).collect()
}

/// No packet of a container gets through a host that does not forward. Who turns
/// it off for all links turns it off for each, so each tunnel is looked after,
/// too; the plugin turns it on with the first container.
pub(super) fn forwarding(family: Family, tunnel: Option<IfName>) -> impl Iterator<Item = (String, String)> {
    let all = match family {
        Family::V4 => "net/ipv4/ip_forward".to_owned(),
        Family::V6 => "net/ipv6/conf/all/forwarding".to_owned(),
    };
    let number = if family == Family::V4 { 4 } else { 6 };
    let tunnel = tunnel.map(|dev| format!("net/ipv{number}/conf/{dev}/forwarding"));
    std::iter::once(all).chain(tunnel).map(|key| (key, "1".to_owned()))
}

/// That the node has a public address of each family in use.
pub(super) fn check_addresses(networks: &PerFamily<IpNetwork>, node: &Node) -> Result<(), ConfigError> {
    let Some((family, _)) = networks.iter().find(|(family, _)| node.public_ip.get(*family).is_none()) else {
        return Ok(());
    };
    let expected = format!("an {family} address on {}, as the network config enables {family}", node.uplink);
    Err(ConfigError::Value { key: public_ip_key(family), value: "none".to_owned(), expected })
}

/// Leases of our kind that share no family with the network.
pub(super) fn strangers(kind: &str, networks: &PerFamily<IpNetwork>, peers: &Peers) -> Vec<Rejected> {
    let known = |key: &SubnetKey| networks.iter().any(|(family, _)| key.net(family).is_some());
    let ours = peers.iter().filter(|(_, attrs)| attrs.backend_type == kind);
    let strange = ours.filter(|(key, _)| !known(key));
    let reason = || "has no subnet of a family that the network config enables".to_owned();
    strange.map(|(key, _)| Rejected { key: *key, reason: reason() }).collect()
}

impl<'a> Side<'a> {
    /// The peers of this family that `judge` and the rules of every backend
    /// accept, with what `judge` made of them. The rest is told in `rejected`,
    /// but for leases of other backends, which are none of our business.
    ///
    /// Of two leases that exclude each other the longer prefix wins, then the
    /// lower address: whatever the order of events, all nodes agree, and no
    /// lease of a wide prefix pushes out those inside it. A lease that is
    /// broken in itself pushes out none.
    pub(super) fn admit<T>(
        &self,
        kind: &str,
        peers: &'a Peers,
        rejected: &mut Vec<Rejected>,
        mut judge: impl FnMut(&Peer<'a>) -> Result<T, String>,
    ) -> Vec<(Peer<'a>, T)> {
        let ours = peers.iter().filter(|(_, attrs)| attrs.backend_type == kind);
        let mut candidates: Vec<_> =
            ours.filter_map(|(key, attrs)| Some((key, key.net(self.family)?, attrs))).collect();
        candidates.sort_by_key(|(key, net, _)| (Reverse(net.prefix()), net.ip(), *key));

        let mut taken = BTreeSet::new();
        let mut admitted = Vec::with_capacity(candidates.len());
        for (key, subnet, attrs) in candidates {
            let verdict = self.peer(subnet, attrs).and_then(|peer| {
                // Longer prefixes come first, so an overlap is with one inside.
                if let Some(inner) = taken.range(subnet.network()..=subnet.broadcast()).next() {
                    return Err(format!("subnet {subnet} overlaps another lease's, which begins at {inner}"));
                }
                let made = judge(&peer)?;
                Ok((peer, made))
            });
            match verdict {
                Ok(peer) => {
                    taken.insert(subnet.network());
                    admitted.push(peer);
                }
                Err(reason) => rejected.push(Rejected { key: *key, reason }),
            }
        }
        admitted
    }

    fn peer(&self, subnet: IpNetwork, attrs: &'a LeaseAttrs) -> Result<Peer<'a>, String> {
        if overlap(subnet, self.own) {
            return Err(format!("subnet {subnet} overlaps this node's own, {}", self.own));
        }
        if !(self.network.contains(subnet.ip()) && self.network.prefix() <= subnet.prefix()) {
            return Err(format!("subnet {subnet} lies outside the network {}", self.network));
        }
        let name = public_ip_key(self.family);
        let Some(&public_ip) = attrs.public_ip.get(self.family) else {
            return Err(format!("{name} is missing"));
        };
        if let Some(fault) = self.endpoint_fault(public_ip, subnet) {
            return Err(format!("{name} {public_ip} {fault}"));
        }
        Ok(Peer { subnet, public_ip, attrs })
    }

    /// Why no packet for `subnet` may be sent to `endpoint`.
    fn endpoint_fault(&self, endpoint: IpAddr, subnet: IpNetwork) -> Option<&'static str> {
        let link_local_v6 = matches!(endpoint, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let broadcast = matches!(endpoint, IpAddr::V4(v4) if v4.is_broadcast());
        let own = endpoint == self.public_ip || self.node.address.get(self.family) == Some(&endpoint);
        if Family::of(endpoint) != self.family {
            Some("is of the other address family")
        } else if endpoint.is_unspecified() {
            Some("is unspecified")
        } else if endpoint.is_multicast() || broadcast {
            Some("is not a unicast address")
        } else if endpoint.is_loopback() {
            Some("is a loopback address")
        } else if link_local_v6 {
            Some("is link-local")
        } else if own {
            Some("is this node's own")
        } else if subnet.contains(endpoint) || self.own.contains(endpoint) {
            Some("lies in a leased subnet: the tunnel would lead into itself")
        } else {
            None
        }
    }
}

impl Peer<'_> {
    /// Whether the peer's address is on the uplink itself.
    pub(super) fn is_on_link(&self, node: &Node) -> bool {
        node.on_link.iter().any(|prefix| prefix.contains(self.public_ip))
    }
}

/// The lease's own word for it (flannel pkg/lease/lease.go).
pub(super) fn public_ip_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "PublicIP",
        Family::V6 => "PublicIPv6",
    }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.ip()) || b.contains(a.ip())
}
