//! The kernel state this node should have, what it has, and the plan that
//! leads from one to the other. Pure.
//!
//! Everything is a sorted map keyed as the kernel keys it, so that a diff is
//! one walk and two states compare by `==`.

mod destinations;
mod diff;
mod missing;
mod observed;
mod op;
mod ownership;
mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Family, IfName, Mac};

pub use destinations::Destinations;
pub use diff::{diff, diff_at, diff_of_links, diff_on_links};
pub use observed::{Observed, ObservedLink, ObservedNexthop, ObservedRoute};
pub use op::{Op, Plan};
pub use ownership::{NEXTHOP_IDS, Ownership, ROUTE_PROTOCOL};
pub use touched::Touched;

/// The state of the kernel that the fabric wants on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub links: BTreeMap<IfName, LinkSpec>,
    /// Addresses of our links. Others of the same family are removed from a
    /// link that is in `links`: IPv4 ones inside the fabric's networks, IPv6
    /// ones but for link-local.
    pub addresses: BTreeSet<(IfName, IpNetwork)>,
    /// Permanent neighbours, keyed as the kernel keys them.
    pub neighbours: BTreeMap<(IfName, IpAddr), Mac>,
    /// VXLAN forwarding entries: the VTEP behind a MAC.
    pub fdb: BTreeMap<(IfName, Mac), IpAddr>,
    /// Routes of the main table with the default metric, by destination. Next
    /// hops are named by value; whether they become nexthop objects is up to
    /// `diff`, which knows what the kernel has.
    pub routes: BTreeMap<IpNetwork, Nexthop>,
    /// Files below `/proc/sys`, without that prefix.
    pub sysctls: BTreeMap<String, String>,
}

/// A tunnel device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    pub mac: Mac,
    pub mtu: u32,
    pub kind: LinkKind,
    /// Leave UDP and TCP checksums to the device (`ethtool -K … tx-checksum-ip-generic`).
    /// `None` leaves the kernel's default.
    pub tx_checksum: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Vxlan(VxlanSpec),
}

/// What `IFLA_VXLAN_*` sets (linux/if_link.h). A device that differs in any of
/// these but `learning`, `underlay` and `local` cannot be changed: it is made
/// anew. `local` may change within its family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanSpec {
    pub vni: u32,
    /// The link whose address is the tunnel's source.
    pub underlay: IfName,
    pub local: IpAddr,
    /// UDP port of the tunnel; always said, never 0.
    pub port: u16,
    pub learning: bool,
    pub gbp: bool,
}

/// Where a route leads. The key of a nexthop object, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexthop {
    pub dev: IfName,
    pub via: IpAddr,
    /// The gateway is on the link although no address of the link says so
    /// (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

impl LinkKind {
    /// Whether the kernel lets a link of this kind be changed into `other`.
    fn can_become(&self, other: &LinkKind) -> bool {
        let (LinkKind::Vxlan(this), LinkKind::Vxlan(other)) = (self, other);
        let like_other = VxlanSpec {
            learning: other.learning,
            underlay: other.underlay,
            local: other.local,
            ..this.clone()
        };
        like_other == *other && Family::of(this.local) == Family::of(other.local)
    }
}

/// As `ip route` writes it: `via 10.5.2.0 dev flannel.1 onlink`.
impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}", self.via, self.dev)?;
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

impl Desired {
    /// The part of it that belongs to one family: what a single-stack node
    /// would want.
    pub fn only(&self, family: Family) -> Desired {
        let is = |addr: &IpAddr| Family::of(*addr) == family;
        let links: BTreeMap<_, _> = self
            .links
            .iter()
            .filter(|(_, link)| {
                let LinkKind::Vxlan(vxlan) = &link.kind;
                is(&vxlan.local)
            })
            .map(|(name, link)| (*name, link.clone()))
            .collect();
        // A device's settings go with the device, also those below net/ipv6; the
        // host's with their family.
        let names = |link: &IfName, key: &str| key.split('/').any(|part| link.as_str() == part);
        let belongs = |key: &str| match self.links.keys().find(|link| names(link, key)) {
            Some(link) => links.contains_key(link),
            None => key.starts_with(if family == Family::V4 { "net/ipv4/" } else { "net/ipv6/" }),
        };
        Desired {
            addresses: self.addresses.iter().filter(|(_, net)| is(&net.ip())).copied().collect(),
            neighbours: self.neighbours.iter().filter(|((_, ip), _)| is(ip)).map(|(k, v)| (*k, *v)).collect(),
            fdb: self.fdb.iter().filter(|(_, dst)| is(dst)).map(|(k, v)| (*k, *v)).collect(),
            routes: self.routes.iter().filter(|(dst, _)| is(&dst.ip())).map(|(k, v)| (*k, *v)).collect(),
            sysctls: self
                .sysctls
                .iter()
                .filter(|(key, _)| belongs(key))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            links,
        }
    }
}
