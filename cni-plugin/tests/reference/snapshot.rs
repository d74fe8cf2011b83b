//! What there is to see of a host and its containers: links, addresses, routes,
//! sysctls, queueing, firewall rules, files. One line a thing, so that two
//! snapshots can be told apart by their lines.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use netns_harness::{Lab, Netns};
use serde_json::{Map, Value, json};

/// `host link cni0` to what it is like.
pub type Snapshot = BTreeMap<String, Value>;

/// Links as the kernel makes them, by kind: only what differs from these tells
/// of a plugin.
pub struct Fresh(BTreeMap<String, Map<String, Value>>);

impl Fresh {
    pub fn new(lab: &Lab) -> Fresh {
        lab.switch()
            .ip_batch(&[
                "link add fresh-bridge type bridge",
                "link add fresh-veth type veth peer name fresh-port",
                "link set fresh-port master fresh-bridge",
                "link add fresh-ifb type ifb",
            ])
            .unwrap();
        let links = lab.switch().ip_json("-d link").unwrap();
        let fresh = |link: &Value| link["ifname"].as_str().unwrap().starts_with("fresh-");
        let links = links.as_array().unwrap().iter().filter(|link| fresh(link));
        Fresh(links.map(|link| (kind(link), flat(link))).collect())
    }

    fn differing(&self, link: &Value) -> Map<String, Value> {
        let mut keys = flat(link);
        if let Some(fresh) = self.0.get(&kind(link)) {
            keys.retain(|key, value| fresh.get(key) != Some(value));
        }
        keys
    }
}

pub fn of_namespace(label: &str, netns: &Netns, fresh: &Fresh) -> Snapshot {
    let mut seen = Snapshot::new();
    let links = netns.ip_json("-d link").unwrap();
    let links = links.as_array().unwrap();
    let ports: Vec<&Value> = links.iter().filter(|l| !l["master"].is_null()).map(|l| &l["address"]).collect();
    for link in links {
        let mut keys = fresh.differing(link);
        // Without an address of its own a bridge has that of the lowest port.
        if kind(link) == "bridge" && ports.contains(&&link["address"]) {
            keys.insert("address".into(), json!("MAC of a port"));
        }
        seen.insert(format!("{label} link {}", text(link, "ifname")), keys.into());
    }
    addresses(label, netns, &mut seen);
    routes(label, netns, &mut seen);
    vlans(label, netns, &mut seen);
    queueing(label, netns, &mut seen);
    for (key, value) in netns.enter(sysctls).unwrap() {
        seen.insert(format!("{label} sysctl {key}"), json!(value));
    }
    seen
}

pub fn of_rules(host: &Netns) -> Snapshot {
    let mut seen = Snapshot::new();
    for tool in ["iptables", "ip6tables"] {
        iptables(tool, &host.run(&format!("{tool}-save"), [""; 0]).unwrap(), &mut seen);
    }
    let tables: Value = serde_json::from_str(&host.run("nft", ["-j", "list", "tables"]).unwrap()).unwrap();
    for table in tables["nftables"].as_array().unwrap().iter().map(|object| &object["table"]) {
        let (family, name) = (text(table, "family"), text(table, "name"));
        // Those of iptables are seen above.
        if table.is_null() || (family.starts_with("ip") && ["filter", "nat", "mangle", "raw"].contains(&name))
        {
            continue;
        }
        nftables(
            &format!("nft {family} {name}"),
            &host.run("nft", ["list", "table", family, name]).unwrap(),
            &mut seen,
        );
    }
    seen
}

/// Everything below the folder, by its path there: mode and content.
pub fn of_files(root: &Path) -> Snapshot {
    let mut seen = Snapshot::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mode = format!("{:03o}", meta.permissions().mode() & 0o7777);
            let name = path.strip_prefix(root).unwrap().display();
            if meta.is_dir() {
                seen.insert(format!("file {name}/"), json!(mode));
                folders.push(path);
            } else if meta.is_file() {
                let content = fs::read_to_string(&path).unwrap();
                let mut content = serde_json::from_str(&content).unwrap_or_else(|_| json!(content));
                // tuning keeps the MAC that a container's end was made with.
                if content["mac"].is_string() {
                    content["mac"] = json!("a MAC");
                }
                seen.insert(format!("file {name}"), json!([mode, content]));
            }
        }
    }
    seen
}

