//! Who may send encapsulated packets here: leased peers, and nobody else. One
//! table of nftables that is ours alone, as a script and as `nft --json` lists it
//! (libnftables-json(5)).
//!
//! A rule names the tunnel's own port and VNI, so whatever else uses the port on
//! this host is not concerned. It stands where packets for the host itself come
//! in, before connection tracking has stored anything of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::backends::{Encapsulation, Peers};
use crate::model::Family;

/// The family's word and the name of our table.
pub const TABLE: (&str, &str) = ("inet", "weft-guard");
/// `raw`, before others look.
const PRIORITY: i64 = -300;
/// Elements a line: nft reads lines as long as they come, people do not.
const PER_LINE: usize = 64;

/// The addresses that peers of this kind publish: what their packets come from.
pub fn addresses(peers: &Peers, kind: &str) -> BTreeSet<IpAddr> {
    let peers = peers.iter().filter(|(_, attrs)| attrs.backend_type == kind);
    peers.flat_map(|(_, attrs)| attrs.public_ip.iter().map(|(_, ip)| *ip)).collect()
}

/// The script that makes our table anew, in one transaction: at no moment are
/// there fewer rules or fewer addresses than before or after.
pub fn whole(tunnel: Encapsulation, addresses: &BTreeSet<IpAddr>) -> String {
    let (family, name) = TABLE;
    let Encapsulation { port, vni } = tunnel;
    let mut script = format!("add table {family} {name}\ndelete table {family} {name}\n");
    let _ = writeln!(script, "add table {family} {name}");
    for family_of in Family::BOTH {
        let (set, kind, _) = words(family_of);
        let _ = writeln!(script, "add set {family} {name} {set} {{ type {kind} ; }}");
    }
    let _ = writeln!(
        script,
        "add chain {family} {name} input {{ type filter hook input priority {PRIORITY} ; policy accept ; }}"
    );
    for family_of in Family::BOTH {
        let (set, _, protocol) = words(family_of);
        let _ = writeln!(
            script,
            "add rule {family} {name} input udp dport {port} @th,96,24 {vni} {protocol} saddr != @{set} counter drop"
        );
    }
    script + &elements("add", &addresses.iter())
}

/// The script that changes just the addresses; `None` where they are the same.
pub fn change(from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> Option<String> {
    let script = elements("add", &to.difference(from)) + &elements("delete", &from.difference(to));
    (!script.is_empty()).then_some(script)
}

/// What nft lists of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// All but the addresses and what the kernel counts and numbers: two that are
    /// equal mean the same.
    pub rules: String,
    pub addresses: BTreeSet<IpAddr>,
    /// Packets dropped since the rules were written.
    pub dropped: u64,
}

impl Listed {
    /// `None` where there is something that we never put there.
    pub fn parse(listed: &Value) -> Option<Listed> {
        let (mut rules, mut dropped) = (Vec::new(), 0);
        let mut addresses = BTreeSet::new();
        for entry in listed["nftables"].as_array()?.iter().filter(|entry| entry["metainfo"].is_null()) {
            let mut entry = entry.clone();
            for object in entry.as_object_mut()?.values_mut() {
                let object = object.as_object_mut()?;
                object.remove("handle");
                for element in object.remove("elem").iter().flat_map(Value::as_array).flatten() {
                    addresses.insert(element.as_str()?.parse().ok()?);
                }
                let expressions = object.get_mut("expr").and_then(Value::as_array_mut);
                for counter in expressions.into_iter().flatten().filter_map(|e| e.get_mut("counter")) {
                    dropped += counter["packets"].as_u64().unwrap_or(0);
                    *counter = Value::Null;
                }
            }
            rules.push(entry.to_string());
        }
        Some(Listed { rules: rules.join("\n"), addresses, dropped })
    }

    /// How nft lists what `whole` writes.
    pub fn expected(tunnel: Encapsulation) -> String {
        let (family, name) = TABLE;
        let mut all = vec![json!({"table": {"family": family, "name": name}})];
        all.extend(Family::BOTH.map(|of| {
            let (set, kind, _) = words(of);
            json!({"set": {"family": family, "name": set, "table": name, "type": kind}})
        }));
        all.push(json!({"chain": {"family": family, "table": name, "name": "input", "type": "filter",
            "hook": "input", "prio": PRIORITY, "policy": "accept"}}));
        all.extend(Family::BOTH.map(|of| {
            let (set, _, protocol) = words(of);
            let is =
                |op, left, right| json!({"match": {"op": op, "left": {"payload": left}, "right": right}});
            json!({"rule": {"family": family, "table": name, "chain": "input", "expr": [
                is("==", json!({"protocol": "udp", "field": "dport"}), json!(tunnel.port)),
                is("==", json!({"base": "th", "offset": 96, "len": 24}), json!(tunnel.vni)),
                is("!=", json!({"protocol": protocol, "field": "saddr"}), json!(format!("@{set}"))),
                {"counter": null},
                {"drop": null},
            ]}})
        }));
        all.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
    }
}

fn elements<'a>(verb: &str, addresses: &(impl Iterator<Item = &'a IpAddr> + Clone)) -> String {
    let (family, name) = TABLE;
    let mut script = String::new();
    for of in Family::BOTH {
        let (set, _, _) = words(of);
        let addresses = addresses.clone().filter(|ip| Family::of(**ip) == of);
        for (at, ip) in addresses.enumerate() {
            let _ = match at {
                0 => write!(script, "{verb} element {family} {name} {set} {{ {ip}"),
                _ if at % PER_LINE == 0 => write!(script, ",\\\n{ip}"),
                _ => write!(script, ",{ip}"),
            };
        }
        if !script.is_empty() && !script.ends_with('\n') {
            script += " }\n";
        }
    }
    script
}

/// The set's name, its type, and the protocol whose source it holds.
fn words(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => ("peers4", "ipv4_addr", "ip"),
        Family::V6 => ("peers6", "ipv6_addr", "ip6"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_changed_and_nothing_else() {
        let set = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let (before, after) =
            (set(&["10.0.0.1", "10.0.0.2", "fd00::1"]), set(&["10.0.0.2", "10.0.0.3", "fd00::1"]));
        let script = change(&before, &after).unwrap();
        assert_eq!(
            script,
            "add element inet weft-guard peers4 { 10.0.0.3 }\ndelete element inet weft-guard peers4 { 10.0.0.1 }\n"
        );
        assert_eq!(change(&after, &after), None);
    }

    #[test]
    fn what_is_not_ours_is_no_listing_of_ours() {
        let range = json!({"nftables": [{"set": {"elem": [{"range": ["10.0.0.1", "10.0.0.9"]}]}}]});
        assert_eq!(Listed::parse(&range), None);
    }
}
