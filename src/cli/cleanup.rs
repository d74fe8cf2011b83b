//! `weft cleanup`: takes away what weft or flannel made on this node, and
//! nothing else.

mod cni;
mod running;

use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use ipnetwork::IpNetwork;

use super::leases::StoreAt;
use crate::daemon::admin;
use crate::daemon::config::StoreChoice;
use crate::desired::{Desired, Op, Ownership, diff};
use crate::firewall::Ruleset;
use crate::kernel::firewall::{Place, guard_stands, remove_guard};
use crate::kernel::netlink::Connection;
use crate::kernel::{Kernel, Nexthops, Rtnl, Scope, blackhole, host, inventory};
use crate::model::{Family, SubnetKey};
use crate::subnet::store::Store;
use crate::subnet::{checkpoint, env_file};

/// Take away what weft or flannel made on this node
///
/// Tunnel devices with all that stands on them, routes and nexthops, masquerade
/// and forward rules (nftables and both iptables), subnet.env and the admin
/// socket. Nothing of others. Containers lose their way to other nodes.
#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// Say what would go, and leave it.
    #[arg(long)]
    dry_run: bool,

    /// Also what the CNI plugin keeps: its bridge where no container is on it,
    /// and its records of containers and addresses.
    #[arg(long)]
    cni: bool,

    /// Also this node's lease, where an etcd is named; else the built-in store,
    /// with the leases and the network config of all daemons that use it.
    #[arg(long)]
    store: bool,

    /// Go on while a daemon runs, which puts back most of it.
    #[arg(long)]
    force: bool,

    /// What the daemon wrote.
    #[arg(
        long,
        env = "FLANNELD_SUBNET_FILE",
        default_value = "/run/flannel/subnet.env",
        value_name = "FILE"
    )]
    subnet_file: PathBuf,

    /// Socket of the daemon.
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = admin::SOCKET, value_name = "PATH")]
    admin_socket: PathBuf,

    /// Folder of the CNI configs that say where the plugin keeps its records.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,

    #[command(flatten)]
    at: StoreAt,
}

pub async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    if let Some(daemon) = running::daemon(&args.admin_socket)
        && !args.force
    {
        bail!("{daemon} is running: stop it first (systemctl stop weft), or say --force");
    }
    let mut broom = Broom { dry_run: args.dry_run, swept: 0, failures: Vec::new() };
    rules(&mut broom).await;
    guard(&mut broom).await;
    // Read before it goes: it says what this node has.
    let own = broom.found(env_file::read(&args.subnet_file)).and_then(|env| env.subnet_key());
    kernel(own.as_ref(), &mut broom).await;
    if args.cni {
        cni::sweep(&args.cni_conf_dir, &mut broom).await;
    }
    files(&args, &mut broom).await;
    if args.store {
        store(&args.at, own.as_ref(), &mut broom).await;
    }
    broom.done()
}

/// Does the removals, or says them, and remembers what went wrong: one failure
/// keeps nothing else from going.
struct Broom {
    dry_run: bool,
    swept: usize,
    failures: Vec<String>,
}

impl Broom {
    async fn remove<E: Display>(&mut self, what: impl Display, removal: impl Future<Output = Result<(), E>>) {
        self.swept += 1;
        if self.dry_run {
            println!("would remove {what}");
            return;
        }
        match removal.await {
            Ok(()) => println!("removed {what}"),
            Err(error) => self.fail(format!("{what}: {error}")),
        }
    }

    /// Of a look that may fail.
    fn found<T: Default, E: Display>(&mut self, looked: Result<T, E>) -> T {
        looked.unwrap_or_else(|error| {
            self.fail(error.to_string());
            T::default()
        })
    }

    fn fail(&mut self, failure: String) {
        eprintln!("weft: {failure}");
        self.failures.push(failure);
    }

    /// A file or socket.
    async fn remove_file(&mut self, path: &Path) {
        if path.symlink_metadata().is_ok() {
            self.remove(path.display(), async { fs::remove_file(path) }).await;
        }
    }

    async fn remove_tree(&mut self, path: &Path) {
        if path.symlink_metadata().is_ok() {
            self.remove(path.display(), async { fs::remove_dir_all(path) }).await;
        }
    }

    /// A folder that weft or flannel makes, by its name, where nothing else is
    /// in it.
    async fn remove_folder(&mut self, path: Option<&Path>, but_for: &[&Path]) {
        let Some(path) = path else { return };
        let is_ours = path.file_name().is_some_and(|name| name == "flannel" || name == "weft");
        let Ok(entries) = fs::read_dir(path) else { return };
        // In a dry run the files that would be gone by now are still there.
        let empty = entries.flatten().all(|entry| self.dry_run && but_for.contains(&entry.path().as_path()));
        if is_ours && empty {
            self.remove(path.display(), async { fs::remove_dir(path) }).await;
        }
    }

    fn done(self) -> anyhow::Result<()> {
        if !self.failures.is_empty() {
            bail!(
                "{} of {} could not be removed: see above",
                self.failures.len(),
                self.swept.max(self.failures.len())
            );
        }
        if self.swept == 0 {
            println!("nothing of weft or flannel is here");
        }
        Ok(())
    }
}

