//! A case is played: a host, its containers, and what each step does to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use netns_harness::{Host, Lab, Netns};
use serde_json::{Value, json};

use crate::cases::{Case, Recording};
use crate::conflist::{Attachment, CLASSIC, Conflist, Outcome};
use crate::snapshot::{Fresh, Snapshot, changes, of_files, of_namespace, of_rules};

/// With the plugins of that folder.
pub fn play(case: &Case, plugins: &Path) -> Recording {
    let mut stage = Stage::new(case, plugins);
    let mut recording = Recording::new();
    for (n, step) in case.steps.iter().enumerate() {
        let answer = stage.step(step);
        let mut seen = stage.changes();
        match answer {
            Ok(result) if !result.is_null() => {
                seen.insert("result".into(), stage.names.apply_result(&result));
            }
            Ok(_) => {}
            Err((code, text)) => {
                eprintln!("{}: {step}: {code} {text}", case.name);
                seen.insert("error".into(), json!(code));
            }
        }
        let step = format!("{} {step}", n + 1);
        for (key, value) in &mut seen {
            let any = case.by_chance.get(&format!("{step}: {key}"));
            if let Some(any) = any.filter(|any| any.contains(value)) {
                *value = json!(any);
            }
        }
        recording.insert(step, seen);
    }
    recording
}

/// A folder with a link to our plugin for each classic name.
pub fn links(into: &Path) -> PathBuf {
    let folder = into.join("bin");
    fs::create_dir_all(&folder).unwrap();
    for name in CLASSIC {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weft-cni"), folder.join(name)).unwrap();
    }
    folder
}

/// A host with its containers while a case is played.
struct Stage {
    lab: Lab,
    host: Host,
    pods: BTreeMap<String, Netns>,
    results: BTreeMap<(String, String), Value>,
    conflist: Conflist,
    fresh: Fresh,
    names: Names,
    before: Snapshot,
}

impl Stage {
    fn new(case: &Case, plugins: &Path) -> Stage {
        let lab = Lab::new("cni-ref").unwrap();
        let host = lab.host("node").unwrap();
        let dir = host.dir().display().to_string();
        for (name, content) in &case.files {
            let path = host.dir().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content.replace("DIR", &dir)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let expand = |plugin: &Value| -> Value {
            let mut plugin: Value = serde_json::from_str(&plugin.to_string().replace("DIR", &dir)).unwrap();
            if let Some(families) = plugin["ipam"].as_str() {
                plugin["ipam"] = host_local(families, &dir);
            }
            plugin
        };
        let conflist = Conflist {
            name: "net".into(),
            version: case.version.clone(),
            plugins: case.plugins.iter().map(expand).collect(),
            runtime: case.runtime.clone(),
            args: case.args.clone(),
            path: plugins.to_owned(),
        };
        let mentioned =
            |step: &String| step.split(' ').nth(1).filter(|_| !step.starts_with("RUN")).map(str::to_owned);
        let pods: BTreeSet<String> = case.steps.iter().filter_map(mentioned).collect();
        let pods = pods.into_iter().map(|name| (name.clone(), lab.pod(&host, &name).unwrap())).collect();
        let fresh = Fresh::new(&lab);
        let names = Names::new(case, &lab, &dir);
        let mut stage = Stage {
            lab,
            host,
            pods,
            results: BTreeMap::new(),
            conflist,
            fresh,
            names,
            before: Snapshot::new(),
        };
        stage.changes();
        stage
    }

    fn step(&mut self, step: &str) -> Outcome {
        let words: Vec<&str> = step.split(' ').collect();
        if words[0] == "RUN" {
            self.host.run(words[1], &words[2..]).unwrap();
            return Ok(Value::Null);
        }
        let Some(name) = words.get(1) else {
            return if words[0] == "STATUS" {
                self.conflist.status(&self.host)
            } else {
                self.conflist.gc(&self.host, &[])
            };
        };
        let (id, path) = (format!("id-{name}"), self.pods[*name].path());
        let to = Attachment { id: &id, ifname: words.get(2).unwrap_or(&"eth0"), netns: Some(&path) };
        let key = (id.clone(), to.ifname.to_owned());
        let result = self.results.get(&key).cloned().unwrap_or_default();
        match words[0] {
            "ADD" => {
                let added = self.conflist.add(&self.host, &to)?;
                self.results.insert(key, added.clone());
                Ok(added)
            }
            "CHECK" => self.conflist.check(&self.host, &to, &result),
            "DEL" => self.conflist.del(&self.host, &to, &result),
            "UNMOUNTED-DEL" => self.conflist.del(&self.host, &Attachment { netns: None, ..to }, &result),
            "GC" => self.conflist.gc(&self.host, &[(&id, to.ifname)]),
            other => panic!("no verb {other}"),
        }
    }

    /// Since the last call.
    fn changes(&mut self) -> Snapshot {
        self.names.learn(&self.host, &self.pods);
        let mut now = of_namespace("host", &self.host, &self.fresh);
        for (name, pod) in &self.pods {
            now.extend(of_namespace(name, pod, &self.fresh));
        }
        now.extend(of_rules(&self.host));
        now.extend(of_files(self.host.dir()));
        let now = self.names.apply(&now);
        let changed = changes(&self.before, &now);
        self.before = now;
        changed
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.lab.remove();
    }
}

fn host_local(families: &str, dir: &str) -> Value {
    let (v4, v6) = (json!([{ "subnet": "10.1.2.0/24" }]), json!([{ "subnet": "fd00:1:2::/64" }]));
    let ranges = match families {
        "v4" => json!([v4]),
        "v6" => json!([v6]),
        "dual" => json!([v4, v6]),
        other => panic!("ipam {other}"),
    };
    json!({ "type": "host-local", "dataDir": format!("{dir}/networks"), "ranges": ranges })
}

/// Names and MACs that are drawn by lot, and what they are of.
struct Names {
    /// MACs among it are the case's own and no lot.
    case: String,
    known: BTreeMap<String, String>,
}

impl Names {
    fn new(case: &Case, lab: &Lab, dir: &str) -> Names {
        let text = format!("{:?} {:?} {}", case.plugins, case.runtime, case.args);
        let mut known = BTreeMap::new();
        known.insert(dir.to_owned(), "DIR".to_owned());
        known.insert(lab.name().to_owned(), "LAB".to_owned());
        Names { case: text.to_lowercase(), known }
    }

