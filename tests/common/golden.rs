//! One scene that a flanneld and a weft both play, and a picture of the state
//! it ends in: kernel, files and store, without what chance or the kernel's
//! counters decide.
//!
//! One host is real; its peers are records in the store, so that all of their
//! addresses are known. The host's subnet is pinned by a lease made for it or by
//! a subnet file.

use std::path::PathBuf;
use std::time::Duration;

use netns_harness::{Daemon, Host, wait_until};
use serde_json::{Map, Value, json};

use crate::stage::{PREFIX, SOON, Stage};

pub struct Scene {
    pub name: &'static str,
    config: &'static str,
    /// The host's own key below `subnets/`.
    own: &'static str,
    /// What is in the store under it, the `VtepMAC`s as drawn by chance.
    lease: Option<&'static str>,
    /// The subnet file that an earlier run left.
    subnet_env: Option<&'static str>,
    /// What both daemons are called with besides.
    pub args: &'static [&'static str],
    peers: [(&'static str, &'static str); 3],
}

/// The first peer leaves during the scene, the second moves, the third joins; with
/// vxlan it is behind a router.
pub const SCENES: [Scene; 10] = [
    Scene { name: "vxlan", config: r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#, ..VXLAN },
    Scene {
        name: "vxlan-options",
        config: r#"{"Network":"10.42.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1,"Port":4789,"MTU":1400,"GBP":true}}"#,
        ..VXLAN
    },
    Scene {
        name: "vxlan-direct",
        config: r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
        ..VXLAN
    },
    Scene {
        name: "vxlan-dual",
        config: r#"{"EnableIPv6":true,"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#,
        own: "10.42.1.0-24&fd42:0:0:1::-64",
        subnet_env: None,
        args: &[],
        lease: Some(
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":"fd77::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:01"}}"#,
        ),
        peers: [
            (
                "10.42.2.0-24&fd42:0:0:2::-64",
                r#"{"PublicIP":"192.168.77.2","PublicIPv6":"fd77::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}}"#,
            ),
            (
                "10.42.3.0-24&fd42:0:0:3::-64",
                r#"{"PublicIP":"192.168.77.3","PublicIPv6":"fd77::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:03"}}"#,
            ),
            (
                "10.42.4.0-24&fd42:0:0:4::-64",
                r#"{"PublicIP":"192.168.78.4","PublicIPv6":"fd77:1::4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:04"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:04"}}"#,
            ),
        ],
    },
    Scene {
        name: "host-gw",
        config: r#"{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}"#,
        own: "10.42.1.0-24",
        subnet_env: None,
        args: &[],
        lease: Some(r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"host-gw"}"#),
        peers: [
            ("10.42.2.0-24", r#"{"PublicIP":"192.168.77.2","PublicIPv6":null,"BackendType":"host-gw"}"#),
            ("10.42.3.0-24", r#"{"PublicIP":"192.168.77.3","PublicIPv6":null,"BackendType":"host-gw"}"#),
            ("10.42.4.0-24", r#"{"PublicIP":"192.168.77.4","PublicIPv6":null,"BackendType":"host-gw"}"#),
        ],
    },
    Scene { name: "host-gw-dual", ..DUAL },
    Scene { name: "masquerade", args: &["-ip-masq"], ..DUAL },
    Scene {
        name: "masquerade-nftables",
        config: r#"{"EnableNFTables":true,"EnableIPv6":true,"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"host-gw"}}"#,
        args: &["-ip-masq"],
        ..DUAL
    },
    Scene { name: "no-forward", args: &["-iptables-forward-rules=false"], ..DUAL },
    // Without a lease of its own: the subnet file says what it had.
    Scene {
        name: "vxlan-returning",
        config: r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#,
        lease: None,
        subnet_env: Some(
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        ),
        ..VXLAN
    },
];

const VXLAN: Scene = Scene {
    name: "",
    config: "",
    own: "10.42.1.0-24",
    subnet_env: None,
    args: &[],
    lease: Some(
        r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#,
    ),
    peers: [
        (
            "10.42.2.0-24",
            r#"{"PublicIP":"192.168.77.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}"#,
        ),
        (
            "10.42.3.0-24",
            r#"{"PublicIP":"192.168.77.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}}"#,
        ),
        (
            "10.42.4.0-24",
            r#"{"PublicIP":"192.168.78.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:04"}}"#,
        ),
    ],
};

const DUAL: Scene = Scene {
    name: "",
    config: r#"{"EnableIPv6":true,"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"host-gw"}}"#,
    own: "10.42.1.0-24&fd42:0:0:1::-64",
    subnet_env: None,
    args: &[],
    lease: Some(r#"{"PublicIP":"192.168.77.1","PublicIPv6":"fd77::1","BackendType":"host-gw"}"#),
    peers: [
        (
            "10.42.2.0-24&fd42:0:0:2::-64",
            r#"{"PublicIP":"192.168.77.2","PublicIPv6":"fd77::2","BackendType":"host-gw"}"#,
        ),
        (
            "10.42.3.0-24&fd42:0:0:3::-64",
            r#"{"PublicIP":"192.168.77.3","PublicIPv6":"fd77::3","BackendType":"host-gw"}"#,
        ),
        (
            "10.42.4.0-24&fd42:0:0:4::-64",
            r#"{"PublicIP":"192.168.77.4","PublicIPv6":"fd77::4","BackendType":"host-gw"}"#,
        ),
    ],
};

/// The recording of a flanneld's node.
pub fn file(scene: &Scene) -> PathBuf {
    PathBuf::from(format!("{}/tests/golden/flanneld/{}.json", env!("CARGO_MANIFEST_DIR"), scene.name))
}

/// Two peers are there at the start, one joins, one leaves, one moves to another
/// address. `start` runs the
/// daemon under test; its subnet file is `subnet.env` in the host's folder.
pub fn play(scene: &Scene, start: impl FnOnce(&Stage, &Host) -> Daemon) -> Value {
    let stage = Stage::new("golden");
    let host = stage.lab.host("h1").unwrap();
    stage.put("config", scene.config);
    if let Some(text) = scene.subnet_env {
        std::fs::write(host.dir().join("subnet.env"), text).unwrap();
    }
    if let Some(record) = scene.lease {
        let granted = stage.etcdctl(&["lease", "grant", "86400"]);
        let lease = granted.split_whitespace().nth(1).unwrap();
        let own = format!("{PREFIX}/subnets/{}", scene.own);
        stage.etcdctl(&["put", "--lease", lease, &own, record]);
    }
    let [leaving, staying, joining] = scene.peers;
    for (key, lease) in [leaving, staying] {
        stage.put(&format!("subnets/{key}"), lease);
    }
    let daemon = start(&stage, &host);
    let reached = |(key, _): (&str, &str), there: bool| {
        for subnet in key.split('&') {
            let routes = format!("route show {}", subnet.replace('-', "/"));
            let routes = if subnet.contains(':') { format!("-6 {routes}") } else { routes };
            let is = || host.ip_json(&routes).unwrap() != json!([]);
            if let Err(error) = wait_until(SOON, &format!("{routes}: {there}"), || is() == there) {
                panic!("{}: {error}: {}", scene.name, daemon.log_tail(30));
            }
        }
    };
    reached(leaving, true);
    reached(staying, true);
    stage.put(&format!("subnets/{}", joining.0), joining.1);
    reached(joining, true);
    let whole = settled(&stage, &host, scene);
    stage.etcdctl(&["del", &format!("{PREFIX}/subnets/{}", leaving.0)]);
    reached(leaving, false);
    let left = settled(&stage, &host, scene);
    let moved = |text: &str| {
        [("77.3\"", "77.33\""), ("::3\"", "::33\""), (":03\"", ":33\"")]
            .iter()
            .fold(text.to_owned(), |text, (old, new)| text.replace(old, new))
    };
    stage.put(&format!("subnets/{}", staying.0), &moved(staying.1));
    let arrived = || picture(&stage, &host, scene).to_string().contains("33\"");
    wait_until(SOON, "the moved peer", arrived).unwrap();
    let moved = settled(&stage, &host, scene);
    json!({ "1 three peers": whole, "2 one left": left, "3 one moved": moved })
}

/// The picture once it has been the same for half a second.
fn settled(stage: &Stage, host: &Host, scene: &Scene) -> Value {
    let mut last = picture(stage, host, scene);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(500));
        let next = picture(stage, host, scene);
        if next == last {
            return next;
        }
        last = next;
    }
    panic!("{}: still changing after 10 s: {last:#}", scene.name);
}

fn picture(stage: &Stage, host: &Host, scene: &Scene) -> Value {
    let links = host.ip_json("-d link").unwrap();
    let links = rows(&links).filter(|link| !["lo", "eth0"].contains(&text(link, "ifname")));
    let mut names: Vec<(String, String)> = Vec::new();
    let (mut link, mut fdb, mut sysctl) = (Vec::new(), Vec::new(), Map::new());
    for found in links {
        let name = text(found, "ifname").to_owned();
        let mut row = pick(found, &["ifname", "flags", "mtu", "operstate", "inet6_addr_gen_mode"]);
        row["kind"] = found["linkinfo"]["info_kind"].clone();
        row["data"] = pick(&found["linkinfo"]["info_data"], &VXLAN_DATA);
        link.push(row);
        names.push((text(found, "address").to_owned(), format!("<MAC of {name}>")));
        let entries = host.bridge_json(&format!("fdb show dev {name}")).unwrap();
        fdb.extend(rows(&entries).map(|entry| pick(entry, &["ifname", "mac", "dst", "state", "flags"])));
        for key in [format!("ipv6/conf/{name}/accept_ra"), format!("ipv4/conf/{name}/rp_filter")] {
            let value = host.run("cat", [format!("/proc/sys/net/{key}")]).unwrap();
            sysctl.insert(key, value.trim().into());
        }
    }
    let addresses = host.ip_json("addr").unwrap();
    let addr = rows(&addresses).filter(|link| text(link, "ifname") != "lo").flat_map(|link| {
        rows(&link["addr_info"]).map(|addr| {
            let mut row = pick(addr, &["family", "local", "prefixlen", "scope", "broadcast", "label"]);
            row["dev"] = link["ifname"].clone();
            // It is made from the MAC.
            if text(&row, "local").starts_with("fe80:") {
                row["local"] = "<link-local>".into();
            }
            row
        })
    });
    // Protocol and nexthop id say whose the route is, not where it leads.
    let fields = ["dst", "gateway", "dev", "flags", "scope", "metric", "prefsrc", "type"];
    let routes = [host.ip_json("route").unwrap(), host.ip_json("-6 route").unwrap()];
    let route = routes.iter().flat_map(rows).map(|route| {
        let mut row = pick(route, &fields);
        // What a route through a nexthop object says about its link's state.
        if let Some(flags) = row["flags"].as_array_mut() {
            flags.retain(|flag| flag == "onlink");
        }
        row
    });
    let neighbours = host.ip_json("neigh").unwrap();
    let neigh = rows(&neighbours)
        .filter(|row| row["state"] == json!(["PERMANENT"]))
        .map(|row| pick(row, &["dst", "dev", "lladdr", "state"]));
    let picture = json!({
        "link": sorted(link.into_iter()),
        "addr": sorted(addr),
        "route": sorted(route),
        "neigh": sorted(neigh),
        "fdb": sorted(fdb.into_iter()),
        "sysctl": sysctl,
        "subnet.env": std::fs::read_to_string(host.dir().join("subnet.env")).unwrap_or_default(),
        "store": stored(stage, scene),
        "rules": rules(host),
    });
    let text = names.iter().fold(picture.to_string(), |text, (mac, name)| text.replace(mac.as_str(), name));
    serde_json::from_str(&text).unwrap()
}

/// What iptables and nftables hold of flannel's, as the tools print it.
fn rules(host: &Host) -> Value {
    let mut rules = Map::new();
    for program in ["iptables-save", "ip6tables-save"] {
        for table in ["filter", "nat"] {
            let text = host.run(program, ["-t", table]).unwrap();
            let lines = text.lines().filter(|line| line.contains("FLANNEL") || line.starts_with(":FORWARD"));
            // Without the counters of `:CHAIN POLICY [packets:bytes]`.
            let lines = lines.map(|line| line.split(" [").next().unwrap_or_default());
            rules.insert(format!("{program} -t {table}"), lines.collect());
        }
    }
    let tables = host.run("nft", ["list", "tables"]).unwrap();
    for table in tables.lines().filter(|table| table.contains("flannel")) {
        let words: Vec<&str> = ["-s", "list"].into_iter().chain(table.split_whitespace()).collect();
        rules.insert(format!("nft {}", words.join(" ")), host.run("nft", &words).unwrap().lines().collect());
    }
    Value::Object(rules)
}

/// The node's own key as it is in the store, and for how long its lease was
/// granted.
fn stored(stage: &Stage, scene: &Scene) -> Value {
    let key = format!("{PREFIX}/subnets/{}", scene.own);
    let value = stage.etcdctl(&["get", "--print-value-only", &key]);
    let found: Value = serde_json::from_str(&stage.etcdctl(&["get", "-w", "json", &key])).unwrap();
    let lease = format!("{:x}", found["kvs"][0]["lease"].as_u64().unwrap_or_default());
    let alive = stage.etcdctl(&["lease", "timetolive", &lease, "-w", "json"]);
    let alive: Value = serde_json::from_str(&alive).unwrap();
    json!({ "key": key, "value": value, "granted ttl": alive["granted-ttl"] })
}

const VXLAN_DATA: [&str; 15] = [
    "id", "link", "local", "local6", "port", "learning", "proxy", "rsc", "l2miss", "l3miss", "ageing", "gbp",
    "ttl", "udp_csum", "group",
];

fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten().filter(|row| row.as_object().is_some_and(|row| !row.is_empty()))
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn pick(row: &Value, keys: &[&str]) -> Value {
    let found = keys.iter().filter_map(|key| Some(((*key).to_owned(), row.get(key)?.clone())));
    Value::Object(found.collect())
}

fn sorted(rows: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut rows: Vec<Value> = rows.collect();
    rows.sort_by_key(Value::to_string);
    rows
}
