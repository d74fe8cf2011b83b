//! How a node joins the fabric: store, network config, uplink, identity, lease.
//! Whatever is not there yet is waited for, with a message.

mod told;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::config::DaemonArgs;
use super::health;
use super::uplink::{self, Choice, Request};
use crate::backends::{Backend, Identity, Node, Peers};
use crate::kernel::host::{self, Host};
use crate::model::{Family, IfName, Mac, NetworkConfig, PerFamily, SubnetKey};
use crate::reconciler::{Inputs, Target};
use crate::subnet::checkpoint::Checkpoint;
use crate::subnet::store::Store;
use crate::subnet::table::LeaseTable;
use crate::subnet::{BadRecord, Held, Position, Snapshot, StoredLease, Want, alloc, env_file};

use told::{Told, Wanting, known, recalled, told, told_at_last};
pub use told::{network_config, parse, patiently};

/// A node that is part of the fabric.
#[derive(Debug)]
pub struct Joined {
    pub network: NetworkConfig,
    pub backend: Arc<dyn Backend>,
    pub node: Node,
    pub identity: Identity,
    pub held: Held,
    /// What was asked for, to ask for again.
    pub want: Want,
    /// The others, by the listing that the lease was chosen from; or as they are
    /// remembered, where the store is away.
    pub peers: Peers,
    /// Records in that listing that do not parse.
    pub bad: Vec<BadRecord>,
    /// Of that listing: where the watch begins.
    pub position: Position,
}

impl Joined {
    /// What the reconciler begins with, so that a restart looks for no less than the
    /// kernel has.
    pub fn target(&self) -> Target {
        Target::new(Inputs {
            node: self.node.clone(),
            identity: self.identity.clone(),
            own: self.held.stored.lease.key,
            peers: self.peers.clone(),
            whole: self.position.is_listed(),
        })
    }

    /// The leases as they are known so far.
    pub fn table(&self) -> LeaseTable {
        let (held, peers) = (self.held.clone(), self.peers.clone());
        match self.position.is_listed() {
            true => LeaseTable::listed(held, peers, self.bad.clone()),
            false => LeaseTable::remembered(held, peers),
        }
    }
}

/// By what the store says; where it is away or says nothing of use, by what this
/// node knew last, if it knew anything.
pub async fn join(args: &DaemonArgs, store: &dyn Store) -> anyhow::Result<Joined> {
    let previous = previous_subnet(args);
    let (Told { network, backend, listing }, known) = match known(args, previous) {
        None => (told_at_last(args, store).await, None),
        Some((known, held)) => match told(args, store).await {
            Ok(told) => (told, None),
            Err(Wanting { what, cause }) => {
                warn!("without {what}: {cause}: going by what this node knew last");
                (known, Some(held))
            }
        },
    };
    health::waiting_for("an uplink");
    let host = host::read()?;
    let Choice { node, because } = choose_uplink(args, &host, &network, None)?;
    info!(uplink = %node.uplink, mtu = node.uplink_mtu, address = %listed(&node.address), public = %listed(&node.public_ip), "{because}");
    backend.check(&node)?;
    let newcomer = Newcomer { network, backend, host: &host, node, previous };
    match known {
        None => Ok(newcomer.lease(store, listing).await),
        Some(held) => Ok(newcomer.resume(held, listing)),
    }
}

/// A subnet for `node` of `host`, and who it is among the others. `previous` is
/// what `subnet.env` remembers.
pub async fn lease(
    store: &dyn Store,
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    host: &Host,
    node: Node,
    previous: Option<SubnetKey>,
) -> Joined {
    health::waiting_for("a lease");
    let listing = patiently("leases", || store.snapshot()).await;
    Newcomer { network, backend, host, node, previous }.lease(store, listing).await
}

/// The same while the store is away: what `checkpoint` says of the subnet in
/// `previous`, if it does.
pub fn resume(
    checkpoint: Checkpoint,
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    host: &Host,
    node: Node,
    previous: Option<SubnetKey>,
) -> Option<Joined> {
    let (listing, held) = recalled(checkpoint, previous)?;
    Some(Newcomer { network, backend, host, node, previous }.resume(held, listing))
}

/// A node on its way in.
struct Newcomer<'a> {
    network: NetworkConfig,
    backend: Arc<dyn Backend>,
    host: &'a Host,
    node: Node,
    previous: Option<SubnetKey>,
}

impl Newcomer<'_> {
    async fn lease(self, store: &dyn Store, listing: Snapshot) -> Joined {
        let (identity, want) = self.asks(&listing);
        let listing = match self.left_behind(&listing) {
            Some(own) => {
                take_along(store, own, &want).await;
                patiently("leases", || store.snapshot()).await
            }
            None => listing,
        };
        let held = patiently("a lease", || store.acquire(&listing, &want)).await;
        info!(subnet = %held.stored.lease.key, backend = self.backend.kind(), "this node's subnet");
        self.joined(identity, want, held, listing)
    }

    /// With the lease that it had. Whether it still has it the store will say: nobody
    /// else takes it before its time is over, and containers live in it after that.
    fn resume(self, held: Held, known: Snapshot) -> Joined {
        let (identity, want) = self.asks(&known);
        let subnet = held.stored.lease.key;
        match held.ttl {
            Some(Duration::ZERO) => {
                warn!(%subnet, "this node's subnet; its lease ran out and may be another's by now");
            }
            _ => info!(%subnet, backend = self.backend.kind(), "this node's subnet, as far as it knows"),
        }
        self.joined(identity, want, held, known)
    }

    fn asks(&self, listing: &Snapshot) -> (Identity, Want) {
        let identity = identity(&*self.backend, &self.network, self.host, &self.node, listing);
        let attrs = self.backend.attrs(&self.node, &identity);
        let want = Want { config: self.network.clone(), attrs, previous: self.previous, no_other: false };
        (identity, want)
    }

    fn joined(self, identity: Identity, want: Want, held: Held, snapshot: Snapshot) -> Joined {
        let Newcomer { network, backend, node, .. } = self;
        let position = snapshot.position();
        let Snapshot { leases, bad, .. } = snapshot;
        let leases = leases.into_iter().map(|stored| (stored.lease.key, stored.lease.attrs));
        let peers = leases.filter(|(key, _)| *key != held.stored.lease.key).collect();
        Joined { network, backend, node, identity, held, want, peers, bad, position }
    }

    /// Our own lease under an address that this host had before: it is the subnet
    /// that we remember, and publishes the MAC of the tunnel that still stands here.
    fn left_behind<'s>(&self, listing: &'s Snapshot) -> Option<&'s StoredLease> {
        let is_own = |s: &StoredLease| alloc::is_own(&self.node.public_ip, &s.lease.attrs.public_ip);
        if listing.leases.iter().any(is_own) {
            return None;
        }
        let stored = listing.leases.iter().find(|stored| Some(stored.lease.key) == self.previous)?;
        let published = self.backend.published_identity(&stored.lease.attrs).mac;
        let here = self.backend.devices().map(|_, device| mac_of(self.host, device)).flatten();
        (!published.is_empty() && published == here).then_some(stored)
    }
}

