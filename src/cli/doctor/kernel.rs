//! What the kernel can do, and how it is set.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Check;
use super::facts::Facts;
use crate::backends::Encapsulation;
use crate::desired::{LinkKind, LinkSpec, Op, VxlanSpec};
use crate::firewall::{Intent, Ruleset, guard, nftables};
use crate::kernel::firewall::{has_bridge_netfilter, nftables_takes};
use crate::kernel::{Kernel, Nexthops, Rtnl, Scope};
use crate::model::{Family, IfName, Mac};

/// What was found out by trying: links in a network namespace of its own, rules by
/// a transaction that the kernel looks at and leaves.
#[derive(Clone, Debug)]
struct Features {
    /// Or why not.
    vxlan: Result<(), String>,
    nexthop_objects: bool,
    nftables: Result<(), String>,
}

pub(super) async fn features(facts: &Facts<'_>) -> Check {
    let families = facts.fabric.as_ref().map_or(vec![Family::V4], |_| facts.families());
    let trial = tokio::task::spawn_blocking(move || try_out(&families)).await;
    let (vxlan, nexthop_objects) = trial.unwrap_or_else(|error| (Err(error.to_string()), false));
    let features = Features { vxlan, nexthop_objects, nftables: nftables_takes(&rules(facts)).await };
    let tunnels = facts.fabric.as_ref().map_or(true, |fabric| fabric.backend.encapsulation().is_some());
    let nft_wanted = facts.fabric.as_ref().is_ok_and(|fabric| fabric.network.enable_nftables);
    judge(&features, tunnels, nft_wanted)
}

fn judge(features: &Features, tunnels: bool, nft_wanted: bool) -> Check {
    let mut check = Check::new("kernel", "it has what the fabric takes");
    if let Err(error) = features.vxlan.as_ref()
        && tunnels
    {
        check.problem(
            format!("a VXLAN device cannot be made: {error}"),
            "the backend vxlan joins nodes by one",
            "load the module (modprobe vxlan), or install the package that has it (linux-modules-extra on Ubuntu and on cloud images)",
        );
    }
    if !features.nexthop_objects {
        check.warning(
            "the kernel has no nexthop objects (Linux 5.3)",
            "thousands of routes take seconds in place of a tenth of one",
            "nothing below a thousand nodes; above, a newer kernel",
        );
    }
    if let Err(error) = &features.nftables {
        let (why, cure) = (
            "the guard against strangers' packets needs it, and traffic rules where EnableNFTables is set",
            "install nftables, and load nf_tables (modprobe nf_tables)",
        );
        match nft_wanted {
            true => check.problem(format!("nftables: {error}"), why, cure),
            false => check.warning(format!("nftables: {error}"), why, cure),
        }
    }
    check
}

pub(super) fn sysctls(facts: &Facts<'_>) -> Check {
    let mut check = Check::new("sysctls", "forwarding is on");
    for family in facts.families() {
        let (key, what) = match family {
            Family::V4 => ("net/ipv4/ip_forward", "IPv4"),
            Family::V6 => ("net/ipv6/conf/all/forwarding", "IPv6"),
        };
        if read(key).as_deref() != Some("1") {
            check.problem(
                format!("{} is {}", key.replace('/', "."), read(key).unwrap_or_else(|| "not there".to_owned())),
                format!("the host does not forward {what}: containers reach nobody beyond it"),
                format!(
                    "sysctl -w {0}=1, and {0} = 1 in a file below /etc/sysctl.d; the CNI plugin sets it with the first container",
                    key.replace('/', ".")
                ),
            );
        }
    }
    for family in facts.families() {
        let word = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let limit =
            read(&format!("net/{word}/neigh/default/gc_thresh3")).and_then(|limit| limit.parse().ok());
        neighbours(&mut check, word, on_link(facts, family), limit);
    }
    if facts.families().contains(&Family::V6)
        && read("net/ipv6/conf/all/disable_ipv6").as_deref() == Some("1")
    {
        check.problem(
            "net.ipv6.conf.all.disable_ipv6 is 1",
            "the fabric has an IPv6 network, and this host no IPv6",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        );
    }
    if has_bridge_netfilter() && read("net/bridge/bridge-nf-call-iptables").as_deref() == Some("0") {
        check.warning(
            "net.bridge.bridge-nf-call-iptables is 0",
            "a Kubernetes service that leads to a container of the same node is not answered as it should be",
            "where this is a Kubernetes node: sysctl -w net.bridge.bridge-nf-call-iptables=1",
        );
    }
    check
}

/// Peers that are neighbours of this host: each takes a place in the kernel's table.
fn on_link(facts: &Facts<'_>, family: Family) -> usize {
    let (Ok(snapshot), Ok(fabric)) = (&facts.snapshot, &facts.fabric) else { return 0 };
    let addresses = snapshot.leases.iter().filter_map(|stored| stored.lease.attrs.public_ip.get(family));
    addresses.filter(|ip| fabric.node.on_link.iter().any(|net| net.contains(**ip))).count()
}

