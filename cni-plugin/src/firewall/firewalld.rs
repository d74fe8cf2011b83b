//! firewalld, by its own program: a container's address becomes a source of a
//! zone.

use std::net::IpAddr;

use super::rules::host;
use crate::iptables::{Tools, run};
use crate::nft::{self, Nft};
use crate::protocol::error::{Code, Error, Result};

const PROGRAM: &str = "firewall-cmd";

/// Asked only where its chains stand, under either of its backends: the program
/// takes a good part of a second to say that it is not running.
pub fn is_running() -> Result<bool> {
    let by_nftables = nft::Chain { family: nft::Family::Inet, table: "firewalld", name: "filter_FORWARD" };
    let mut nft = Nft::open()?;
    let has_chains =
        nft.has_chain(by_nftables)? || Tools::of(true).may_have(&mut nft, "filter", "INPUT_ZONES")?;
    Ok(has_chains && run(PROGRAM, &["--state"], "").is_ok())
}

/// firewalld takes a source that its zone has already for done.
pub fn add(zone: &str, addresses: &[IpAddr]) -> Result<()> {
    sources("add", zone, addresses)
}

pub fn remove(zone: &str, address: IpAddr) -> Result<()> {
    match sources("remove", zone, &[address]) {
        // Not there, or another's by now; or all of it gone with firewalld.
        Err(e)
            if ["UNKNOWN_SOURCE", "ZONE_CONFLICT", "not running"].iter().any(|s| e.details.contains(s)) =>
        {
            Ok(())
        }
        done => done,
    }
}

pub fn check(zone: &str, addresses: &[IpAddr]) -> Result<()> {
    for address in addresses {
        sources("query", zone, &[*address]).map_err(|e| {
            let msg = format!("firewalld: {address} is not in zone {zone}");
            Error::new(Code::Internal, msg).details(e.details)
        })?;
    }
    Ok(())
}

fn sources(verb: &str, zone: &str, addresses: &[IpAddr]) -> Result<()> {
    let sources = addresses.iter().map(|address| format!("--{verb}-source={}", host(*address)));
    let arguments: Vec<_> = [format!("--zone={zone}")].into_iter().chain(sources).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    run(PROGRAM, &arguments, "").map(drop)
}
