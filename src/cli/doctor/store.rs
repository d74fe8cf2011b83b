//! The store: whether it answers, and what it says.

use std::collections::BTreeMap;

use super::Check;
use super::facts::Facts;

/// So many of a kind are named one by one.
const NAMED: usize = 10;

pub(super) fn reach(facts: &Facts<'_>) -> Check {
    let name = facts.store.as_ref().map_or("", |(name, _)| name);
    let mut check = Check::new("store", format!("{name} answers"));
    match &facts.store {
        Err(why) if why.contains("authentication") || why.contains("permission") || why.contains("user") => {
            check.problem(
                why,
                "the store refuses this node: it can neither lease a subnet nor renew its own",
                "give --etcd-username and --etcd-password of a user that may read and write the prefix, or a certificate that etcd accepts",
            );
        }
        Err(why) => check.problem(
            why,
            "no subnet can be leased, and changes of other nodes are not seen; traffic goes on with what is known",
            "see that it runs and that this host reaches it; name it by --etcd-endpoints, with --etcd-cafile, --etcd-certfile and --etcd-keyfile where it wants TLS",
        ),
        Ok((name, None)) => check.problem(
            format!("{name} has no network config"),
            "every node waits for it",
            format!(
                "etcdctl put {}/config '{{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}'",
                facts.args.etcd.prefix()
            ),
        ),
        Ok((_, Some(_))) => {
            if let Err(why) = &facts.fabric {
                check.problem(
                    why,
                    "a node that cannot use the network config, or has no uplink for it, does not join",
                    "put the config right, or name the uplink by --iface",
                );
            }
        }
    }
    check
}

pub(super) fn leases(facts: &Facts<'_>) -> Check {
    let Ok(snapshot) = &facts.snapshot else {
        return Check::new("leases", "not looked at, for want of the store");
    };
    let mut check = Check::new("leases", format!("{} leases, all of them sound", snapshot.leases.len()));
    let unnamed = snapshot.bad.len().saturating_sub(NAMED);
    for bad in snapshot.bad.iter().take(NAMED) {
        check.warning(
            format!("record {}: {}", bad.key, bad.reason),
            "its node is not reached; a flanneld in the cluster may drop all its peers over it",
            "`weft leases gc` shows and removes what does not parse",
        );
    }
    if unnamed > 0 {
        check.warning(
            format!("{unnamed} more records do not parse"),
            "their nodes are not reached",
            "`weft leases gc` shows and removes them",
        );
    }
    let (mut nodes, mut doubles) = (BTreeMap::new(), 0);
    for lease in snapshot.leases.iter().map(|stored| &stored.lease) {
        let identity = lease.attrs.public_ip.iter().next().map(|(_, ip)| *ip);
        if let Some(other) = identity.and_then(|ip| nodes.insert(ip, lease.key)) {
            doubles += 1;
            if doubles > NAMED {
                continue;
            }
            check.warning(
                format!(
                    "{other} and {} are leased to one address, {}",
                    lease.key,
                    lease.attrs.public_ip.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ")
                ),
                "a node has one lease: one of them is a leftover, or two nodes publish the same address",
                "release the leftover (`weft leases release`), or give each node its own --public-ip",
            );
        }
    }
    if facts.fabric.is_ok() && facts.leased().is_none() {
        check.problem(
            "this node holds no lease",
            "it has no subnet: its containers get no address, and nobody reaches them",
            "start the daemon; `weft status` and its log say what it waits for",
        );
    }
    check
}
