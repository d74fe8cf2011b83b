//! ADD, DEL and STATUS of an attachment: config, addresses and wiring put
//! together, and undone where they fail.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use weft::model::{IfName, SubnetEnv};

use crate::bridge::Bridge;
use crate::cache::Cache;
use crate::config::{Config, Delegate};
use crate::error::{Code, Error, Result};
use crate::exec::{self, Plugin};
use crate::ipam::Ipam;
use crate::kernel::Kernel;
use crate::masq::{Backend, Masquerade};
use crate::netns::NetNs;
use crate::request::{Command, Request};
use crate::result::Attachment;

/// How long ADD waits for a daemon that is starting. The runtime tries again
/// later, so this only bridges the race.
const SUBNET_LIMIT: Duration = Duration::from_secs(3);
const SUBNET_STEP: Duration = Duration::from_millis(20);

/// What ADD prints.
pub fn add(config: &Config, request: &Request) -> Result<serde_json::Value> {
    let delegate = config.render(&wait_for_subnet(&config.subnet_file)?)?;
    let cache = Cache::of(config, request);
    if delegate.plugin != "bridge" {
        return add_by_plugin(&delegate, &cache);
    }
    let bridge = Bridge::parse(&delegate, request)?;
    let ipam = Ipam::of(&delegate)?;
    let netns = open_netns(request)?;
    let fresh = !cache.exists();
    // Saved first: whatever happens from here on, DEL knows what to undo. But a
    // repeated ADD, which fails, leaves the first one's.
    if fresh {
        cache.save(&delegate)?;
    }
    let attachment = allocate_and_attach(&bridge, &ipam, &netns, config, request, fresh);
    match &attachment {
        Ok(_) if !fresh => cache.save(&delegate)?,
        Err(_) if fresh => cache.remove()?,
        _ => {}
    }
    Ok(attachment?.render(config.version))
}

/// Removes all that ADD may have made, as much of it as there is.
pub fn del(config: &Config, request: &Request) -> Result<()> {
    let cache = Cache::of(config, request);
    let delegate = match cache.load() {
        Some(delegate) => delegate,
        None => delegate_of_now(config)?,
    };
    let prev = config.prev_result.as_ref();
    if delegate.plugin != "bridge" {
        let stdin = delegate.with_prev_result(prev, config.version);
        Plugin::find(&delegate.plugin)?.run(Command::Del, &stdin)?;
        return cache.remove();
    }
    let netns = request.netns.as_deref().map(NetNs::open_existing).transpose()?.flatten();
    let mut known = match &netns {
        Some(netns) => {
            refuse_own(netns, request)?;
            netns.enter(|| delete_interface(request.ifname))?
        }
        None => Vec::new(),
    };
    if let Some(prev) = prev {
        delete_host_ends(prev)?;
        if known.is_empty() {
            known = prev.ips.iter().map(|ip| ip.address.ip()).collect();
        }
    }
    let released = Ipam::of(&delegate)?.del(request, config.version, prev, &known)?;
    if delegate.fields().bool("ipMasq").unwrap_or(true) {
        Masquerade::of(&config.name, request, Backend::Any).tear_down(&released)?;
    }
    cache.remove()
}

/// Whether ADD could work now.
pub fn status(config: &Config) -> Result<()> {
    match read_subnet(&config.subnet_file) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error { code: Code::NotAvailable as u64, ..e }),
    }
}

fn add_by_plugin(delegate: &Delegate, cache: &Cache) -> Result<serde_json::Value> {
    let plugin = Plugin::find(&delegate.plugin)?;
    cache.save(delegate)?;
    exec::json(&plugin.run(Command::Add, &delegate.to_bytes())?, &plugin)
}

fn allocate_and_attach(
    bridge: &Bridge,
    ipam: &Ipam<'_>,
    netns: &NetNs,
    config: &Config,
    request: &Request,
    fresh: bool,
) -> Result<Attachment> {
    let given = ipam.add(request, config.version, fresh)?;
    let addresses: Vec<_> = given.ips.iter().map(|ip| ip.address.ip()).collect();
    if addresses.is_empty() && !matches!(ipam, Ipam::None) {
        return Err(Error::internal("the IPAM plugin returned no address"));
    }
    let attached = bridge.attach(request, netns, given, &config.name);
    if attached.is_err() {
        ipam.del(request, config.version, None, &addresses)?;
    }
    attached
}

/// The namespace of a container, which is not our own.
pub fn open_netns(request: &Request) -> Result<NetNs> {
    let netns = NetNs::open(request.netns.as_deref().unwrap_or(Path::new("")))?;
    refuse_own(&netns, request)?;
    Ok(netns)
}

fn refuse_own(netns: &NetNs, request: &Request) -> Result<()> {
    if netns.is_own()? && !request.own_netns_allowed {
        let msg = format!("CNI_NETNS: {} is the plugin's own network namespace", netns.path().display());
        return Err(Error::new(Code::NetNs, msg));
    }
    Ok(())
}

/// What ADD would do now: the nearest to what it did when nothing was kept.
pub fn delegate_of_now(config: &Config) -> Result<Delegate> {
    match read_subnet(&config.subnet_file) {
        Ok(env) => config.render(&env),
        Err(_) => config.render_without_subnet(),
    }
}

fn wait_for_subnet(path: &Path) -> Result<SubnetEnv> {
    let deadline = Instant::now() + SUBNET_LIMIT;
    loop {
        match read_subnet(path) {
            Err(e) if e.code == Code::TryAgainLater as u64 && Instant::now() < deadline => {
                thread::sleep(SUBNET_STEP);
            }
            result => return result,
        }
    }
}

fn read_subnet(path: &Path) -> Result<SubnetEnv> {
    let place = path.display();
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            Code::TryAgainLater,
            format!("subnet file {place} is not there yet: weft's (or flannel's) daemon writes it"),
        )
        .details("is the daemon running on this node, and does it reach its store? See its log."),
        _ => Error::io("read subnet file", path, &e),
    })?;
    SubnetEnv::parse(&text).map_err(|e| Error::new(Code::Decoding, format!("subnet file {place}: {e}")))
}

/// Inside the container. The addresses the interface had.
fn delete_interface(name: IfName) -> Result<Vec<IpAddr>> {
    let mut kernel = Kernel::open()?;
    let Some(link) = kernel.link(name)? else { return Ok(Vec::new()) };
    let mut addresses = kernel.addresses(link.index, true)?;
    addresses.extend(kernel.addresses(link.index, false)?);
    kernel.delete_link(link.index)?;
    let global = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Ok(addresses.iter().map(|a| a.net.ip()).filter(global).collect())
}

/// The host's end lives on when the namespace's name is gone but a process still
/// holds the namespace. It is ours if it has the MAC that ADD reported.
fn delete_host_ends(prev: &Attachment) -> Result<()> {
    let mut kernel = Kernel::open()?;
    for interface in prev.interfaces.iter().filter(|i| i.sandbox.is_empty() && !i.mac.is_empty()) {
        let Ok(name) = interface.name.parse() else { continue };
        let Some(link) = kernel.link(name)? else { continue };
        if link.is_veth && link.mac.is_some_and(|mac| mac.to_string() == interface.mac) {
            kernel.delete_link(link.index)?;
        }
    }
    Ok(())
}
