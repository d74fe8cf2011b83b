//! Ports in use, and other programs' rules that drop what the fabric sends.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use super::facts::Facts;
use super::{Check, Level};
use crate::kernel::firewall::{choose, input_drops};

pub(super) fn ports(facts: &Facts<'_>) -> Check {
    let mut check = Check::new("ports", "what the daemon listens on is its own, or free");
    if let Ok(fabric) = &facts.fabric
        && let Some(tunnel) = fabric.backend.encapsulation()
    {
        for (family, name) in fabric.backend.devices().iter() {
            let any = match family {
                crate::model::Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, tunnel.port)),
                crate::model::Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, tunnel.port)),
            };
            // The kernel's own tunnels share the port; a program's socket does not.
            let taken = facts.link(name.as_str()).is_none() && UdpSocket::bind(any).is_err();
            if taken {
                check.problem(
                    format!("UDP port {} is taken, and {name} is not there", tunnel.port),
                    "the tunnel cannot be made while a program has its port",
                    format!(
                        "`ss -lunp 'sport = :{}'` names the program: stop it, or give the fabric another `Port` in its config's Backend",
                        tunnel.port
                    ),
                );
            }
        }
    }
    if let (Err(_), Some(address)) = (&facts.status, facts.args.health_address(false))
        && TcpListener::bind(address).is_err()
    {
        check.problem(
            format!("TCP {address} is taken or not this host's, and the daemon does not run"),
            "the daemon ends at its start when it cannot listen there",
            "choose another by --healthz-ip and --healthz-port",
        );
    }
    check
}

/// Last, since peers that answer show what rules do better than their text.
pub(super) async fn then_drops(facts: &Facts<'_>, mut checks: Vec<Check>) -> Vec<Check> {
    let families = facts.families();
    let mut check =
        Check::new("firewall", "nobody's policy drops what is forwarded, or what the tunnel brings");
    let nftables = facts.fabric.as_ref().is_ok_and(|fabric| fabric.network.enable_nftables);
    let Some((place, _)) = choose(nftables, &families).await else {
        check.problem(
            "neither nft nor an iptables for every family is installed",
            "no traffic rule can be written: nothing is masqueraded, and a policy that drops what is forwarded stands",
            "install nftables or iptables",
        );
        checks.push(check);
        return checks;
    };
    for chain in place.foreign_drops(&families).await {
        check.problem(
            format!("chain {chain} drops what is forwarded and not known to it"),
            "containers are cut off from other nodes, and no rule elsewhere can outvote it",
            "accept the fabric's network there, as source and as destination",
        );
    }
    let tunnel = facts.fabric.as_ref().ok().and_then(|fabric| fabric.backend.encapsulation());
    if let Some(tunnel) = tunnel {
        let proven = checks.iter().any(|check| {
            check.name == super::peers::NAME && check.findings.is_empty() && check.seen.contains("answer")
        });
        let level = if proven { Level::Warning } else { Level::Problem };
        for chain in input_drops(tunnel.port, &families).await {
            check.find(
                level,
                format!("{chain} drops what comes in, and no rule beside it names UDP port {}", tunnel.port),
                "peers' packets to this node's containers come in there",
                format!("accept UDP port {} from the nodes' addresses there", tunnel.port),
            );
        }
    }
    if let Ok(status) = &facts.status
        && status.guard.dropped > 0
    {
        check.warning(
            format!("the guard has dropped {} packets of hosts without a lease", status.guard.dropped),
            "someone sends into the fabric who is not of it, or a peer's packets come from another address than it publishes",
            "tcpdump -ni any udp port 8472 shows from where; behind such a NAT say --guard=off",
        );
    }
    checks.push(check);
    checks
}
