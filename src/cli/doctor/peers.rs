//! Whether every peer is reached through the fabric, with small packets and with
//! the largest that containers may send.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Check;
use super::facts::{Fabric, Facts, gateway};
use super::probe::{Probe, SMALL, answered};
use crate::model::Family;

pub(super) const NAME: &str = "peers";
/// So many are named one by one.
const NAMED: usize = 20;

/// One peer in one family.
struct Path {
    net: IpNetwork,
    /// What answers there.
    inner: IpAddr,
    /// Where it is reached from outside the fabric.
    outer: Option<IpAddr>,
}

pub(super) async fn reach(facts: &Facts<'_>) -> Check {
    let mut check = Check::new(NAME, "there are none yet");
    let Ok(fabric) = &facts.fabric else {
        check.seen = "not looked for, for want of the network config".to_owned();
        return check;
    };
    let paths = paths(facts, fabric);
    if paths.is_empty() {
        return check;
    }
    let mtu = fabric.backend.mtu(&fabric.node);
    let looked = tokio::task::spawn_blocking(move || look(paths, mtu)).await;
    match looked.map_err(std::io::Error::other).and_then(|looked| looked) {
        Ok(looked) => judge(&mut check, &looked, fabric, mtu),
        Err(error) => check.problem(
            format!("no probe can be sent: {error}"),
            "whether peers are reached is not known",
            "run it as root, with CAP_NET_RAW",
        ),
    }
    check
}

/// What became of the probes to each.
struct Look {
    path: Path,
    small: bool,
    large: bool,
    outer: bool,
}

fn look(paths: Vec<Path>, mtu: u32) -> std::io::Result<Vec<Look>> {
    let mut looked: Vec<_> =
        paths.into_iter().map(|path| Look { path, small: false, large: false, outer: false }).collect();
    let small = send(&looked, |look| Some(Probe { target: look.path.inner, size: SMALL }))?;
    looked.iter_mut().zip(small).for_each(|(look, answered)| look.small = answered);
    // Each further one only where it says something more.
    let large = send(&looked, |look| look.small.then_some(Probe { target: look.path.inner, size: mtu }))?;
    let outer =
        send(&looked, |look| Some(Probe { target: look.path.outer.filter(|_| !look.small)?, size: SMALL }))?;
    for (look, (large, outer)) in looked.iter_mut().zip(large.into_iter().zip(outer)) {
        (look.large, look.outer) = (large, outer);
    }
    Ok(looked)
}

/// Whether each was answered that a probe goes to.
fn send(looked: &[Look], probe: impl Fn(&Look) -> Option<Probe>) -> std::io::Result<Vec<bool>> {
    let probes: Vec<_> = looked.iter().map(probe).collect();
    let sent: Vec<_> = probes.iter().copied().flatten().collect();
    let mut results = answered(&sent)?.into_iter();
    Ok(probes.iter().map(|probe| probe.is_some() && results.next().unwrap_or(false)).collect())
}

fn judge(check: &mut Check, looked: &[Look], fabric: &Fabric, mtu: u32) {
    let reached = looked.iter().filter(|look| look.small).count();
    let also = match looked.iter().all(|look| look.large || !look.small) {
        true => format!(", also to packets of {mtu} bytes"),
        false => String::new(),
    };
    check.seen = match reached {
        0 => "none has a container yet".to_owned(),
        n => format!("{n} of {} answer through the fabric{also}", looked.len()),
    };
    let tunnel = fabric.backend.encapsulation();
    let cut = "containers here and there do not reach each other";
    for look in looked.iter().filter(|look| !look.small || !look.large).take(NAMED) {
        let Look { path: Path { net, inner, outer }, small, outer: outer_answers, .. } = look;
        let node = outer.map_or_else(String::new, |outer| format!(" at {outer}"));
        match (small, outer_answers, tunnel) {
            (true, ..) => check.problem(
                format!("{net}{node} answers small packets, and none of {mtu} bytes"),
                "something on the way takes less than the uplink's MTU: connections open and then hang",
                "find the smallest MTU on the way (tracepath -n to the node) and set it on the uplinks, or as `MTU` in the config's Backend",
            ),
            (false, true, Some(tunnel)) => check.problem(
                format!("{net}{node}: {inner} does not answer through the tunnel, the node itself does"),
                cut,
                format!(
                    "see that UDP port {} is let through here, there and between (firewalls, security groups); then `weft doctor` there",
                    tunnel.port
                ),
            ),
            // The bridge that would answer comes with the first container.
            (false, true, None) => {}
            (false, false, _) => check.problem(
                format!("{net}{node} does not answer at all"),
                cut,
                "if the node is gone for good, release its lease (weft leases release); else see to the node and the way there",
            ),
        }
    }
    let unnamed = looked.iter().filter(|look| !look.small && !look.outer).count().saturating_sub(NAMED);
    if unnamed > 0 {
        check.problem(format!("{unnamed} more do not answer"), cut, "begin with those that are named");
    }
}

/// The peers that the backend takes, in the families that it has.
fn paths(facts: &Facts<'_>, fabric: &Fabric) -> Vec<Path> {
    let Ok(snapshot) = &facts.snapshot else { return Vec::new() };
    let own = facts.own();
    let leases = snapshot.leases.iter().map(|stored| &stored.lease);
    let peers =
        leases.filter(|lease| Some(lease.key) != own && lease.attrs.backend_type == fabric.backend.kind());
    let path = |net: IpNetwork, outer: Option<IpAddr>| {
        // A VTEP has the subnet's own address.
        let inner = if fabric.backend.encapsulation().is_some() { net.network() } else { gateway(net) };
        Path { net, inner, outer }
    };
    let families: Vec<Family> = facts.families();
    peers
        .flat_map(|lease| {
            lease
                .key
                .nets()
                .map(move |(family, net)| (family, net, lease.attrs.public_ip.get(family).copied()))
        })
        .filter(|(family, ..)| families.contains(family))
        .map(|(_, net, outer)| path(net, outer))
        .collect()
}