async fn take_along(store: &dyn Store, own: &StoredLease, want: &Want) {
    let (before, now) = (listed(&own.lease.attrs.public_ip), listed(&want.attrs.public_ip));
    info!(subnet = %own.lease.key, "this host was {before} and is {now}: its lease goes along");
    let held = Held { stored: own.clone(), ttl: None };
    // Where it is ours no more, the next listing says so.
    patiently("our lease", || store.update(&held, &want.attrs)).await;
}

fn mac_of(host: &Host, device: IfName) -> Option<Mac> {
    host.links.iter().find(|link| link.name == device).and_then(|link| link.mac)
}

/// What the options and the network config ask for, put to this host as it is.
pub fn choose_uplink(
    args: &DaemonArgs,
    host: &Host,
    network: &NetworkConfig,
    current: Option<&Node>,
) -> anyhow::Result<Choice> {
    let can_reach = match args.iface_can_reach {
        Some(target) => Some((target, host::reach(target)?)),
        None => None,
    };
    let request = Request {
        ifaces: args.iface.clone(),
        patterns: args.iface_regex.clone(),
        can_reach,
        public_ip: PerFamily { v4: args.public_ip.map(Into::into), v6: args.public_ipv6.map(Into::into) },
    };
    let families: Vec<Family> = network.pools.iter().map(|(family, _)| family).collect();
    Ok(uplink::choose(host, &request, &families, current)?)
}

/// `192.168.7.11, fd77::11`
pub fn listed(addresses: &PerFamily<IpAddr>) -> String {
    addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ")
}

/// Found once: in our stored lease, then on the existing device, then drawn at
/// random.
///
/// A lease outside the pool is not one that we would keep: what it publishes may
/// be another node's.
fn identity(
    backend: &dyn Backend,
    network: &NetworkConfig,
    host: &Host,
    node: &Node,
    snapshot: &Snapshot,
) -> Identity {
    let is_own = |stored: &&StoredLease| {
        alloc::is_own(&node.public_ip, &stored.lease.attrs.public_ip)
            && alloc::fits(network, &stored.lease.key)
    };
    let stored = snapshot
        .leases
        .iter()
        .find(is_own)
        .map(|stored| backend.published_identity(&stored.lease.attrs))
        .unwrap_or_default();
    let mac = backend.devices().map(|family, device| {
        let known = stored.mac.get(family).copied().or_else(|| mac_of(host, device));
        known.unwrap_or_else(|| Mac::local(std::array::from_fn(|_| fastrand::u8(..))))
    });
    Identity { mac }
}

/// What `subnet.env` remembers. A broken one costs the memory, not the start.
fn previous_subnet(args: &DaemonArgs) -> Option<SubnetKey> {
    match env_file::read(&args.subnet_file) {
        Ok(env) => env.and_then(|env| env.subnet_key()),
        Err(error) => {
            warn!("{error}: starting without it");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends;
    use crate::model::{Lease, PerFamily};

    #[test]
    fn the_mac_is_that_of_the_lease_that_is_kept() {
        let json = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#;
        let network = NetworkConfig::parse(json).unwrap();
        let backend = backends::from_config(&network, false).unwrap();
        let address = PerFamily { v4: Some([192, 0, 2, 7].into()), v6: None };
        let uplink = "eth0".parse().unwrap();
        let node = Node { uplink, uplink_mtu: 1500, address, public_ip: address, on_link: Vec::new() };
        let lease = |key: &str, last| {
            let mac = PerFamily { v4: Some(Mac([2, 0, 0, 0, 0, last])), v6: None };
            let attrs = backend.attrs(&node, &Identity { mac });
            let lease = Lease { key: key.parse().unwrap(), attrs };
            StoredLease { lease, lease_id: None, mod_revision: 1 }
        };
        let mac = |leases: Vec<StoredLease>| {
            let snapshot = Snapshot { leases, ..Snapshot::default() };
            identity(&*backend, &network, &Host::default(), &node, &snapshot).mac.v4.unwrap()
        };
        // Another node's MAC under our address, where we would take no subnet.
        let lie = lease("10.5.250.0-24", 66);

        assert_eq!(mac(vec![lie.clone(), lease("10.5.3.0-24", 3)]), Mac([2, 0, 0, 0, 0, 3]));
        assert_ne!(mac(vec![lie]), Mac([2, 0, 0, 0, 0, 66]));
    }
}
