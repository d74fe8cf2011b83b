//! Whose the rules of an address are: a rule itself does not tell, since it has to
//! be the reference plugin's to the letter. One file an address, written before
//! its rules. So DEL does not take the rules of an address that has gone to
//! another container, and finds its own without ADD's result; and GC can tell.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::chain::{Site, Valid};
use crate::kernel::netns::NetNs;
use crate::protocol::error::{Error, Result};
use crate::records::Records;

#[derive(Debug)]
pub struct Owners {
    records: Records,
    /// Rules belong to a network namespace, and several may share /run.
    netns: u64,
}

/// An attachment, and where it let the address through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    network: String,
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
    /// firewalld's zone; none if the rules are iptables'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl Owner {
    pub fn of(site: &Site, zone: Option<String>) -> Owner {
        Owner {
            network: site.network.clone(),
            container_id: site.request.container_id.clone(),
            ifname: site.request.ifname.to_string(),
            zone,
        }
    }

    pub fn is(&self, site: &Site) -> bool {
        *self == Owner::of(site, self.zone.clone())
    }
}

impl Owners {
    pub fn at(dir: &str) -> Result<Owners> {
        Ok(Owners { records: Records::at(dir), netns: NetNs::own_inode()? })
    }

    pub fn put(&self, address: IpAddr, owner: &Owner) -> Result<()> {
        self.records.put(&self.name(address), &serde_json::to_vec(owner).map_err(Error::internal)?)
    }

    /// A file that does not say counts as none.
    pub fn get(&self, address: IpAddr) -> Result<Option<Owner>> {
        Ok(self.records.get(&self.name(address))?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub fn remove(&self, address: IpAddr) -> Result<()> {
        self.records.remove(&self.name(address))
    }

    /// The addresses of one attachment.
    pub fn of(&self, site: &Site) -> Result<Vec<(IpAddr, Owner)>> {
        self.all(|owner| owner.is(site))
    }

    /// The addresses of a network's attachments that are gone.
    pub fn stale(&self, network: &str, valid: &Valid) -> Result<Vec<(IpAddr, Owner)>> {
        self.records.sweep()?;
        self.all(|owner| owner.network == network && !valid.contains(&owner.container_id, &owner.ifname))
    }

    fn all(&self, wanted: impl Fn(&Owner) -> bool) -> Result<Vec<(IpAddr, Owner)>> {
        let mut found = Vec::new();
        for name in self.records.names()? {
            let Some((netns, address)) = name.split_once('-') else { continue };
            let (Ok(netns), Ok(address)) = (netns.parse::<u64>(), address.parse()) else { continue };
            if netns == self.netns {
                found.extend(self.get(address)?.filter(&wanted).map(|owner| (address, owner)));
            }
        }
        Ok(found)
    }

    fn name(&self, address: IpAddr) -> String {
        format!("{}-{address}", self.netns)
    }
}
