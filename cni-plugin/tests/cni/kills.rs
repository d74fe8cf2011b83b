//! Nobody calls DEL for what was killed: GC alone has to tell it from what is in
//! use, with every feature that leaves something on the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use netns_harness::{Netns, wait_until};
use serde_json::{Value, json};

use crate::node::{Node, Outcome, V4, files, names, run};

const KILLS: u32 = 200;

#[test]
fn after_two_hundred_kills_gc_leaves_what_is_valid_and_nothing_else() {
    gc_leaves_what_is_valid("cni-kills", |dir| {
        let mut plugin = flannel(dir);
        plugin["type"] = json!("weft");
        vec![plugin]
    });
}

/// Each plugin a process, and portmap with its other backend.
#[test]
fn after_two_hundred_kills_of_the_classic_chain_gc_leaves_what_is_valid_and_nothing_else() {
    gc_leaves_what_is_valid("cni-killchain", |dir| {
        vec![
            flannel(dir),
            json!({ "type": "tuning", "mtu": 1300, "dataDir": dir.join("tuning") }),
            json!({ "type": "bandwidth" }),
            json!({ "type": "firewall", "ingressPolicy": "same-bridge", "dataDir": dir.join("firewall") }),
            json!({ "type": "portmap", "backend": "iptables" }),
        ]
    });
}

fn flannel(dir: &Path) -> Value {
    json!({
        "type": "flannel",
        "subnetFile": dir.join("subnet.env"),
        "dataDir": dir.join("flannel"),
        "ipam": { "dataDir": dir.join("networks") },
        "delegate": { "hairpinMode": true, "isDefaultGateway": true, "macspoofchk": true },
    })
}

fn gc_leaves_what_is_valid(label: &str, plugins: impl Fn(&Path) -> Vec<Value>) {
    let node = Node::new(label, &V4.replace("IPMASQ=true", "IPMASQ=false"));
    let chain = Chain { node: &node, plugins: plugins(node.host.dir()) };
    let valid: Vec<_> = (0..8)
        .map(|n| {
            let (id, port) = (format!("valid{n}"), 9000 + n);
            let pod = node.pod(&id);
            let result = chain.add(&id, &pod, port);
            (id, pod, port, result)
        })
        .collect();
    let before = OnHost::of(&node);
    // By a slow one most kills would come too late.
    let (usual_add, usual_del) = (0..3).fold((Duration::MAX, Duration::MAX), |(add, del), n| {
        let (id, port) = (format!("warm{n}"), 9900 + n);
        let pod = node.pod(&id);
        let start = Instant::now();
        let result = chain.add(&id, &pod, port);
        let added = start.elapsed();
        chain.call("DEL", &Container { id: &id, pod: &pod, port }, &result, None).unwrap().result();
        (add.min(added), del.min(start.elapsed() - added))
    });
    assert_eq!(OnHost::of(&node), before, "ADD and DEL without a kill");

    let mut chance = 0x5eed_u64;
    let mut killed = 0;
    for n in 0..KILLS {
        // Numerical Recipes' generator: the moments are spread, not secret.
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % (1 << 32);
        let (id, port) = (format!("k{n}"), 10_000 + n);
        let pod = node.pod(&id);
        let container = Container { id: &id, pod: &pod, port };
        let (verb, usual, result) = match n % 2 {
            0 => ("ADD", usual_add, Value::Null),
            _ => ("DEL", usual_del, chain.add(&id, &pod, port)),
        };
        let moment = usual.mul_f64(chance as f64 / (1_u64 << 32) as f64 * 1.2);
        killed += u32::from(chain.call(verb, &container, &result, Some(moment)).is_none());
        // Some containers are gone when GC comes, some are not.
        if n % 3 == 0 {
            pod.remove().unwrap();
        }
    }
    println!("{killed} of {KILLS} were caught in the middle");
    assert!(killed >= KILLS / 4, "only {killed} of {KILLS} were caught in the middle");

    chain.gc(valid.iter().map(|(id, ..)| id));
    let same = || OnHost::of(&node) == before;
    if wait_until(Duration::from_secs(5), "the kernel to empty removed namespaces", same).is_err() {
        let now = OnHost::of(&node);
        let (more, less) = (&now.0 - &before.0, &before.0 - &now.0);
        panic!("left over: {more:#?}, missing: {less:#?}");
    }
    for (id, pod, port, result) in &valid {
        let container = Container { id, pod, port: *port };
        let check = chain.call("CHECK", &container, result, None).unwrap();
        assert!(check.ok, "{id}: {check:?}");
        assert_eq!(pod.ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0, "{id}");
        chain.call("DEL", &container, result, None).unwrap().result();
    }
    node.assert_empty();
}

