//! The network config of a built-in store that has none yet: from a flag, a
//! file, or the documented default, after a look at what this host reaches.

use anyhow::{Context, bail};
use tracing::info;

use super::config::DaemonArgs;
use super::join;
use super::uplink;
use crate::desired::ROUTE_PROTOCOL;
use crate::kernel::host::{Host, HostLink, HostRoute};
use crate::model::NetworkConfig;
use crate::subnet::env_file;
use crate::subnet::store::builtin::DEFAULT_NETWORK_CONFIG;

/// The config to put, checked.
pub fn network_config(args: &DaemonArgs, host: &Host) -> anyhow::Result<String> {
    let (json, source) = match (&args.builtin.network, &args.builtin.net_config_path) {
        (Some(network), _) => (for_network(*network), format!("--network {network}")),
        (None, Some(path)) => {
            let json = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            (json, path.display().to_string())
        }
        (None, None) => (DEFAULT_NETWORK_CONFIG.to_owned(), "default network".to_owned()),
    };
    let (config, _) = join::parse(args, &json).with_context(|| source.clone())?;
    if !args.builtin.allow_overlap {
        refuse_overlap(args, &config, host).with_context(|| source.clone())?;
    }
    info!("{source}: {}", json.trim());
    Ok(json)
}

fn for_network(network: ipnetwork::IpNetwork) -> String {
    match network.is_ipv4() {
        true => format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#),
        false => format!(
            r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#
        ),
    }
}

/// A pod network that overlaps the host's own cuts the host off from it.
fn refuse_overlap(args: &DaemonArgs, config: &NetworkConfig, host: &Host) -> anyhow::Result<()> {
    // What an earlier run left is ours: the file says which networks that were.
    let before = env_file::read(&args.subnet_file).ok().flatten();
    for (family, pool) in config.pools.iter() {
        let was_ours = before
            .as_ref()
            .and_then(|env| env.networks.get(family))
            .is_some_and(|networks| networks.contains(&pool.network));
        if was_ours {
            continue;
        }
        if let Some(conflict) = uplink::overlap(host, pool, is_fabric) {
            bail!(
                "{} overlaps {conflict} of this host: choose another with --network, or force it with --allow-overlap",
                pool.network
            );
        }
    }
    Ok(())
}

fn is_fabric(route: &HostRoute, link: Option<&HostLink>) -> bool {
    let on_tunnel = link.is_some_and(|link| link.name.as_str().starts_with("flannel"));
    route.protocol == ROUTE_PROTOCOL || on_tunnel
}
