//! Which subnet this node takes. Pure: the listing, our own addresses and the
//! randomness are arguments.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Snapshot, StoredLease};
use crate::model::{Family, NetworkConfig, PerFamily, Pool, SubnetKey};

/// A new subnet is drawn from so many of the first free ones, so that nodes
/// which start together seldom want the same (flannel
/// pkg/subnet/etcd/local_manager.go, `allocateSubnet`).
pub const CANDIDATES: usize = 100;

/// What to do about this node's subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Leases of ours that do not fit the config: to be deleted. Reservations
    /// are an operator's word and never among them.
    pub stale: Vec<&'a StoredLease>,
    pub choice: Choice<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Our own lease or reservation.
    Keep(&'a StoredLease),
    /// A free subnet: the previous one, or one drawn at random.
    Take(SubnetKey),
    /// Every subnet is taken, with the pool that has none left.
    Exhausted(String),
}

/// Choose among our own lease, the `previous` subnet and a random free one, in
/// this order. A lease is ours where it publishes `own`, this node's public
/// address. `random(n)` gives a number below `n`.
pub fn choose<'a>(
    config: &NetworkConfig,
    listing: &'a Snapshot,
    own: &PerFamily<IpAddr>,
    previous: Option<SubnetKey>,
    mut random: impl FnMut(usize) -> usize,
) -> Decision<'a> {
    let (fitting, unfit): (Vec<_>, Vec<_>) = listing
        .leases
        .iter()
        .filter(|stored| is_own(own, &stored.lease.attrs.public_ip))
        .partition(|stored| fits(config, &stored.lease.key));
    let stale: Vec<_> = unfit.into_iter().filter(|stored| stored.lease_id.is_some()).collect();

    // Containers may already live in the previous subnet; after that an
    // operator's reservation counts more than a lease.
    let kept = fitting
        .into_iter()
        .min_by_key(|s| (Some(s.lease.key) != previous, s.lease_id.is_some(), s.lease.key));
    if let Some(kept) = kept {
        return Decision { stale, choice: Choice::Keep(kept) };
    }

    let taken: Vec<SubnetKey> = listing
        .leases
        .iter()
        .filter(|stored| !stale.iter().any(|s| s.lease.key == stored.lease.key))
        .map(|stored| stored.lease.key)
        .chain(listing.bad.iter().filter_map(|bad| bad.subnet))
        .collect();
    let previous = previous.filter(|key| fits(config, key) && !taken.iter().any(|t| blocks(config, t, key)));
    if let Some(previous) = previous {
        return Decision { stale, choice: Choice::Take(previous) };
    }
    Decision { stale, choice: draw(config, &taken, &mut random) }
}

/// Whether `published` is the identity of the node that has `own`: the IPv4
/// address, or the IPv6 address of a node that has no other.
pub fn is_own(own: &PerFamily<IpAddr>, published: &PerFamily<IpAddr>) -> bool {
    let identity = own.iter().find(|(_, ip)| !ip.is_unspecified());
    identity.is_some_and(|(family, ip)| published.get(family) == Some(ip))
}

/// Whether `key` is a subnet that `config` could hand out: the same families,
/// and in each the length and the range of the pool.
pub fn fits(config: &NetworkConfig, key: &SubnetKey) -> bool {
    Family::BOTH.into_iter().all(|family| match (config.pools.get(family), key.net(family)) {
        (None, None) => true,
        (Some(pool), Some(net)) => pool.contains_subnet(net),
        _ => false,
    })
}

fn draw(
    config: &NetworkConfig,
    taken: &[SubnetKey],
    random: &mut impl FnMut(usize) -> usize,
) -> Choice<'static> {
    let mut nets = PerFamily::default();
    for (family, pool) in config.pools.iter() {
        let free = free(family, pool, taken);
        if free.is_empty() {
            return Choice::Exhausted(format!("every subnet of {pool} is taken"));
        }
        nets.set(family, free.get(random(free.len())).or(free.first()).copied());
    }
    SubnetKey::new(nets).map_or_else(
        || Choice::Exhausted("the network config enables no address family".into()),
        Choice::Take,
    )
}

/// The first free subnets of a pool. Walks pool and sorted leases side by side:
/// linear in their number, whatever their size.
fn free(family: Family, pool: &Pool, taken: &[SubnetKey]) -> Vec<IpNetwork> {
    let mut used: Vec<(u128, u128)> = taken
        .iter()
        .filter_map(|key| key.net(family))
        .filter(|net| !covers(net, pool))
        .map(|net| (number(net.ip()), number(net.broadcast())))
        .collect();
    used.sort_unstable();
    let mut used = used.into_iter().peekable();

    let size = 1u128 << (family.bits() - pool.subnet_len);
    let max = number(pool.subnet_max);
    let mut at = number(pool.subnet_min);
    let mut free = Vec::new();
    while at <= max && free.len() < CANDIDATES {
        let end = at + (size - 1);
        while used.next_if(|(_, used_end)| *used_end < at).is_some() {}
        let next = match used.peek() {
            Some((start, used_end)) if *start <= end => (used_end | (size - 1)).checked_add(1),
            _ => {
                free.extend(IpNetwork::new(address(family, at), pool.subnet_len).ok());
                end.checked_add(1)
            }
        };
        let Some(next) = next else { break };
        at = next;
    }
    free
}

/// Whether `taken` keeps `key` from being leased.
fn blocks(config: &NetworkConfig, taken: &SubnetKey, key: &SubnetKey) -> bool {
    config.pools.iter().any(|(family, pool)| match (taken.net(family), key.net(family)) {
        (Some(taken), Some(net)) => {
            !covers(&taken, pool) && (taken.contains(net.ip()) || net.contains(taken.ip()))
        }
        _ => false,
    })
}

/// A "subnet" that holds the whole pool was not cut from it: IPv6-only flannel
/// nodes publish 0.0.0.0/0, and one such record must not block all others.
fn covers(net: &IpNetwork, pool: &Pool) -> bool {
    net.prefix() <= pool.network.prefix() && net.contains(pool.network.ip())
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}
