//! `weft leases`: the store's leases, for people.

mod rows;

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use futures_util::{StreamExt, TryStreamExt, stream};

use self::rows::{Row, broken, duration, row};
use crate::daemon::config::EtcdArgs;
use crate::daemon::store;
use crate::kernel::host;
use crate::model::{Family, Lease, LeaseAttrs, NetworkConfig, PerFamily, SubnetKey};
use crate::subnet::store::builtin::DEFAULT_DATA_DIR;
use crate::subnet::store::{EtcdStore, Store, TimeLeft};
use crate::subnet::{Snapshot, StoredLease, alloc};

/// Questions about leases that are under way at once.
const AT_ONCE: usize = 32;
/// How often a reservation is tried again because the store changed meanwhile.
const TRIES: usize = 10;

/// Look at the leases in the store, reserve subnets and release them
#[derive(Debug, Subcommand)]
pub enum LeasesCommand {
    /// Show every lease, reservation and broken record
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: StoreAt,
    },
    /// Show one lease and what its node publishes
    Show {
        /// As 10.5.1.0/24 or 10.5.1.0-24; dual stack as 10.5.1.0/24,fd00::/64.
        #[arg(value_parser = subnet_key)]
        subnet: SubnetKey,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: StoreAt,
    },
    /// Keep a subnet for one node, for good
    ///
    /// The node takes it at its next start, unless containers of its own live in
    /// another one. Nobody else gets it.
    Reserve {
        /// As 10.5.1.0/24; dual stack as 10.5.1.0/24,fd00::/64.
        #[arg(value_parser = subnet_key)]
        subnet: SubnetKey,
        /// The node's public address; one for each family.
        #[arg(long, required = true, value_name = "IP", value_parser = node_address)]
        public_ip: Vec<IpAddr>,
        #[command(flatten)]
        at: StoreAt,
    },
    /// Give a subnet back: a reservation, or the lease of a node that is gone
    Release {
        /// As 10.5.1.0/24; dual stack as 10.5.1.0/24,fd00::/64.
        #[arg(value_parser = subnet_key)]
        subnet: SubnetKey,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Even if a node holds it. Its daemon takes it again while it runs.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: StoreAt,
    },
    /// Show what is of no use to anyone; with --yes, remove it
    ///
    /// That is records that do not parse, and leases whose renewal is overdue:
    /// their nodes are gone. Reservations stay.
    Gc {
        /// Remove it.
        #[arg(long)]
        yes: bool,
        /// A lease is overdue with less than so many minutes left. Nodes renew
        /// an hour before the end, unless they are told otherwise.
        /// [default: half an hour of a day's lease]
        #[arg(long, value_name = "MINUTES")]
        overdue: Option<u64>,
        #[command(flatten)]
        at: StoreAt,
    },
}

/// Where the store is: as for the daemon.
#[derive(Args, Clone, Debug)]
pub struct StoreAt {
    #[command(flatten)]
    pub etcd: EtcdArgs,

    /// Folder of the built-in store, where no etcd is named.
    #[arg(long, env = "WEFT_DATA_DIR", default_value = DEFAULT_DATA_DIR, value_name = "DIR",
          help_heading = "Built-in store")]
    pub data_dir: PathBuf,
}

pub async fn run(command: LeasesCommand) -> anyhow::Result<()> {
    match command {
        LeasesCommand::List { at, json } => list(&at.open()?, json).await,
        LeasesCommand::Show { at, subnet, json } => show(&at.open()?, &subnet, json).await,
        LeasesCommand::Reserve { at, subnet, public_ip } => reserve(&at.open()?, subnet, &public_ip).await,
        LeasesCommand::Release { at, subnet, yes, force } => release(&at.open()?, &subnet, yes, force).await,
        LeasesCommand::Gc { at, yes, overdue } => {
            gc(&at.open()?, yes, overdue.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)))).await
        }
    }
}

async fn list(store: &EtcdStore, json: bool) -> anyhow::Result<()> {
    let snapshot = store.snapshot().await?;
    let own = own_addresses()?;
    let timed = with_time_left(store, &snapshot).await?;
    let mut rows: Vec<Row> = timed.iter().map(|(stored, time)| row(stored, *time, &own)).collect();
    rows.extend(snapshot.bad.iter().map(broken));
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("{}", rows::table(&rows));
    Ok(())
}

