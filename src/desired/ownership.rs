use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use crate::model::IfName;

/// Our routes' and nexthops' protocol number (`RTA_PROTOCOL`): free in
/// iproute2's rt_protos and in FRR's, above the kernel's own.
pub const ROUTE_PROTOCOL: u8 = 0x57; // 'W'

/// `RTPROT_KERNEL` (linux/rtnetlink.h): routes that come with an address.
pub(super) const KERNEL_PROTOCOL: u8 = 2;

/// The nexthop ids we take. Ids are one number space for the whole namespace:
/// FRR counts up from 1, so we start far away and step aside from ids in use.
/// Room for two families of 65,000 peers, twice.
pub const NEXTHOP_IDS: RangeInclusive<u32> = 0x5745_0000..=0x5748_ffff;

/// What the plan may remove or change: what stands on a link of ours or
/// carries our protocol number. All else is foreign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Links of these names are ours, whoever made them (flanneld's are
    /// adopted by name).
    pub links: BTreeSet<IfName>,
    /// The cluster's networks: routes that we do not tag lie outside our reach
    /// unless they lead into one of these over a link of ours.
    pub networks: Vec<IpNetwork>,
}

impl Ownership {
    /// Whether `net` lies wholly inside one of the cluster's networks.
    pub(super) fn covers(&self, net: IpNetwork) -> bool {
        self.networks.iter().any(|outer| outer.prefix() <= net.prefix() && outer.contains(net.ip()))
    }
}
