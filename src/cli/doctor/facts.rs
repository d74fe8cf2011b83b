//! What the checks look at, gathered once.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::Check;
use crate::backends::{Backend, Node};
use crate::daemon::config::{DaemonArgs, StoreChoice};
use crate::daemon::status::Status;
use crate::daemon::{admin, join, store};
use crate::kernel::host::{self, Host, HostLink};
use crate::model::{Family, IfName, NetworkConfig, SubnetEnv, SubnetKey};
use crate::subnet::store::Store;
use crate::subnet::{Snapshot, alloc, env_file};

/// A store that answers, answers within this.
const PATIENCE: Duration = Duration::from_secs(12);

pub(super) struct Facts<'a> {
    pub args: &'a DaemonArgs,
    /// The running daemon's own words, or why there are none.
    pub status: Result<Status, String>,
    pub env: Result<Option<SubnetEnv>, String>,
    pub host: Host,
    /// The store's name and network config, or why it could not be asked.
    pub store: Result<(String, Option<String>), String>,
    pub snapshot: Result<Snapshot, String>,
    pub fabric: Result<Fabric, String>,
}

/// What the network config makes of this node.
pub(super) struct Fabric {
    pub network: NetworkConfig,
    pub backend: Box<dyn Backend>,
    pub node: Node,
}

impl Facts<'_> {
    pub async fn gather(args: &DaemonArgs) -> Facts<'_> {
        let status = admin::ask(&args.admin_socket, Some(0)).await.map_err(|error| format!("{error:#}"));
        let env = env_file::read(&args.subnet_file).map_err(|error| error.to_string());
        let host = host::read().unwrap_or_default();
        let (store, snapshot) = match store::client(&args.etcd, &args.builtin.data_dir) {
            Err(error) => (Err(format!("{error:#}")), Err("the store was not asked".to_owned())),
            Ok(client) => {
                let config = bounded(client.network_config()).await;
                // Once is enough to hear that nobody answers.
                let snapshot = match &config {
                    Ok(_) => bounded(client.snapshot()).await,
                    Err(_) => Err("the store does not answer".to_owned()),
                };
                (config.map(|config| (client.describe(), config)), snapshot)
            }
        };
        let json = match &store {
            Ok((_, Some(json))) => Ok(json.as_str()),
            Ok((name, None)) => Err(format!("{name} has no network config")),
            Err(_) => Err("the store does not answer".to_owned()),
        };
        let fabric = json.and_then(|json| Fabric::new(args, &host, json));
        Facts { args, status, env, host, store, snapshot, fabric }
    }

    /// Whether the daemon runs and is content.
    pub fn daemon(&self) -> Check {
        let mut check = Check::new("daemon", "it runs and has no complaint");
        match &self.status {
            Err(why) => check.problem(
                why,
                "nothing follows the leases or repairs the kernel; what is there keeps forwarding, until this node's lease runs out",
                format!(
                    "start it (systemctl start weft), or name its socket by --admin-socket (now {})",
                    self.args.admin_socket.display()
                ),
            ),
            Ok(status) => {
                if let Some(trouble) = status.trouble() {
                    check.problem(
                        trouble,
                        "the daemon itself says that this is not as it should be",
                        "see `weft status` for all of it, and the daemon's log for its cause",
                    );
                }
            }
        }
        check
    }

    pub fn link(&self, name: &str) -> Option<&HostLink> {
        self.host.links.iter().find(|link| link.name.as_str() == name)
    }

    /// Our subnet, as the store has it, or else as `subnet.env` does.
    pub fn own(&self) -> Option<SubnetKey> {
        let remembered = || self.env.as_ref().ok()?.as_ref()?.subnet_key();
        self.leased().or_else(remembered)
    }

    /// Our subnet, as the store has it.
    pub fn leased(&self) -> Option<SubnetKey> {
        let (Ok(snapshot), Ok(fabric)) = (&self.snapshot, &self.fabric) else { return None };
        let mut leases = snapshot.leases.iter().map(|stored| &stored.lease);
        let own = leases.find(|lease| alloc::is_own(&fabric.node.public_ip, &lease.attrs.public_ip));
        own.map(|lease| lease.key)
    }

    /// Families that the fabric has, both where that is not known.
    pub fn families(&self) -> Vec<Family> {
        match &self.fabric {
            Ok(fabric) => fabric.network.pools.iter().map(|(family, _)| family).collect(),
            Err(_) => Family::BOTH.to_vec(),
        }
    }

    /// etcd's endpoints, where the store is one.
    pub fn endpoints(&self) -> Option<crate::subnet::store::EtcdConfig> {
        match self.args.store(false) {
            Ok(StoreChoice::Etcd(config)) => Some(config),
            _ => None,
        }
    }
}

impl Fabric {
    fn new(args: &DaemonArgs, host: &Host, json: &str) -> Result<Fabric, String> {
        let (network, backend) = join::parse(args, json).map_err(|error| error.to_string())?;
        let choice = join::choose_uplink(args, host, &network, None).map_err(|error| format!("{error:#}"))?;
        Ok(Fabric { network, backend, node: choice.node })
    }

    /// The tunnel's devices, with the bytes that they add to a packet.
    pub fn tunnels(&self) -> Vec<(IfName, u32)> {
        let overhead = |family| if family == Family::V4 { 50 } else { 70 };
        self.backend.devices().iter().map(|(family, name)| (*name, overhead(family))).collect()
    }

    pub fn is_tunnel(&self, name: IfName) -> bool {
        self.backend.devices().iter().any(|(_, device)| *device == name)
    }
}

/// The address that a node's gateway for its containers has: the subnet's first.
pub(super) fn gateway(net: IpNetwork) -> IpAddr {
    match net.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) | 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) | 1).into()),
    }
}

async fn bounded<T, E: std::fmt::Display>(call: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}
