//! Which subnet this node takes. Pure: the listing, our own addresses and the
//! randomness are arguments.

use std::collections::BTreeSet;
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
        .partition(|stored| fits(config, &stored.lease.key) && !yields(config, listing, own, stored));
    let stale: Vec<_> = unfit.into_iter().filter(|stored| stored.lease_id.is_some()).collect();

    // Containers may already live in the previous subnet; after that an
    // operator's reservation counts more than a lease.
    let kept = fitting
        .into_iter()
        .min_by_key(|s| (Some(s.lease.key) != previous, s.lease_id.is_some(), s.lease.key));
    if let Some(kept) = kept {
        return Decision { stale, choice: Choice::Keep(kept) };
    }

    let freed: BTreeSet<SubnetKey> = stale.iter().map(|stored| stored.lease.key).collect();
    let leased = listing.leases.iter().map(|stored| stored.lease.key).filter(|key| !freed.contains(key));
    let taken: Vec<SubnetKey> = leased.chain(listing.bad.iter().filter_map(|bad| bad.subnet)).collect();
    let previous = previous.filter(|key| fits(config, key) && !taken.iter().any(|t| blocks(config, t, key)));
    if let Some(previous) = previous {
        return Decision { stale, choice: Choice::Take(previous) };
    }
    Decision { stale, choice: draw(config, &taken, &mut random) }
}

/// The same for a node whose containers live in `key`: that subnet or none.
pub fn choose_again<'a>(
    config: &NetworkConfig,
    listing: &'a Snapshot,
    own: &PerFamily<IpAddr>,
    key: SubnetKey,
) -> Decision<'a> {
    let choice = |choice| Decision { stale: Vec::new(), choice };
    let is_ours = |stored: &&StoredLease| is_own(own, &stored.lease.attrs.public_ip);
    let kept = listing.leases.iter().filter(is_ours).find(|stored| stored.lease.key == key);
    let stale = kept.filter(|kept| yields(config, listing, own, kept));
    if let (Some(kept), None) = (kept, stale) {
        return choice(Choice::Keep(kept));
    }
    let blocking = |stored: &&StoredLease| {
        blocks(config, &stored.lease.key, &key) && stale.is_none_or(|stale| stale != *stored)
    };
    if let Some(other) = listing.leases.iter().find(blocking) {
        let holder: Vec<_> = other.lease.attrs.public_ip.iter().map(|(_, ip)| ip.to_string()).collect();
        let what = if other.lease_id.is_some() { "leased to" } else { "reserved for" };
        let why = format!("{} is {what} {}", other.lease.key, holder.join(", "));
        let stale = stale.filter(|stale| stale.lease_id.is_some()).into_iter().collect();
        return Decision { stale, choice: Choice::Exhausted(why) };
    }
    let bad = |bad: &&super::BadRecord| bad.subnet.is_some_and(|bad| blocks(config, &bad, &key));
    if let Some(bad) = listing.bad.iter().find(bad) {
        let why = format!("the record {} holds {key} and does not parse: {}", bad.key, bad.reason);
        return choice(Choice::Exhausted(why));
    }
    choice(Choice::Take(key))
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

