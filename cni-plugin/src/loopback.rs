//! The container's loopback interface, up (containernetworking/plugins
//! plugins/main/loopback).

use weft::model::IfName;

use crate::chain::{Plugin, Site, Valid};
use crate::kernel::Kernel;
use crate::kernel::netns::NetNs;
use crate::protocol::error::{Error, Result};
use crate::protocol::result::{Attachment, Interface, IpConfig};

#[derive(Debug)]
pub struct Loopback;

impl Plugin for Loopback {
    /// What plugins before made is passed on as it is.
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        let netns = NetNs::of(&site.request)?;
        let made = netns.enter(bring_up)?;
        if *result != Attachment::default() {
            return Ok(());
        }
        result.interfaces.push(Interface {
            name: lo()?.to_string(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: netns.path().to_string_lossy().into_owned(),
            ..Interface::default()
        });
        result.ips = made;
        Ok(())
    }

    fn del(&self, site: &Site, _: Option<&Attachment>) -> Result<()> {
        let netns = NetNs::existing_of(&site.request)?;
        netns.map_or(Ok(()), |netns| netns.enter(|| Kernel::open()?.set_down(lo()?)))
    }

    fn check(&self, site: &Site, _: &Attachment) -> Result<()> {
        let link = NetNs::of(&site.request)?.enter(|| Kernel::open()?.existing_link(lo()?))?;
        if link.is_up { Ok(()) } else { Err(Error::internal("interface lo: is down")) }
    }

    /// It goes with the namespace.
    fn gc(&self, _: &str, _: &Valid) -> Result<()> {
        Ok(())
    }
}

/// Its first address of each family.
fn bring_up() -> Result<Vec<IpConfig>> {
    let mut kernel = Kernel::open()?;
    let name = lo()?;
    kernel.set_up(name)?;
    let index = kernel.existing_link(name)?.index;
    let mut first = Vec::new();
    for v4 in [true, false] {
        let addresses = kernel.addresses(index, v4)?;
        if let Some(foreign) = addresses.iter().find(|address| !address.net.ip().is_loopback()) {
            return Err(Error::internal(format_args!("interface lo: has address {}", foreign.net)));
        }
        first.extend(addresses.first().map(|a| IpConfig {
            interface: Some(0),
            address: a.net,
            gateway: None,
        }));
    }
    Ok(first)
}

fn lo() -> Result<IfName> {
    "lo".parse().map_err(Error::internal)
}