async fn show(store: &EtcdStore, subnet: &SubnetKey, json: bool) -> anyhow::Result<()> {
    let snapshot = store.snapshot().await?;
    let stored = find(&snapshot, subnet)?;
    let row = row(stored, time_left(store, stored).await?, &own_addresses()?);
    if json {
        let value = serde_json::json!({ "record": row, "published": stored.lease.attrs });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let whose = if row.this_node { " (this node)" } else { "" };
    table.add_row(["subnet".to_owned(), row.subnets.join(", ")]);
    table.add_row(["node".to_owned(), format!("{}{whose}", row.public_ips.join(", "))]);
    table.add_row(["state".to_owned(), row.state.to_owned()]);
    table.add_row(["left".to_owned(), row.expires_in.map_or("for good".to_owned(), duration)]);
    table.add_row(["published".to_owned(), stored.lease.attrs.to_json()]);
    println!("{table}");
    Ok(())
}

async fn reserve(store: &EtcdStore, key: SubnetKey, public: &[IpAddr]) -> anyhow::Result<()> {
    let config = network_config(store).await?;
    if !alloc::fits(&config, &key) {
        let pools: Vec<_> = config.pools.iter().map(|(_, pool)| pool.to_string()).collect();
        bail!("{}: not a subnet of the network, which has {}", shown(&key), pools.join(" and "));
    }
    let public_ip: PerFamily<IpAddr> = public.iter().map(|ip| (Family::of(*ip), *ip)).collect();
    if public_ip.iter().count() != public.len() {
        bail!("--public-ip: at most one address of each family");
    }
    let identity = config.pools.iter().map(|(family, _)| family).next().unwrap_or(Family::V4);
    if public_ip.get(identity).is_none() {
        bail!("--public-ip: a node of this network is known by its {identity} address: give that");
    }
    let attrs = LeaseAttrs { public_ip, backend_type: "".into(), backend_data: PerFamily::default() };
    let lease = Lease { key, attrs };
    for _ in 0..TRIES {
        let snapshot = store.snapshot().await?;
        refuse_taken(&snapshot, &lease)?;
        if store.reserve(&lease, snapshot.revision).await? {
            println!("{} is reserved for {}", shown(&key), listed(&lease.attrs.public_ip));
            return Ok(());
        }
    }
    bail!("{}: the leases changed during each of {TRIES} tries: try again", shown(&key))
}

fn refuse_taken(snapshot: &Snapshot, wanted: &Lease) -> anyhow::Result<()> {
    let overlapping = |stored: &&StoredLease| stored.lease.key.overlaps(&wanted.key);
    if let Some(other) = snapshot.leases.iter().find(overlapping) {
        let how = if other.lease_id.is_some() { "leased to" } else { "reserved for" };
        let (other, holder) = (shown(&other.lease.key), listed(&other.lease.attrs.public_ip));
        bail!(
            "{}: {other} is {how} {holder}: `weft leases release {other}` gives it back",
            shown(&wanted.key)
        );
    }
    if let Some(bad) = snapshot.bad.iter().find(|bad| bad.subnet.is_some_and(|key| key.overlaps(&wanted.key)))
    {
        bail!("{}: the broken record {} holds it: `weft leases gc` removes it", shown(&wanted.key), bad.key);
    }
    let of_the_node =
        |stored: &&StoredLease| alloc::is_own(&wanted.attrs.public_ip, &stored.lease.attrs.public_ip);
    if let Some(other) = snapshot.leases.iter().find(of_the_node) {
        let how = if other.lease_id.is_some() { "leases" } else { "has a reservation of" };
        eprintln!(
            "note: {} {how} {} already, and stays there while its containers live in it",
            listed(&wanted.attrs.public_ip),
            shown(&other.lease.key)
        );
    }
    Ok(())
}

async fn release(store: &EtcdStore, subnet: &SubnetKey, yes: bool, force: bool) -> anyhow::Result<()> {
    let snapshot = store.snapshot().await?;
    let stored = find(&snapshot, subnet)?;
    let (name, holder) = (shown(subnet), listed(&stored.lease.attrs.public_ip));
    let time = time_left(store, stored).await?;
    let in_use = match time {
        Some(time) => Some(format!("leased to {holder} for another {}", duration(time.left.as_secs()))),
        None if !stored.lease.attrs.backend_type.is_empty() => {
            Some(format!("reserved for {holder}, which has taken it"))
        }
        None => None,
    };
    if let Some(in_use) = in_use.filter(|_| !force) {
        bail!("{name} is {in_use}: stop the daemon there, then say --force");
    }
    if !yes {
        confirm(&format!("Release {name} of {holder}?"))?;
    }
    if !store.release(stored).await? {
        bail!("{name} changed meanwhile and was left as it is: look again with `weft leases show {name}`");
    }
    println!("{name} is free");
    Ok(())
}

async fn gc(store: &EtcdStore, yes: bool, overdue: Option<Duration>) -> anyhow::Result<()> {
    let broken = store.broken_records().await?;
    let snapshot = store.snapshot().await?;
    let timed = with_time_left(store, &snapshot).await?;
    let is_overdue =
        |time: &Option<TimeLeft>| time.is_some_and(|time| time.left < overdue.unwrap_or(time.granted / 48));
    let gone: Vec<_> = timed.iter().filter(|(_, time)| is_overdue(time)).map(|(stored, _)| *stored).collect();
    let mut kept = 0;
    for record in &broken {
        println!("{}: broken: {}", record.bad.key, record.bad.reason);
        kept += usize::from(yes && !store.remove(record).await?);
    }
    for stored in &gone {
        let holder = listed(&stored.lease.attrs.public_ip);
        println!("{}: its renewal by {holder} is overdue", shown(&stored.lease.key));
        kept += usize::from(yes && !store.release(stored).await?);
    }
    let found = broken.len() + gone.len();
    match yes {
        _ if found == 0 => println!("nothing to remove"),
        true => println!("{} removed, {kept} left because they changed meanwhile", found - kept),
        false => println!("{found} to remove: say --yes to do it"),
    }
    Ok(())
}

impl StoreAt {
    pub fn open(&self) -> anyhow::Result<EtcdStore> {
        store::client(&self.etcd, &self.data_dir)
    }
}

async fn network_config(store: &EtcdStore) -> anyhow::Result<NetworkConfig> {
    let json = store.network_config().await?;
    let json = json.with_context(|| format!("{} has no network config yet", store.describe()))?;
    NetworkConfig::parse(&json).with_context(|| format!("network config in {}", store.describe()))
}

fn find<'a>(snapshot: &'a Snapshot, subnet: &SubnetKey) -> anyhow::Result<&'a StoredLease> {
    if let Some(stored) = snapshot.leases.iter().find(|stored| stored.lease.key == *subnet) {
        return Ok(stored);
    }
    if let Some(bad) = snapshot.bad.iter().find(|bad| bad.subnet == Some(*subnet)) {
        bail!("{}: its record is broken: {}: `weft leases gc` removes it", shown(subnet), bad.reason);
    }
    bail!("{}: nobody has it: `weft leases list` shows what there is", shown(subnet))
}