/// With what stands on a bridge told from what does not.
fn kind(link: &Value) -> String {
    let slave = link["linkinfo"]["info_slave_kind"].as_str().unwrap_or_default();
    format!(
        "{}{}",
        link["linkinfo"]["info_kind"].as_str().unwrap_or_default(),
        if slave.is_empty() { "" } else { "/port" }
    )
}

/// A link's settings by dotted names, without what the kernel counts, times or
/// learns: numbers of links and ports, timers, carrier.
fn flat(link: &Value) -> Map<String, Value> {
    const LEFT_OUT: [&str; 23] = [
        // By it we tell our own.
        "group",
        "ifindex",
        "ifname",
        "link",
        "link_index",
        "link_netnsid",
        "operstate",
        "qdisc",
        "bridge_id",
        "root_id",
        "root_port",
        "root_path_cost",
        "designated_port",
        "designated_cost",
        "id",
        "no",
        "topology_change",
        "topology_change_ack",
        "topology_change_detected",
        "config_pending",
        "gc_timer",
        "hello_timer",
        "cost",
    ];
    let mut out = Map::new();
    let mut rest: Vec<(String, &Value)> = vec![(String::new(), link)];
    while let Some((prefix, value)) = rest.pop() {
        let Some(object) = value.as_object() else {
            out.insert(prefix, value.clone());
            continue;
        };
        for (key, value) in object {
            if LEFT_OUT.contains(&key.as_str()) || key.ends_with("_timer") {
                continue;
            }
            let dotted = key.trim_start_matches("info_slave_data").trim_start_matches("info_data");
            let dotted = if prefix.is_empty() || prefix == "linkinfo" {
                dotted.to_owned()
            } else {
                format!("{prefix}.{dotted}")
            };
            rest.push((dotted.trim_matches('.').to_owned(), value));
        }
    }
    if let Some(flags) = out.get_mut("flags").and_then(Value::as_array_mut) {
        flags.retain(|flag| !["LOWER_UP", "NO-CARRIER", "M-DOWN"].iter().any(|passing| flag == passing));
    }
    out
}

fn addresses(label: &str, netns: &Netns, seen: &mut Snapshot) {
    for link in netns.ip_json("addr").unwrap().as_array().unwrap() {
        for address in link["addr_info"].as_array().unwrap() {
            if address["scope"] == "link" {
                continue;
            }
            let key = format!(
                "{label} addr {} {}/{}",
                text(link, "ifname"),
                text(address, "local"),
                address["prefixlen"]
            );
            let mut kept = address.as_object().unwrap().clone();
            // The bridge's proves nothing with ours: its accept_dad is 0.
            if label == "host" {
                kept.remove("nodad");
            }
            kept.retain(|key, _| {
                !["family", "local", "prefixlen", "tentative", "valid_life_time", "preferred_life_time"]
                    .contains(&key.as_str())
            });
            seen.insert(key, kept.into());
        }
    }
}

fn routes(label: &str, netns: &Netns, seen: &mut Snapshot) {
    for family in ["-4", "-6"] {
        for route in netns.ip_json(&format!("{family} route")).unwrap().as_array().unwrap() {
            let dst = text(route, "dst");
            if dst.starts_with("fe80:") {
                continue;
            }
            let dst = if dst == "default" { format!("default {family}") } else { dst.to_owned() };
            let mut kept = route.as_object().unwrap().clone();
            kept.retain(|key, _| !["dst", "flags"].contains(&key.as_str()));
            let key = format!("{label} route {dst} dev {}", text(route, "dev"));
            let list = seen.entry(key).or_insert_with(|| json!([]));
            list.as_array_mut().unwrap().push(kept.into());
        }
    }
}

fn vlans(label: &str, netns: &Netns, seen: &mut Snapshot) {
    for port in netns.bridge_json("vlan show").unwrap().as_array().unwrap() {
        seen.insert(format!("{label} vlan {}", text(port, "ifname")), port["vlans"].clone());
    }
}