/// A conflist's plugins, called one after another as libcni does.
struct Chain<'a> {
    node: &'a Node,
    plugins: Vec<Value>,
}

struct Container<'a> {
    id: &'a str,
    pod: &'a Netns,
    port: u32,
}

impl Chain<'_> {
    fn add(&self, id: &str, pod: &Netns, port: u32) -> Value {
        self.call("ADD", &Container { id, pod, port }, &Value::Null, None).unwrap().result()
    }

    /// None where the moment came before the last one's answer: whichever ran then
    /// was killed, as was the runtime.
    fn call(
        &self,
        verb: &str,
        of: &Container<'_>,
        prev: &Value,
        moment: Option<Duration>,
    ) -> Option<Outcome> {
        let start = Instant::now();
        let mut last = Outcome { ok: true, json: prev.clone() };
        let mut plugins: Vec<_> = self.plugins.iter().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        for plugin in plugins {
            let mut conf = self.conf(plugin);
            conf["runtimeConfig"] = json!({
                "portMappings": [{ "hostPort": of.port, "containerPort": 80, "protocol": "tcp" }],
                "bandwidth": { "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
                               "egressRate": 80_000_000, "egressBurst": 8_000_000 },
            });
            let told = if verb == "ADD" { &last.json } else { prev };
            if !told.is_null() {
                conf["prevResult"] = told.clone();
            }
            let program = self.node.host.command(self.program(plugin));
            let mut child =
                self.node.start_program(program, &conf, verb, of.id, "eth0", Some(&of.pod.path()));
            while let Some(moment) = moment.filter(|_| child.try_wait().unwrap().is_none()) {
                if start.elapsed() >= moment {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    return None;
                }
                thread::sleep(Duration::from_micros(100));
            }
            last = Outcome::of(child);
            if !last.ok {
                break;
            }
        }
        Some(last)
    }

    fn gc<'a>(&self, valid: impl Iterator<Item = &'a String>) {
        let valid: Vec<_> = valid.map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        for plugin in &self.plugins {
            let mut conf = self.conf(plugin);
            conf["cni.dev/valid-attachments"] = json!(valid);
            let program = self.node.host.command(self.program(plugin));
            let gc = Outcome::of(self.node.start_program(program, &conf, "GC", "", "", None));
            assert!(gc.ok, "{plugin}: {gc:?}");
        }
    }

    fn conf(&self, plugin: &Value) -> Value {
        let mut conf = plugin.clone();
        conf["name"] = json!("cbr0");
        conf["cniVersion"] = json!("1.1.0");
        conf
    }

    fn program(&self, plugin: &Value) -> PathBuf {
        self.node.chained(plugin["type"].as_str().unwrap(), json!({})).program.into()
    }
}

/// What containers have on their host, a line each: links, rules and files.
#[derive(Debug, PartialEq)]
struct OnHost(BTreeSet<String>);

impl OnHost {
    fn of(node: &Node) -> OnHost {
        let rules = run(node.host.command("nft").args(["--stateless", "list", "ruleset"]));
        let rules = rules.lines().map(|line| line.trim().to_owned());
        let dir = node.host.dir();
        let others = [files(&dir.join("tuning")), files(&dir.join("firewall"))].concat();
        let files = [node.reservations(), node.cache(), others].concat();
        let files = files.into_iter().map(|(name, content)| format!("{name}: {content}"));
        let links = names(&node.host.ip_json("link").unwrap());
        OnHost(links.into_iter().chain(rules).chain(files).collect())
    }
}
