//! Whether every peer is reached through the fabric, with small packets and with
//! the largest that containers may send.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Check;
use super::facts::{Fabric, Facts, gateway};
use super::probe::{Probe, SMALL, answered};
use crate::model::Family;

pub(super) const NAME: &str = "peers";
/// So many are named one by one.
const NAMED: usize = 10;
/// So many nodes that are not reached through the fabric are asked outside of it:
/// more could fill the table of neighbours, where they share our network.
const OUTER: usize = 256;

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
    /// Where its node was asked.
    outer: Option<bool>,
}

fn look(paths: Vec<Path>, mtu: u32) -> std::io::Result<Vec<Look>> {
    let mut looked: Vec<_> =
        paths.into_iter().map(|path| Look { path, small: false, large: false, outer: None }).collect();
    let small = send(&looked, |look| Some(Probe { target: look.path.inner, size: SMALL }))?;
    looked.iter_mut().zip(small).for_each(|(look, answered)| look.small = answered == Some(true));
    // Each further one only where it says something more.
    let large = send(&looked, |look| look.small.then_some(Probe { target: look.path.inner, size: mtu }))?;
    let silent: BTreeSet<_> =
        looked.iter().filter(|look| !look.small).filter_map(|look| look.path.outer).take(OUTER).collect();
    let outer = send(&looked, |look| {
        let outer = look.path.outer.filter(|outer| !look.small && silent.contains(outer))?;
        Some(Probe { target: outer, size: SMALL })
    })?;
    for (look, (large, outer)) in looked.iter_mut().zip(large.into_iter().zip(outer)) {
        (look.large, look.outer) = (large == Some(true), outer);
    }
    Ok(looked)
}

/// Whether each was answered that a probe goes to.
fn send(looked: &[Look], probe: impl Fn(&Look) -> Option<Probe>) -> std::io::Result<Vec<Option<bool>>> {
    let probes: Vec<_> = looked.iter().map(probe).collect();
    let sent: Vec<_> = probes.iter().copied().flatten().collect();
    let mut results = answered(&sent)?.into_iter();
    Ok(probes.iter().map(|probe| probe.and_then(|_| results.next())).collect())
}

fn judge(check: &mut Check, looked: &[Look], fabric: &Fabric, mtu: u32) {
    let reached = looked.iter().filter(|look| look.small).count();
    let also = match looked.iter().all(|look| look.large || !look.small) {
        true => format!(", also to packets of {mtu} bytes"),
        false => String::new(),
    };
    check.seen = match reached {
        0 => "none has a container yet".to_owned(),
        n => format!("{n} of {} subnets answer through the fabric{also}", looked.len()),
    };
    let cut = "containers here and there do not reach each other";
    let mut tell = |is: &dyn Fn(&Look) -> bool, does: &str, why: &str, cure: &str| {
        let those: Vec<_> = looked.iter().filter(|look| is(look)).map(|look| &look.path).collect();
        if !those.is_empty() {
            let count = format!("{} of {} subnets", those.len(), looked.len());
            check.problem(format!("{count} {does}: {}", first(&those)), why, cure);
        }
    };
    tell(
        &|look| look.small && !look.large,
        &format!("answer small packets, and none of {mtu} bytes"),
        "something on the way takes less than the uplink's MTU: connections open and then hang",
        "find the smallest MTU on the way (tracepath -n to the node) and set it on the uplinks, or as `MTU` in the config's Backend",
    );
    // Without a tunnel, the bridge that would answer comes with the first container.
    if let Some(tunnel) = fabric.backend.encapsulation() {
        tell(
            &|look| !look.small && look.outer == Some(true),
            "do not answer through the tunnel, though their nodes answer",
            cut,
            &format!(
                "see that UDP port {} is let through here, there and between (firewalls, security groups); then `weft doctor` there",
                tunnel.port
            ),
        );
    }
    let gone = "if a node is gone for good, release its lease (weft leases release); else see to it and to the way there";
    let cure = match reached == 0 && looked.len() > 1 {
        true => format!("begin with this node's own way out, since nobody answers it; {gone}"),
        false => gone.to_owned(),
    };
    tell(&|look| !look.small && look.outer == Some(false), "do not answer, nor do their nodes", cut, &cure);
    tell(
        &|look| !look.small && look.outer.is_none(),
        &format!("do not answer either; after {OUTER} nodes no more were asked"),
        cut,
        "begin with those that are named before",
    );
}

/// The first ten by name, the others by number.
fn first(paths: &[&Path]) -> String {
    let name = |path: &&Path| match path.outer {
        Some(outer) => format!("{} at {outer}", path.net),
        None => path.net.to_string(),
    };
    let named: Vec<_> = paths.iter().take(NAMED).map(name).collect();
    match paths.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{}, … and {more} more", named.join(", ")),
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
