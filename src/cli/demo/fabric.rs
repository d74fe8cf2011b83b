//! The fabric of the demo: hosts on a switch, a store, a daemon on each host,
//! containers wired by the plugin.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, anyhow, bail};
use ipnetwork::IpNetwork;
use netns_harness::{Daemon, Host, Lab, Netns, wait_until};
use serde_json::json;

use super::voice::Voice;
use super::{BackendChoice, DemoArgs, cni};
use crate::model::SubnetEnv;

const CONTAINERS_PER_HOST: usize = 2;
/// Nothing in the demo takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Fabric {
    pub lab: Lab,
    pub backend: BackendChoice,
    pub nodes: Vec<Node>,
    /// From the start of the daemons until every container reached every other.
    pub whole_after: Duration,
    /// The program that runs: `weft`.
    pub program: PathBuf,
    _etcd: Option<Daemon>,
}

pub struct Node {
    pub host: Host,
    pub daemon: Daemon,
    pub env: SubnetEnv,
    pub containers: Vec<Container>,
}

pub struct Container {
    pub netns: Netns,
    pub ips: Vec<IpAddr>,
}

impl Fabric {
    pub fn build(lab: &Lab, args: &DemoArgs, plugin: &Path, voice: &Voice) -> anyhow::Result<Fabric> {
        let hosts = voice.step("hosts and a switch", |_| {
            let hosts =
                (1..=args.hosts).map(|n| lab.host(&format!("host{n}"))).collect::<Result<Vec<_>, _>>()?;
            Ok((hosts, format!("a switch and {} hosts", args.hosts)))
        })?;
        let network = network_config(args);
        let etcd = match args.etcd {
            true => Some(voice.step("etcd", |_| {
                Ok((start_etcd(lab, &network)?, "etcd, holding the network config".to_owned()))
            })?),
            false => None,
        };
        let program = env::current_exe().context("own executable")?;
        let start = Instant::now();
        let nodes = voice.step("daemons and leases", |_| {
            let nodes = start_daemons(lab, &program, hosts, &network, args.etcd)?;
            let line = format!("{} daemons, each with a lease of its own", nodes.len());
            Ok((nodes, line))
        })?;
        let mut fabric = Fabric {
            lab: lab.clone(),
            backend: args.backend,
            nodes,
            whole_after: Duration::ZERO,
            program,
            _etcd: etcd,
        };
        voice.step("containers", |_| fabric.add_containers(plugin))?;
        fabric.whole_after = voice.step("every container finds every other", |_| {
            fabric.wait_until_whole()?;
            let took = start.elapsed();
            let seconds = took.as_secs_f64();
            Ok((took, format!("every container found every other, {seconds:.1} s after the daemons' start")))
        })?;
        Ok(fabric)
    }

    /// Containers in the order of their hosts, each with its short name.
    pub fn containers(&self) -> impl Iterator<Item = (String, &Container)> {
        self.nodes.iter().enumerate().flat_map(|(h, node)| {
            node.containers.iter().enumerate().map(move |(c, container)| (container_name(h, c), container))
        })
    }

    /// Waits for something that ought to come soon; a failure shows the daemons'
    /// last words.
    pub fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) -> anyhow::Result<Duration> {
        let removed = || !self.lab.switch().path().exists();
        let waited = wait_until(PATIENCE, what, || removed() || reached());
        if removed() {
            bail!("the lab was removed");
        }
        waited.map_err(|error| anyhow!("{error}; the daemons' last words:\n{}", self.last_words()))
    }

    fn wait_until_whole(&self) -> anyhow::Result<Duration> {
        let mut closed = ways(&self.nodes);
        self.wait("every container to reach every other", || {
            thread::scope(|scope| {
                for ways in &mut closed {
                    // A way that is open stays so: ask for the next.
                    scope.spawn(|| while ways.pop_if(|(from, to)| from.reaches(*to)).is_some() {});
                }
            });
            closed.iter().all(Vec::is_empty)
        })
    }

    fn add_containers(&mut self, plugin: &Path) -> anyhow::Result<((), String)> {
        let mut spent = Duration::ZERO;
        let mut count = 0;
        for node in &mut self.nodes {
            cni::write_conflist(&node.host)?;
            for n in 1..=CONTAINERS_PER_HOST {
                let netns = self.lab.pod(&node.host, &format!("c{n}"))?;
                let start = Instant::now();
                let ips = cni::add(plugin, &node.host, &netns)?;
                spent += start.elapsed();
                count += 1;
                node.containers.push(Container { netns, ips });
            }
        }
        let each = spent.as_secs_f64() * 1e3 / f64::from(count);
        Ok(((), format!("{count} containers, wired by weft-cni in {each:.0} ms each")))
    }

    fn last_words(&self) -> String {
        let words = self
            .nodes
            .iter()
            .map(|node| format!("{}:\n{}", node.daemon.log().display(), node.daemon.log_tail(4)));
        words.collect::<Vec<_>>().join("\n")
    }
}

