//! Inside the container: its interface's addresses and routes.

use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use weft::model::{IfName, Mac};

use super::config::Config;
use crate::kernel::{Kernel, set_sysctl};
use crate::protocol::error::{Error, Result};
use crate::protocol::result::{Attachment, Route};

/// How long an IPv6 address may take to become usable.
const ADDRESS_LIMIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_micros(500);

/// The interface's MAC.
pub fn configure(config: &Config, name: IfName, attachment: &Attachment) -> Result<Option<Mac>> {
    let mut kernel = Kernel::open()?;
    let link = kernel.existing_link(name)?;
    if config.interface_disabled {
        return Ok(link.mac);
    }
    let nets: Vec<_> = attachment.ips.iter().map(|ip| ip.address).collect();
    let has_v6 = nets.iter().any(IpNetwork::is_ipv6);
    if !nets.is_empty() {
        if config.detects_duplicates {
            set_sysctl(&format!("ipv6/conf/{name}/enhanced_dad"), "1")?;
        }
        let accept_dad = if config.detects_duplicates { "1" } else { "0" };
        set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), accept_dad)?;
        set_sysctl(&format!("ipv4/conf/{name}/arp_notify"), "1")?;
    }
    if has_v6 {
        enable_ipv6(name)?;
    }
    kernel.configure(name, link.index, &nets, &via_gateways(attachment))?;
    if has_v6 {
        wait_for_addresses(&mut kernel, name, link.index)?;
    }
    Ok(link.mac)
}

/// The routes with the gateway filled in that IPAM leaves open: the first one of
/// the family.
fn via_gateways(attachment: &Attachment) -> Vec<Route> {
    let gateway = |v4| attachment.ips.iter().filter_map(|ip| ip.gateway).find(|gw| gw.is_ipv4() == v4);
    let complete =
        |route: &Route| Route { gw: route.gw.or_else(|| gateway(route.dst.is_ipv4())), ..route.clone() };
    attachment.routes.iter().map(complete).collect()
}

fn enable_ipv6(name: IfName) -> Result<()> {
    for link in ["lo", name.as_str()] {
        set_sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "0")?;
    }
    set_sysctl(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1").map(drop)
}

/// As long as the link is not up, its addresses stay tentative, and that is no
/// error.
fn wait_for_addresses(kernel: &mut Kernel, name: IfName, link: u32) -> Result<()> {
    let deadline = Instant::now() + ADDRESS_LIMIT;
    loop {
        let addresses = kernel.addresses(link, false)?;
        if let Some(duplicate) = addresses.iter().find(|a| a.duplicate) {
            return Err(Error::internal(format_args!("{} on {name}: another host has it", duplicate.net)));
        }
        if !addresses.iter().any(|a| a.tentative) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let up = kernel.existing_link(name)?.carries;
            let late =
                format_args!("{name} still has tentative addresses after {ADDRESS_LIMIT:?}").to_string();
            return if up { Err(Error::internal(late)) } else { Ok(()) };
        }
        thread::sleep(STEP);
    }
}
