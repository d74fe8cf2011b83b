//! The IFB device through which a container's traffic leaves: its name, and
//! whose it is.

use sha2::{Digest, Sha512};
use weft::model::{IfName, Mac};

use crate::chain::Site;
use crate::kernel::{Kernel, Link};
use crate::names::hash;
use crate::protocol::error::{Error, Result};

const PREFIX: &str = "bwp";
const NAME_LEN: usize = 15;

/// The IFB of one attachment.
///
/// The reference plugin names it after network and container, so a container's
/// second interface finds that name taken and gets one of its own. Whose an IFB
/// is stands in its MAC, which has no other use and is there from the first
/// moment on: three bytes for the network, three for the attachment.
#[derive(Clone, Copy, Debug)]
pub struct Ifb {
    names: [IfName; 2],
    pub mac: Mac,
}

impl Ifb {
    pub fn of(site: &Site) -> Result<Ifb> {
        let (network, id, ifname) = (&site.network, &site.request.container_id, site.request.ifname);
        let name = |text: &str| {
            format!("{PREFIX}{}", hash(text, NAME_LEN - PREFIX.len())).parse().map_err(Error::internal)
        };
        Ok(Ifb {
            names: [name(&format!("{network}{id}"))?, name(&format!("{network}{id}:{ifname}"))?],
            mac: mac(network, id, ifname.as_str()),
        })
    }

    /// Make it. What a killed ADD of the attachment left is made anew.
    pub fn create(&self, kernel: &mut Kernel, mtu: u32) -> Result<Link> {
        for name in self.names {
            match kernel.link(name)? {
                Some(link) if link.mac == Some(self.mac) => _ = kernel.delete_link(link.index)?,
                Some(_) => continue,
                None => {}
            }
            if kernel.create_ifb(name, self.mac, mtu)? {
                return kernel.existing_link(name);
            }
        }
        let [first, second] = self.names;
        Err(Error::internal(format_args!("ifb: both {first} and {second} belong to other attachments")))
    }

    /// It, or the one that the reference plugin made, whose MAC is random.
    pub fn find(&self, kernel: &mut Kernel) -> Result<Option<Link>> {
        let mut foreign = None;
        for name in self.names {
            match kernel.link(name)? {
                Some(link) if link.mac == Some(self.mac) => return Ok(Some(link)),
                Some(link) if name == self.names[0] && !is_of(self.mac, &link) => foreign = Some(link),
                _ => {}
            }
        }
        Ok(foreign)
    }
}

/// The IFBs of a network that belong to none of these attachments.
pub fn stale<'a>(
    kernel: &mut Kernel,
    network: &str,
    valid: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Link>> {
    let of_network = mac(network, "", "");
    let valid: Vec<_> = valid.map(|(id, ifname)| Some(mac(network, id, ifname))).collect();
    let mut links = kernel.links()?;
    links.retain(|link| {
        link.is_ifb && link.name.starts_with(PREFIX) && is_of(of_network, link) && !valid.contains(&link.mac)
    });
    Ok(links)
}

fn mac(network: &str, container_id: &str, ifname: &str) -> Mac {
    let network = Sha512::digest(network);
    let attachment = Sha512::digest(format!("{container_id}:{ifname}"));
    let [a, b, c] = [network[0], network[1], network[2]];
    // Locally administered, unicast.
    Mac([a & 0xfc | 0x02, b, c, attachment[0], attachment[1], attachment[2]])
}

fn is_of(network: Mac, link: &Link) -> bool {
    link.mac.is_some_and(|mac| mac.0[..3] == network.0[..3])
}
