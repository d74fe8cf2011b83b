//! Records as people and programs see them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::model::{Lease, SubnetKey};
use crate::subnet::StoredLease;
use crate::subnet::store::{BadRecord, TimeLeft};

/// A record as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// The store's name of it: `10.5.1.0-24`.
    pub key: String,
    pub subnets: Vec<String>,
    pub public_ips: Vec<String>,
    pub backend: String,
    /// `leased`, `reserved` or `broken`.
    pub state: &'static str,
    /// Seconds; absent for a reservation.
    pub expires_in: Option<u64>,
    pub this_node: bool,
    /// What is wrong with it.
    pub reason: Option<String>,
}

pub(super) fn row(stored: &StoredLease, time: Option<TimeLeft>, own: &BTreeSet<IpAddr>) -> Row {
    let StoredLease { lease: Lease { key, attrs }, lease_id, .. } = stored;
    Row {
        key: key.to_string(),
        subnets: key.nets().map(|(_, net)| net.to_string()).collect(),
        public_ips: attrs.public_ip.iter().map(|(_, ip)| ip.to_string()).collect(),
        backend: attrs.backend_type.to_string(),
        state: if lease_id.is_some() { "leased" } else { "reserved" },
        expires_in: lease_id.map(|_| time.map_or(0, |time| time.left.as_secs())),
        this_node: attrs.public_ip.iter().any(|(_, ip)| own.contains(ip)),
        reason: None,
    }
}

pub(super) fn broken(bad: &BadRecord) -> Row {
    Row {
        key: bad.key.clone(),
        subnets: bad.subnet.iter().flat_map(SubnetKey::nets).map(|(_, net)| net.to_string()).collect(),
        public_ips: Vec::new(),
        backend: String::new(),
        state: "broken",
        expires_in: None,
        this_node: false,
        reason: Some(bad.reason.clone()),
    }
}

pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["subnet", "node", "backend", "state", ""]);
    for row in rows {
        let subnets = if row.subnets.is_empty() { row.key.clone() } else { row.subnets.join(", ") };
        let state = match row.expires_in {
            Some(seconds) => format!("{}, {} left", row.state, duration(seconds)),
            None => row.state.to_owned(),
        };
        let remark = row.reason.clone().unwrap_or_else(|| match row.this_node {
            true => "this node".to_owned(),
            false => String::new(),
        });
        table.add_row([subnets, row.public_ips.join(", "), row.backend.clone(), state, remark]);
    }
    table
}

/// `23 h 59 min`
pub(super) fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s} s"),
        (h, min, _) => format!("{h} h {min} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!([59, 61, 86_399].map(duration), ["59 s", "1 min 1 s", "23 h 59 min"]);
    }
}
