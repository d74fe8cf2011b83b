//! What an interface was before: a file that DEL restores it from, of the
//! reference plugin's name and form. The network in it is our addition, by which
//! GC knows which files are its own.

use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::chain::{Site, Valid};
use crate::kernel::settings::Settings;
use crate::protocol::error::{Error, Result};
use crate::records::Records;

#[derive(Debug)]
pub struct Backup<'a> {
    records: &'a Records,
    site: &'a Site,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Content {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_len: Option<u32>,
    network: String,
}

impl<'a> Backup<'a> {
    pub fn of(records: &'a Records, site: &'a Site) -> Backup<'a> {
        Backup { records, site }
    }

    pub fn save(&self, settings: &Settings) -> Result<()> {
        let content = Content {
            mac: settings.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            promisc: settings.promiscuous,
            mtu: settings.mtu,
            allmulti: settings.all_multicast,
            tx_queue_len: settings.tx_queue_len,
            network: self.site.network.clone(),
        };
        let mut text = Vec::new();
        content
            .serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" ")))
            .map_err(Error::internal)?;
        self.records.put(&self.name(), &text)
    }

    /// A file that cannot be read as a backup counts as none.
    pub fn load(&self) -> Result<Option<Settings>> {
        let Some(bytes) = self.records.get(&self.name())? else { return Ok(None) };
        Ok(serde_json::from_slice::<Content>(&bytes).ok().map(|content| Settings {
            mac: content.mac.parse().ok(),
            promiscuous: content.promisc,
            mtu: content.mtu.filter(|mtu| *mtu > 0),
            all_multicast: content.allmulti,
            tx_queue_len: content.tx_queue_len,
        }))
    }

    pub fn remove(&self) -> Result<()> {
        self.records.remove(&self.name())
    }

    fn name(&self) -> String {
        name(&self.site.request.container_id, self.site.request.ifname.as_str())
    }
}

/// Remove the backups of a network's attachments that are gone.
pub fn collect_garbage(records: &Records, network: &str, valid: &Valid) -> Result<()> {
    records.sweep()?;
    let valid: Vec<_> = valid.iter().map(|(id, ifname)| name(id, ifname)).collect();
    for name in records.names()?.iter().filter(|name| !valid.contains(name)) {
        let content = records.get(name)?.and_then(|bytes| serde_json::from_slice::<Content>(&bytes).ok());
        if content.is_some_and(|content| content.network == network) {
            records.remove(name)?;
        }
    }
    Ok(())
}

fn name(container_id: &str, ifname: &str) -> String {
    format!("{container_id}_{ifname}")
}