impl Node {
    /// This host's subnet in IPv4, as the peers route it.
    pub fn subnet(&self) -> Option<IpNetwork> {
        self.subnets().next()
    }

    /// This host's subnets: the networks, not the gateway addresses in them.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.env
            .subnet
            .iter()
            .filter_map(|(_, gateway)| IpNetwork::new(gateway.network(), gateway.prefix()).ok())
    }

    /// The gateway of the containers: the bridge's address.
    pub fn gateway(&self) -> Option<IpNetwork> {
        self.env.subnet.v4
    }

    /// Where `weft status` asks.
    pub fn admin_socket(&self) -> PathBuf {
        self.host.dir().join("weft.sock")
    }
}

/// `1a`, `1b`, `2a`, …: host and container.
pub fn container_name(host: usize, container: usize) -> String {
    format!("{}{}", host + 1, char::from(b'a' + container as u8))
}

fn network_config(args: &DemoArgs) -> String {
    let mut config = json!({ "Network": "10.244.0.0/16", "Backend": { "Type": args.backend.name() } });
    if args.ipv6 {
        config["EnableIPv6"] = json!(true);
        config["IPv6Network"] = json!("fd00:10:244::/56");
    }
    config.to_string()
}

fn start_etcd(lab: &Lab, network: &str) -> anyhow::Result<Daemon> {
    let address = SocketAddr::from((lab.switch_ip4(), 2379));
    let url = format!("http://{address}");
    let mut command = lab.switch().command("etcd");
    command.arg("--data-dir").arg(lab.dir().join("etcd"));
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]);
    let mut etcd = lab.switch().spawn("etcd", &mut command)?;
    let answers = || {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok();
        lab.switch().enter(connect).unwrap_or(false)
    };
    let ended = |etcd: &mut Daemon| !matches!(etcd.exited(), Ok(None));
    wait_until(PATIENCE, "etcd to listen", || answers() || ended(&mut etcd))
        .map_err(|error| anyhow!("{error}; {}", etcd.log_tail(8)))?;
    if ended(&mut etcd) {
        bail!("etcd ended: {}", etcd.log_tail(8));
    }
    lab.switch()
        .run("etcdctl", ["--endpoints", &url, "put", "/coreos.com/network/config", network])
        .map_err(|error| anyhow!("{error}; {}", etcd.log_tail(8)))?;
    Ok(etcd)
}

fn start_daemons(
    lab: &Lab,
    program: &Path,
    hosts: Vec<Host>,
    network: &str,
    etcd: bool,
) -> anyhow::Result<Vec<Node>> {
    let config = lab.dir().join("net-conf.json");
    fs::write(&config, network).with_context(|| config.display().to_string())?;
    let mut started = Vec::new();
    for host in hosts {
        let mut command = host.command(program);
        // What is set for a daemon of this machine is not meant for the demo's.
        for (name, _) in env::vars_os() {
            if ["FLANNELD_", "WEFT_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        // As on a real node: the daemon masquerades what leaves the fabric, so that
        // containers see each other's own addresses.
        command.args(["daemon", "--iface", "eth0", "--ip-masq", "--subnet-file"]);
        command.arg(host.dir().join("subnet.env"));
        command.arg("--admin-socket").arg(host.dir().join("weft.sock"));
        match etcd {
            true => command.arg("--etcd-endpoints").arg(format!("http://{}:2379", lab.switch_ip4())),
            false => {
                command.arg("--data-dir").arg(lab.dir().join("store")).arg("--net-config-path").arg(&config)
            }
        };
        started.push((host.spawn("weft", &mut command)?, host));
    }
    started.into_iter().map(|(daemon, host)| leased(daemon, host)).collect()
}

/// Waits for the daemon's `subnet.env`: written last, once the lease is held and
/// the host is ready for containers.
fn leased(mut daemon: Daemon, host: Host) -> anyhow::Result<Node> {
    let path = host.dir().join("subnet.env");
    let mut ended = None;
    let waited = wait_until(PATIENCE, &path.display().to_string(), || {
        ended = daemon.exited().ok().flatten();
        path.exists() || ended.is_some()
    });
    let last_words = format!("{}:\n{}", daemon.log().display(), daemon.log_tail(8));
    if let Some(status) = ended {
        bail!("the daemon of {} ended: {status}; {last_words}", host.name());
    }
    waited.map_err(|error| anyhow!("{error}; {last_words}"))?;
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let env = SubnetEnv::parse(&text).with_context(|| path.display().to_string())?;
    Ok(Node { host, daemon, env, containers: Vec::new() })
}

/// For each container the addresses of all others.
fn ways(nodes: &[Node]) -> Vec<Vec<(Netns, IpAddr)>> {
    let containers: Vec<&Container> = nodes.iter().flat_map(|node| &node.containers).collect();
    let from = |i: usize| {
        let others = containers.iter().enumerate().filter(move |(j, _)| i != *j);
        others.flat_map(|(_, to)| &to.ips).map(|&ip| (containers[i].netns.clone(), ip)).collect()
    };
    (0..containers.len()).map(from).collect()
}