    fn learn(&mut self, host: &Netns, pods: &BTreeMap<String, Netns>) {
        let links = host.ip_json("-d link").unwrap();
        let links = links.as_array().unwrap();
        let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for (pod, netns) in pods {
            for link in netns.ip_json("link").unwrap().as_array().unwrap() {
                self.mac(&link["address"], &format!("{pod}/{}", string(&link["ifname"])));
                let end = links
                    .iter()
                    .find(|end| end["ifindex"] == link["link_index"] && !link["link_index"].is_null());
                if let Some(end) = end {
                    let name = format!("veth:{pod}/{}", string(&link["ifname"]));
                    self.mac(&end["address"], &name);
                    self.known.insert(string(&end["ifname"]), name);
                }
            }
        }
        // The gateway of a VLAN is one end of a pair, a port of the bridge the other.
        for port in links.iter().filter(|link| !link["link"].is_null() && !link["master"].is_null()) {
            let name = format!("veth:{}", string(&port["link"]));
            self.mac(&port["address"], &name);
            self.known.insert(string(&port["ifname"]), name);
        }
        for link in links.iter().filter(|link| link["ifname"] != "eth0") {
            self.mac(&link["address"], &string(&link["ifname"]));
        }
    }

    fn mac(&mut self, mac: &Value, of: &str) {
        let mac = mac.as_str().unwrap_or_default();
        if mac.len() == 17 && mac != "00:00:00:00:00:00" && !self.case.contains(mac) {
            self.known.entry(mac.to_owned()).or_insert_with(|| format!("MAC of {of}"));
        }
    }

    fn apply(&self, snapshot: &Snapshot) -> Snapshot {
        serde_json::from_str(&self.replace(&serde_json::to_string(snapshot).unwrap())).unwrap()
    }

    fn apply_result(&self, result: &Value) -> Value {
        let mut result: Value = serde_json::from_str(&self.replace(&result.to_string())).unwrap();
        for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
            let of_a_port = interface["mac"].as_str().is_some_and(|mac| mac.starts_with("MAC of veth:"));
            if of_a_port && !interface["name"].as_str().is_some_and(|name| name.starts_with("veth:")) {
                interface["mac"] = json!("MAC of a port");
            }
        }
        result
    }

    fn replace(&self, text: &str) -> String {
        // Longest first: DIR has LAB's name in it.
        let mut known: Vec<_> = self.known.iter().collect();
        known.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        known.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
    }
}