/// Whether a record of ours came after another node's that overlaps it: two keys
/// of dual stack may share one family's subnet. Who comes later gives its record
/// back at once, unless the store went away in between: then it does so here.
fn yields(config: &NetworkConfig, listing: &Snapshot, own: &PerFamily<IpAddr>, ours: &StoredLease) -> bool {
    listing.leases.iter().any(|other| {
        other.mod_revision < ours.mod_revision
            && other.lease.key.overlaps(&ours.lease.key)
            && fits(config, &other.lease.key)
            && !is_own(own, &other.lease.attrs.public_ip)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lease, LeaseAttrs};
    use proptest::prelude::*;

    const DUAL: &str =
        r#"{"EnableIPv6":true,"Network":"10.5.0.0/20","SubnetLen":26,"IPv6Network":"fd00:5::/56"}"#;

    proptest! {
        #[test]
        fn a_taken_subnet_lies_in_the_pool_and_overlaps_no_other(
            leases in prop::collection::vec(any_lease(), 0..30),
            previous in prop::option::of(any_key()),
            seed in any::<usize>(),
        ) {
            let config = config(DUAL);
            let listing = listing(leases);
            let decision = choose(&config, &listing, &ip(200), previous, |n| seed % n);
            let Choice::Take(key) = decision.choice else {
                let full = |(family, pool)| free(family, pool, &keys(&listing)).is_empty();
                prop_assert!(config.pools.iter().any(full), "{decision:?}");
                return Ok(());
            };
            prop_assert!(fits(&config, &key));
            prop_assert!(listing.leases.iter().all(|other| !other.lease.key.overlaps(&key)));
        }

        #[test]
        fn the_free_are_what_a_plain_walk_finds(leases in prop::collection::vec(any_lease(), 0..80)) {
            let config = config(DUAL);
            let taken = keys(&listing(leases));
            for (family, pool) in config.pools.iter() {
                let plain = (0..pool.subnets()).filter_map(|i| pool.nth(i)).filter(|net| {
                    let of = |key: &SubnetKey| key.net(family);
                    taken.iter().filter_map(of).all(|t| !t.contains(net.ip()) && !net.contains(t.ip()))
                });
                prop_assert_eq!(free(family, pool, &taken), plain.take(CANDIDATES).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn each_of_the_first_hundred_free_can_be_drawn_and_no_other() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let listing = listing(vec![lease("10.5.3.0-24", 1, Some(1))]);
        let mut sizes = BTreeSet::new();
        let drawn: BTreeSet<_> = (0..CANDIDATES)
            .map(|i| {
                let choice = choose(&config, &listing, &ip(9), None, |n| (sizes.insert(n), i).1).choice;
                let Choice::Take(key) = choice else { panic!("{choice:?}") };
                key
            })
            .collect();
        assert_eq!(sizes, BTreeSet::from([CANDIDATES]));
        let first = (1..=101).filter(|n| *n != 3).map(|n| key(&format!("10.5.{n}.0-24")));
        assert_eq!(drawn, first.collect());
    }

    #[test]
    fn our_own_lease_is_kept_first_the_previous_then_a_reservation() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let listing = listing(vec![
            lease("10.5.1.0-24", 9, Some(1)),
            lease("10.5.2.0-24", 9, None),
            lease("10.5.3.0-24", 9, Some(3)),
            lease("10.5.4.0-24", 8, Some(4)),
        ]);
        let kept = |previous: Option<&str>| {
            let decision = choose(&config, &listing, &ip(9), previous.map(key), |_| 0);
            assert_eq!(decision.stale, Vec::<&StoredLease>::new());
            let Choice::Keep(kept) = decision.choice else { panic!("{decision:?}") };
            kept.lease.key
        };
        assert_eq!(kept(Some("10.5.3.0-24")), key("10.5.3.0-24"));
        assert_eq!(kept(None), key("10.5.2.0-24"));
        assert_eq!(kept(Some("10.5.4.0-24")), key("10.5.2.0-24"), "another node's now");
    }

    #[test]
    fn a_node_with_containers_takes_its_subnet_again_or_none() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let listing = listing(vec![lease("10.5.1.0-24", 9, Some(1)), lease("10.5.2.0-24", 8, Some(2))]);
        let again = |text| choose_again(&config, &listing, &ip(9), key(text)).choice;
        assert_eq!(again("10.5.1.0-24"), Choice::Keep(&listing.leases[0]));
        assert_eq!(again("10.5.3.0-24"), Choice::Take(key("10.5.3.0-24")));
        let taken = Choice::Exhausted("10.5.2.0-24 is leased to 192.0.2.8".into());
        assert_eq!(again("10.5.2.0-24"), taken);
    }

    #[test]
    fn of_two_leases_that_share_a_family_the_later_one_is_given_back() {
        let config = config(r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/56"}"#);
        let mut first = lease("10.5.2.0-24&fd00:5:0:2::-64", 8, Some(1));
        let mut second = lease("10.5.2.0-24&fd00:5:0:6::-64", 9, Some(2));
        (first.mod_revision, second.mod_revision) = (3, 4);
        let listing = listing(vec![first, second]);
        let [first, second] = &listing.leases[..] else { unreachable!() };

        assert_eq!(choose(&config, &listing, &ip(8), None, |_| 0).choice, Choice::Keep(first));
        let decision = choose(&config, &listing, &ip(9), Some(second.lease.key), |_| 0);
        assert_eq!(decision.stale, [second]);
        assert!(matches!(decision.choice, Choice::Take(key) if !key.overlaps(&first.lease.key)));

        let decision = choose_again(&config, &listing, &ip(9), second.lease.key);
        assert_eq!(decision.stale, [second]);
        assert!(matches!(decision.choice, Choice::Exhausted(why) if why.contains("leased to 192.0.2.8")));
    }

    #[test]
    fn what_does_not_fit_is_stale_unless_it_is_reserved() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let listing = listing(vec![
            lease("10.5.0.0-16", 9, Some(1)),
            lease("10.6.1.0-24", 9, None),
            lease("10.5.4.0-24&fd00:5::-64", 9, Some(2)),
        ]);
        let decision = choose(&config, &listing, &ip(9), Some(key("10.5.4.0-24")), |_| 0);
        assert_eq!(decision.stale, [&listing.leases[0], &listing.leases[2]]);
        assert_eq!(decision.choice, Choice::Take(key("10.5.4.0-24")));
    }

    #[test]
    fn bad_records_hold_their_subnet_and_a_lease_of_everything_holds_none() {
        let config = config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}"#);
        let mut listing = listing(vec![lease("0.0.0.0-1", 1, Some(1)), lease("10.5.1.0-24", 2, Some(2))]);
        let choice =
            |listing: &Snapshot| format!("{:?}", choose(&config, listing, &ip(9), None, |_| 0).choice);
        assert!(choice(&listing).contains("10.5.2.0"));
        let bad = crate::subnet::BadRecord {
            key: String::new(),
            subnet: Some(key("10.5.2.0-24")),
            reason: String::new(),
        };
        listing.bad.push(bad);
        assert!(choice(&listing).starts_with("Exhausted"));
    }

    #[test]
    fn a_node_without_ipv4_is_known_by_its_ipv6_address() {
        let v6 = PerFamily { v4: None, v6: Some("fd00::1".parse().expect("an address")) };
        assert!(is_own(&v6, &v6));
        let other = PerFamily { v6: Some("fd00::2".parse().expect("an address")), ..ip(1) };
        assert!(!is_own(&v6, &other));
        assert!(is_own(&ip(1), &other));
        assert!(!is_own(&PerFamily::default(), &PerFamily::default()));
    }

    #[test]
    fn sixty_five_thousand_leases_are_walked_in_no_time() {
        let config = config(r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#);
        let pool = config.pools.v4.expect("IPv4 is on");
        let taken = (0..pool.subnets() - 1).filter_map(|i| pool.nth(i));
        let key = |net| SubnetKey::new(PerFamily { v4: Some(net), v6: None }).expect("a subnet");
        let taken: Vec<_> = taken.map(key).collect();
        let begin = std::time::Instant::now();
        assert_eq!(free(Family::V4, &pool, &taken), [IpNetwork::new(pool.subnet_max, 24).expect("a net")]);
        // The square of it would take minutes.
        assert!(begin.elapsed().as_secs() < 20, "{:?} for {}", begin.elapsed(), taken.len());
    }

    /// Of lengths shorter and longer than the config's, in and around its pools.
    fn any_key() -> impl Strategy<Value = SubnetKey> {
        let v4 =
            (0u32..0x2000, 22u8..=30).prop_map(|(low, len)| net(IpAddr::V4((0x0a04_f800 + low).into()), len));
        let v6 = (0u128..0x400, 58u8..=66)
            .prop_map(|(low, len)| net(IpAddr::V6(((0xfd00_0005u128 << 96) + (low << 62)).into()), len));
        (v4, v6)
            .prop_map(|(v4, v6)| SubnetKey::new(PerFamily { v4: Some(v4), v6: Some(v6) }).expect("masked"))
    }

    fn any_lease() -> impl Strategy<Value = StoredLease> {
        (any_key(), 1u8..100).prop_map(|(key, node)| stored(key, node, Some(1)))
    }

    fn net(ip: IpAddr, len: u8) -> IpNetwork {
        let net = IpNetwork::new(ip, len).expect("a good length");
        IpNetwork::new(net.network(), len).expect("a good length")
    }

    fn lease(text: &str, node: u8, lease_id: Option<i64>) -> StoredLease {
        stored(key(text), node, lease_id)
    }

    fn stored(key: SubnetKey, node: u8, lease_id: Option<i64>) -> StoredLease {
        let attrs =
            LeaseAttrs { public_ip: ip(node), backend_type: "".into(), backend_data: PerFamily::default() };
        StoredLease { lease: Lease { key, attrs }, lease_id, mod_revision: 1 }
    }

    fn keys(listing: &Snapshot) -> Vec<SubnetKey> {
        listing.leases.iter().map(|stored| stored.lease.key).collect()
    }

    fn listing(leases: Vec<StoredLease>) -> Snapshot {
        Snapshot { revision: 1, leases, ..Snapshot::default() }
    }

    fn ip(node: u8) -> PerFamily<IpAddr> {
        PerFamily { v4: Some(IpAddr::from([192, 0, 2, node])), v6: None }
    }

    fn config(json: &str) -> NetworkConfig {
        NetworkConfig::parse(json).expect("a good config")
    }

    fn key(text: &str) -> SubnetKey {
        text.parse().expect("a subnet key")
    }
}