fn queueing(label: &str, netns: &Netns, seen: &mut Snapshot) {
    let qdiscs = netns.run("tc", ["-j", "qdisc", "show"]).unwrap();
    let qdiscs: Value = serde_json::from_str(&qdiscs).unwrap_or_default();
    for qdisc in qdiscs.as_array().into_iter().flatten() {
        let (dev, kind) = (text(qdisc, "dev"), text(qdisc, "kind"));
        if qdisc["handle"] == "0:" {
            continue; // the kernel's own
        }
        let mut kept = qdisc.as_object().unwrap().clone();
        kept.retain(|key, _| !["dev", "kind", "refcnt"].contains(&key.as_str()));
        seen.insert(format!("{label} qdisc {dev} {kind}"), kept.into());
        let parent = if qdisc["root"] == true { "root" } else { kind };
        let filters = netns.run("tc", ["filter", "show", "dev", dev, parent]).unwrap();
        let lines: Vec<String> =
            filters.lines().map(|line| without_counters(line.trim())).filter(|l| !l.is_empty()).collect();
        if !lines.is_empty() {
            seen.insert(format!("{label} filter {dev} {parent}"), json!(lines));
        }
    }
}

/// `index 3 ref 1 bind 1` tells of the order in which containers came.
fn without_counters(line: &str) -> String {
    if line.starts_with("index ") { String::new() } else { line.to_owned() }
}

/// Every setting of /proc/sys/net/{core,ipv4,ipv6,bridge} but those of links
/// that are as the namespace's default for links says.
fn sysctls() -> BTreeMap<String, String> {
    let root = Path::new("/proc/sys/net");
    let mut folders: Vec<_> = ["core", "ipv4", "ipv6", "bridge"].map(|name| root.join(name)).into();
    let mut seen = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                // Neighbour tables have no setting that a plugin touches.
                if !path.ends_with("neigh") {
                    folders.push(path);
                }
            } else if let Ok(value) = fs::read_to_string(&path) {
                let key = path.strip_prefix(root).unwrap().display().to_string();
                seen.insert(key, value.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
    }
    let default = |key: &str| {
        let parts: Vec<&str> = key.split('/').collect();
        match parts[..] {
            [family, "conf", link, name] if !["all", "default"].contains(&link) => {
                Some(format!("{family}/conf/default/{name}"))
            }
            _ => None,
        }
    };
    let values = seen.clone();
    seen.retain(|key, value| {
        let as_default = default(key).is_some_and(|default| values.get(&default) == Some(value));
        // The first follows the link's MTU, the second the kernel draws.
        !as_default && !key.ends_with("/mtu") && !key.ends_with("/stable_secret")
    });
    seen
}

/// The chains of `iptables-save`, each with its rules in order.
fn iptables(tool: &str, saved: &str, seen: &mut Snapshot) {
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let (chain, policy) = chain.split_once(' ').unwrap();
            if policy.starts_with('-') {
                seen.insert(format!("{tool} {table} {chain}"), json!([]));
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap();
            let list = seen.entry(format!("{tool} {table} {chain}")).or_insert_with(|| json!([]));
            list.as_array_mut().unwrap().push(json!(rule));
        }
    }
}

/// The chains, sets and maps of one table as nft lists it, each with its lines.
fn nftables(table: &str, listed: &str, seen: &mut Snapshot) {
    seen.insert(table.to_owned(), json!("table"));
    let mut block: Option<(String, Vec<&str>)> = None;
    for line in listed.lines() {
        match &mut block {
            None if line.starts_with('\t') => {
                block = Some((format!("{table} {}", line.trim().trim_end_matches(" {")), Vec::new()));
            }
            Some(_) if line == "\t}" => {
                seen.extend(block.take().map(|(key, lines)| (key, json!(lines))));
            }
            Some((_, lines)) => lines.push(line.trim()),
            None => {}
        }
    }
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// What changed between two: the new value of each thing, null where it is gone.
/// Settings go with their link, which says enough.
pub fn changes(before: &Snapshot, after: &Snapshot) -> Snapshot {
    let gone = before.keys().filter(|key| !after.contains_key(*key) && !key.contains(" sysctl "));
    let new = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let new = new.map(|(key, value)| (key.clone(), value.clone()));
    gone.map(|key| (key.clone(), Value::Null)).chain(new).collect()
}
