//! What containers need of files: `subnet.env`, a CNI config and its plugin.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Check;
use super::facts::Facts;

/// A config file is smaller by far.
const MAX_CONFIG: u64 = 1 << 20;
/// Names that the plugin goes by.
const TYPES: [&str; 3] = ["flannel", "weft", "weft-cni"];

pub(super) fn subnet_env(facts: &Facts<'_>) -> Check {
    let path = facts.args.subnet_file.display();
    let mut check = Check::new("subnet.env", format!("{path} says what this node leases"));
    let env = match &facts.env {
        Ok(Some(env)) => env,
        Ok(None) => {
            check.problem(
                format!("{path} is not there"),
                "the CNI plugin and Docker learn from it what this node has: no container gets an address",
                "start the daemon, which writes it when it has joined; name it by --subnet-file where it is elsewhere",
            );
            return check;
        }
        Err(why) => {
            check.problem(
                why,
                "no container gets an address",
                "remove it and restart the daemon, which writes it anew",
            );
            return check;
        }
    };
    let restart =
        "restart the daemon: it writes the file anew; containers of the old subnet have to be made anew";
    if let (Some(leased), Some(said)) = (facts.leased(), env.subnet_key())
        && leased != said
    {
        check.problem(
            format!("{path} says {said}, the lease {leased}"),
            "containers get addresses that other nodes send elsewhere",
            restart,
        );
    }
    if let Ok(fabric) = &facts.fabric {
        let mtu = fabric.backend.mtu(&fabric.node);
        if env.mtu > mtu {
            check.problem(
                format!(
                    "{path} gives containers an MTU of {}, the uplink {} leaves {mtu}",
                    env.mtu, fabric.node.uplink
                ),
                "large packets are lost while small ones pass: connections open and then hang",
                restart,
            );
        }
    }
    check
}

pub(super) fn cni(facts: &Facts<'_>, configs: &Path, plugins: &Path) -> Check {
    let mut check = Check::new("cni", format!("a config in {} leads to the plugin", configs.display()));
    let found = types(configs);
    let ours: Vec<_> = found.iter().filter(|kind| TYPES.contains(&kind.as_str())).collect();
    if ours.is_empty() {
        check.warning(
            format!("no config in {} names a plugin of type {}", configs.display(), TYPES.join(", ")),
            "no CNI runtime (containerd, CRI-O, podman) puts its containers into the fabric; Docker needs none",
            "copy deploy/10-weft.conflist there (`make install` does), or name the folder by --cni-conf-dir",
        );
    }
    for kind in ours {
        if !plugins.join(kind).exists() {
            check.problem(
                format!("{} is not there, and a config names it", plugins.join(kind).display()),
                "the runtime cannot start it: no container gets an address",
                "install weft-cni there (`make install`), or name the folder by --cni-bin-dir",
            );
        }
    }
    if facts.env.as_ref().is_ok_and(Option::is_none) && check.findings.is_empty() {
        check.seen.push_str("; it waits for subnet.env");
    }
    check
}

/// The types of all plugins that the folder's configs name.
fn types(configs: &Path) -> Vec<String> {
    let is_config = |path: &Path| {
        path.extension()
            .is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known))
    };
    let entries = fs::read_dir(configs).into_iter().flatten().flatten().map(|entry| entry.path());
    let small = |path: &Path| path.metadata().is_ok_and(|data| data.is_file() && data.len() <= MAX_CONFIG);
    let texts = entries.filter(|path| is_config(path) && small(path)).filter_map(|path| fs::read(path).ok());
    let parsed = texts.filter_map(|text| serde_json::from_slice::<Value>(&text).ok());
    let kinds = |config: Value| {
        let listed = config["plugins"].as_array().cloned().unwrap_or_default();
        listed
            .into_iter()
            .chain([config])
            .filter_map(|plugin| Some(plugin["type"].as_str()?.to_owned()))
            .collect::<Vec<_>>()
    };
    parsed.flat_map(kinds).collect()
}