async fn with_time_left<'a>(
    store: &EtcdStore,
    snapshot: &'a Snapshot,
) -> anyhow::Result<Vec<(&'a StoredLease, Option<TimeLeft>)>> {
    let asked = snapshot
        .leases
        .iter()
        .map(|stored| async move { anyhow::Ok((stored, time_left(store, stored).await?)) });
    stream::iter(asked).buffered(AT_ONCE).try_collect().await
}

async fn time_left(store: &EtcdStore, stored: &StoredLease) -> anyhow::Result<Option<TimeLeft>> {
    match stored.lease_id {
        Some(id) => Ok(store.time_left(id).await?),
        None => Ok(None),
    }
}

fn own_addresses() -> anyhow::Result<BTreeSet<IpAddr>> {
    let host = host::read()?;
    Ok(host.links.iter().flat_map(|link| &link.addresses).map(|address| address.net.ip()).collect())
}

fn confirm(question: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} There is nobody to ask: say --yes");
    }
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { bail!("left as it is") }
}

/// `10.5.1.0/24,fd00::/64`, as the commands take it.
fn shown(key: &SubnetKey) -> String {
    key.nets().map(|(_, net)| net.to_string()).collect::<Vec<_>>().join(",")
}

fn listed(addresses: &PerFamily<IpAddr>) -> String {
    addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ")
}

fn subnet_key(text: &str) -> Result<SubnetKey, String> {
    let key: Result<SubnetKey, _> = text.replace('/', "-").replace(',', "&").parse();
    key.map_err(|error| error.reason)
}

fn node_address(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|error| format!("{error}"))?;
    match ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        true => Err("no address that other nodes can reach".to_owned()),
        false => Ok(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_taken_as_people_and_as_the_store_write_them() {
        for text in ["10.5.1.0/24,fd00:5::/64", "10.5.1.0-24&fd00:5::-64"] {
            assert_eq!(shown(&subnet_key(text).unwrap()), "10.5.1.0/24,fd00:5::/64");
        }
        for (text, says) in [("10.5.1.1/24", "host bits"), ("10.5.1.0", "of the form"), ("", "of the form")] {
            assert!(subnet_key(text).unwrap_err().contains(says), "{text}");
        }
    }
}