/// In whatever tool's hands they stand: an upgrade may have changed it.
async fn rules(broom: &mut Broom) {
    for place in Place::all().await {
        for family in Family::BOTH {
            for change in broom.found(place.plan(&Ruleset::none(family), false).await) {
                broom.remove(format!("{} ({place})", change.object), change.apply()).await;
            }
        }
    }
}

async fn guard(broom: &mut Broom) {
    if broom.found(guard_stands().await) {
        broom.remove("the guard (nftables inet weft-guard)", remove_guard()).await;
    }
}

/// The plan that leads to wanting nothing.
async fn kernel(own: Option<&SubnetKey>, broom: &mut Broom) {
    let subnets: Vec<IpNetwork> = own.iter().flat_map(|key| key.nets()).map(|(_, net)| net).collect();
    let result = async {
        let mut connection = Connection::open()?;
        for route in blackhole::leftovers(&mut connection, &subnets)? {
            let removal = async { blackhole::remove(&mut connection, &route) };
            broom.remove(route.to_string(), removal).await;
        }
        let devices = inventory::devices(&mut connection)?;
        let tunnels = devices.iter().filter(|device| device.is_tunnel_of_ours()).map(|device| device.name);
        // Every route over a tunnel goes with it: so each is named.
        let networks = Family::BOTH.map(everything).into_iter().flatten().collect();
        let own = Ownership { links: tunnels.collect(), networks };
        let mut kernel = Rtnl::open(None, Nexthops::WherePossible)?;
        let have = kernel.observe(&Scope { tunnels: own.links.clone(), ..Scope::default() })?;
        for op in diff(&have, &Desired::default(), &own).ops {
            let removal = async { apply(&mut kernel, &op) };
            broom.remove(name(&op), removal).await;
        }
        anyhow::Ok(())
    };
    if let Err(error) = result.await {
        broom.fail(format!("{error:#}"));
    }
}

fn apply(kernel: &mut Rtnl, op: &Op) -> anyhow::Result<()> {
    let results = kernel.apply(std::slice::from_ref(op));
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

/// An operation that removes says so itself.
fn name(op: &Op) -> String {
    let text = op.to_string();
    text.strip_prefix("remove ").unwrap_or(&text).to_owned()
}

fn everything(family: Family) -> Option<IpNetwork> {
    IpNetwork::new(family.unspecified(), 0).ok()
}

async fn files(args: &CleanupArgs, broom: &mut Broom) {
    let folder = args.subnet_file.parent();
    // Where flannel keeps its WireGuard key.
    let key = folder.map(|folder| folder.join("wgkey")).unwrap_or_default();
    let checkpoint = checkpoint::path(&args.subnet_file);
    let files = [args.subnet_file.as_path(), &checkpoint, &key];
    for file in files {
        broom.remove_file(file).await;
    }
    broom.remove_folder(folder, &files).await;
    broom.remove_file(&args.admin_socket).await;
    broom.remove_folder(args.admin_socket.parent(), &[&args.admin_socket]).await;
}

async fn store(at: &StoreAt, own: Option<&SubnetKey>, broom: &mut Broom) {
    match at.etcd.choice(false) {
        Err(error) => broom.fail(error.to_string()),
        Ok(StoreChoice::Builtin) => builtin_store(&at.data_dir, broom).await,
        Ok(StoreChoice::Etcd(_)) => {
            if let Err(error) = lease(at, own, broom).await {
                broom.fail(format!("{error:#}"));
            }
        }
    }
}

/// The one that subnet.env speaks of, if it is still this node's.
async fn lease(at: &StoreAt, own: Option<&SubnetKey>, broom: &mut Broom) -> anyhow::Result<()> {
    let Some(own) = own else { return Ok(()) };
    let store = at.open()?;
    let snapshot = store.snapshot().await?;
    let Some(stored) = snapshot.leases.iter().find(|stored| stored.lease.key == *own) else { return Ok(()) };
    let here = host::read()?;
    let is_here =
        |ip: IpAddr| here.links.iter().flat_map(|link| &link.addresses).any(|addr| addr.net.ip() == ip);
    let holder = &stored.lease.attrs.public_ip;
    if !holder.iter().any(|(_, ip)| is_here(*ip)) {
        bail!("lease {own}: its public address is none of this host's: `weft leases release` gives it back");
    }
    let release = async {
        match store.release(stored).await {
            Ok(true) => Ok(()),
            Ok(false) => bail!("it changed meanwhile"),
            Err(error) => Err(error.into()),
        }
    };
    broom.remove(format!("lease {own} in {}", store.describe()), release).await;
    Ok(())
}

/// Not while a daemon, perhaps one of another network namespace, serves it.
async fn builtin_store(dir: &Path, broom: &mut Broom) {
    if !dir.join("store.db").exists() {
        return;
    }
    match is_served(dir) {
        Ok(false) => broom.remove_tree(dir).await,
        Ok(true) => {
            broom.fail(format!("{}: a daemon or `weft store` serves it: stop that first", dir.display()));
        }
        Err(error) => broom.fail(format!("{}: {error}", dir.display())),
    }
}

fn is_served(dir: &Path) -> io::Result<bool> {
    match fs::File::open(dir.join("store.lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        },
    }
}