/// `limit` is absent where this namespace does not show it.
fn neighbours(check: &mut Check, word: &str, on_link: usize, limit: Option<usize>) {
    let Some(limit) = limit.filter(|limit| on_link > *limit) else { return };
    let key = format!("net.{word}.neigh.default.gc_thresh3");
    check.problem(
        format!("{key} is {limit}, and {on_link} nodes are neighbours of this host"),
        "the kernel's table of neighbours overflows: peers are reached now and then",
        format!("sysctl -w {key}={}, and in a file below /etc/sysctl.d", (2 * on_link).next_power_of_two()),
    );
}

/// All that the daemon may write by nft on this node.
fn rules(facts: &Facts<'_>) -> String {
    let fabric = facts.fabric.as_ref().ok();
    let tunnel = fabric.and_then(|fabric| fabric.backend.encapsulation());
    let guard = guard::whole(tunnel.unwrap_or(Encapsulation { port: 8472, vni: 1 }), &Default::default());
    let Some((fabric, own)) = fabric.zip(facts.own()) else { return guard };
    let intent = Intent { masquerade: true, forward: true, plain: Vec::new() };
    let rulesets = facts.families().into_iter().map(|f| Ruleset::of(f, &intent, &fabric.network, &own));
    let traffic: String = rulesets.filter_map(|rules| nftables::plan(&rules, false, None)).collect();
    guard + &traffic
}

/// In a network namespace of this thread's own, which ends with it.
fn try_out(families: &[Family]) -> (Result<(), String>, bool) {
    let links: Result<Vec<Op>, String> = families.iter().map(|family| trial(*family)).collect();
    let tried = std::thread::spawn(move || {
        // SAFETY: it concerns the calling thread alone, which shares nothing with
        // others that would be torn apart.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .map_err(|error| format!("no network namespace to try it in: {error}"))?;
        let mut kernel = Rtnl::open(None, Nexthops::WherePossible).map_err(|error| error.to_string())?;
        let have = kernel.observe(&Scope::default()).map_err(|error| error.to_string())?;
        let made = kernel.apply(&links?).into_iter().collect::<Result<(), _>>();
        Ok::<_, String>((made.map_err(|error| error.to_string()), have.nexthop_objects))
    });
    let panicked = |_| Err("the trial panicked".to_owned());
    tried.join().unwrap_or_else(panicked).unwrap_or_else(|error| (Err(error), false))
}

fn trial(family: Family) -> Result<Op, String> {
    let name = |text: &str| text.parse::<IfName>().map_err(|error| error.to_string());
    let (device, local): (_, IpAddr) = match family {
        Family::V4 => ("trial", Ipv4Addr::LOCALHOST.into()),
        Family::V6 => ("trial-v6", Ipv6Addr::LOCALHOST.into()),
    };
    let kind = LinkKind::Vxlan(VxlanSpec {
        vni: 1,
        underlay: name("lo")?,
        local,
        port: 8472,
        learning: false,
        gbp: false,
    });
    let spec = LinkSpec { mac: Mac::local([0; 6]), mtu: 1450, kind, tx_checksum: None };
    Ok(Op::AddLink { name: name(device)?, spec: Box::new(spec) })
}

fn read(key: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/{key}")).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    /// No kernel here lacks these, so the judgement alone is put to the test.
    #[test]
    fn what_a_kernel_lacks_is_named_as_far_as_it_matters() {
        let bare = Features {
            vxlan: Err("not supported".into()),
            nexthop_objects: false,
            nftables: Err("absent".into()),
        };
        let levels = |check: Check| check.findings.iter().map(|finding| finding.level).collect::<Vec<_>>();
        use Level::{Problem, Warning};
        assert_eq!(levels(judge(&bare, true, true)), [Problem, Warning, Problem]);
        assert_eq!(levels(judge(&bare, false, false)), [Warning, Warning]);
        let whole = Features { vxlan: Ok(()), nexthop_objects: true, nftables: Ok(()) };
        assert_eq!(levels(judge(&whole, true, true)), []);
    }

    #[test]
    fn a_table_of_neighbours_that_is_too_small_is_a_problem() {
        let found = |on_link, limit| {
            let mut check = Check::new("sysctls", "");
            neighbours(&mut check, "ipv4", on_link, limit);
            check.findings
        };
        assert_eq!((found(1024, Some(1024)), found(5000, None)), (Vec::new(), Vec::new()));
        let [finding] = &found(5000, Some(1024))[..] else { panic!("one finding") };
        assert!(finding.cure.contains("sysctl -w net.ipv4.neigh.default.gc_thresh3=16384"), "{finding:?}");
    }
}
