//! What a container costs: the plugin as a runtime calls it, one process after
//! another, beside the same veth pair by `ip link`, and beside the reference
//! plugins where `CNI_BIN` is a folder that has them, all in one run:
//!
//! ```text
//! make plugin && CNI_BIN=/dir cargo bench -p weft-cni --bench cni
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns_harness::{Host, Lab, Netns};
use serde_json::{Value, json};

const PLUGIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/weft-cni");
const CLASSIC: [&str; 4] = ["flannel", "bridge", "host-local", "portmap"];
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.17.1/24\n\
                          FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
/// Each way's turns, which alternate, so that what else the machine does meets all.
const ROUNDS: usize = 3;
const CONTAINERS: usize = 16;
const AT_ONCE: usize = 8;

fn main() {
    if !Path::new(PLUGIN).exists() {
        eprintln!("{PLUGIN} is not there: make plugin");
        std::process::exit(1);
    }
    let lab = Lab::new("bench").unwrap();
    let mut ways = vec![Way::floor(&lab), Way::classic(&lab, "weft, chain", None), Way::integrated(&lab)];
    match reference() {
        Some(dir) => ways.push(Way::classic(&lab, "reference", Some(&dir))),
        None => println!("CNI_BIN names no folder with the reference plugins: no row for them"),
    }
    let pods: Vec<_> = (0..CONTAINERS).map(|n| lab.pod(&ways[0].host, &format!("c{n}")).unwrap()).collect();
    // The first container of a host finds no bridge and no table of rules.
    for way in &mut ways {
        way.turn(&pods[..1], 1);
        way.figures = Figures::default();
    }
    for _ in 0..ROUNDS {
        ways.iter_mut().for_each(|way| way.turn(&pods, AT_ONCE));
    }
    println!("medians of {ROUNDS} x {CONTAINERS} containers: milliseconds, containers a second, peak memory");
    println!(
        "{:<12} | {:>6} {:>6} | {:>9} {:>6} | {:>12} {:>6} | {:>6}",
        "", "ADD", "DEL", "port: ADD", "DEL", "8 at a time", "DEL", "MiB"
    );
    ways.iter_mut().for_each(|way| way.print(&pods[0]));
}

/// How containers are wired up, on a host of its own.
struct Way {
    name: &'static str,
    host: Host,
    /// The conflist's plugins; none for the floor, which is `ip link`.
    plugins: Vec<Value>,
    /// `CNI_PATH`.
    path: PathBuf,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    /// Milliseconds of ADD and DEL.
    plain: [Vec<f64>; 2],
    with_port: [Vec<f64>; 2],
    /// A second, of a turn.
    at_once: [Vec<f64>; 2],
}

impl Way {
    fn floor(lab: &Lab) -> Way {
        let way = Way::new(lab, "floor", "ip link", None, vec![]);
        way.host.ip_batch(&["link add cni0 type bridge", "link set cni0 up"]).unwrap();
        way
    }

    /// Two processes: `flannel`, which runs the bridge and the address allocation,
    /// and `portmap`.
    fn classic(lab: &Lab, name: &'static str, programs: Option<&Path>) -> Way {
        let host = if programs.is_some() { "reference" } else { "chain" };
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        Way::new(lab, host, name, programs, vec![json!({ "type": "flannel" }), portmap])
    }

    fn integrated(lab: &Lab) -> Way {
        let plugin = json!({ "type": "weft", "capabilities": { "portMappings": true } });
        Way::new(lab, "integrated", "weft, one", None, vec![plugin])
    }

    /// The programs are the plugin under all names, or those of a folder.
    fn new(
        lab: &Lab,
        host: &str,
        name: &'static str,
        programs: Option<&Path>,
        mut plugins: Vec<Value>,
    ) -> Way {
        let host = lab.host(host).unwrap();
        let dir = host.dir();
        fs::write(dir.join("subnet.env"), SUBNET_ENV).unwrap();
        let path = programs.map_or_else(|| dir.join("bin"), Path::to_owned);
        if programs.is_none() {
            fs::create_dir_all(&path).unwrap();
            for name in CLASSIC.iter().chain(&["weft"]) {
                symlink(PLUGIN, path.join(name)).unwrap();
            }
        }
        if let Some(first) = plugins.first_mut() {
            first["subnetFile"] = dir.join("subnet.env").to_str().into();
            first["dataDir"] = dir.join("flannel").to_str().into();
            first["ipam"] = json!({ "dataDir": dir.join("networks") });
            first["delegate"] = json!({ "hairpinMode": true, "isDefaultGateway": true });
        }
        Way { name, host, plugins, path, figures: Figures::default() }
    }

    fn turn(&mut self, pods: &[Netns], at_once: usize) {
        let is_floor = self.plugins.is_empty();
        let (added, deleted, _) = self.wire(pods, 1, false);
        self.figures.plain[0].extend(added);
        self.figures.plain[1].extend(deleted);
        if !is_floor {
            let (added, deleted, _) = self.wire(pods, 1, true);
            self.figures.with_port[0].extend(added);
            self.figures.with_port[1].extend(deleted);
        }
        let (_, _, rates) = self.wire(pods, at_once, false);
        self.figures.at_once.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
    }

    /// ADD for all, then DEL for all, by so many threads: milliseconds of each ADD
    /// and DEL, and how many of both a second.
    fn wire(&self, pods: &[Netns], threads: usize, port: bool) -> (Vec<f64>, Vec<f64>, [f64; 2]) {
        let begun = Instant::now();
        let added = side_by_side(pods, threads, |n, pod| timed(|| self.add(n, pod, port)));
        let adds = pods.len() as f64 / begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let deleted = side_by_side(pods, threads, |n, pod| {
            out_of_step(n);
            timed(|| self.del(n, pod, port, &added[n].1)).0
        });
        let dels = pods.len() as f64 / begun.elapsed().as_secs_f64();
        (added.into_iter().map(|(time, _)| time).collect(), deleted, [adds, dels])
    }

    /// The result of the last plugin.
    fn add(&self, n: usize, pod: &Netns, port: bool) -> Value {
        if self.plugins.is_empty() {
            let peer = ["master", "cni0", "type", "veth", "peer", "name", "eth0", "netns", pod.name()];
            self.host.run("ip", ["link", "add", &format!("veth{n}")].into_iter().chain(peer)).unwrap();
        }
        self.plugins.iter().fold(Value::Null, |prev, plugin| {
            let output = ended(self.start("ADD", n, pod, port, plugin, &prev));
            serde_json::from_str(&output).unwrap()
        })
    }

    fn del(&self, n: usize, pod: &Netns, port: bool, result: &Value) {
        if self.plugins.is_empty() {
            self.host.run("ip", ["link", "del", &format!("veth{n}")]).unwrap();
        }
        for plugin in self.plugins.iter().rev() {
            ended(self.start("DEL", n, pod, port, plugin, result));
        }
    }

    fn start(&self, command: &str, n: usize, pod: &Netns, port: bool, plugin: &Value, prev: &Value) -> Child {
        let mut conf = plugin.clone();
        conf["cniVersion"] = "1.0.0".into();
        conf["name"] = "cbr0".into();
        if !prev.is_null() {
            conf["prevResult"] = prev.clone();
        }
        if port && conf.get("capabilities").is_some() {
            let mapping = json!({ "hostPort": 20_000 + n, "containerPort": 80, "protocol": "tcp" });
            conf["runtimeConfig"] = json!({ "portMappings": [mapping] });
        }
        let mut program = self.host.command(self.path.join(plugin["type"].as_str().unwrap()));
        let mut child = program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("bench{n}"))
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child
    }

    fn print(&mut self, pod: &Netns) {
        let peak = self.peak(pod);
        let Figures { plain, with_port, at_once } = &mut self.figures;
        let [add, del] = plain.each_mut().map(|times| median(times));
        let [port_add, port_del] = with_port.each_mut().map(|times| median(times));
        let [adds, dels] = at_once.each_mut().map(|rates| median(rates));
        let [port_add, port_del, peak] = [port_add, port_del, peak].map(shown);
        println!(
            "{:<12} | {add:>6.1} {del:>6.1} | {port_add:>9} {port_del:>6} | {adds:>12.0} {dels:>6.0} | {peak:>6}",
            self.name
        );
    }

    /// The most that one of the processes a runtime starts has resident, in MiB.
    fn peak(&self, pod: &Netns) -> f64 {
        let mut result = Value::Null;
        let mut peak = 0;
        for plugin in &self.plugins {
            let child = self.start("ADD", 0, pod, true, plugin, &result);
            peak = peak.max(watched(&child));
            result = serde_json::from_str(&ended(child)).unwrap();
        }
        for plugin in self.plugins.iter().rev() {
            let child = self.start("DEL", 0, pod, true, plugin, &result);
            peak = peak.max(watched(&child));
            ended(child);
        }
        if self.plugins.is_empty() { f64::NAN } else { peak as f64 / 1024.0 }
    }
}

/// The folder of the reference plugins. One of ours under their name is none.
fn reference() -> Option<PathBuf> {
    let dir = PathBuf::from(env::var_os("CNI_BIN")?);
    let is_theirs = |name: &&str| {
        fs::canonicalize(dir.join(name)).is_ok_and(|file| file.file_name().is_some_and(|n| n != "weft-cni"))
    };
    CLASSIC.iter().all(is_theirs).then_some(dir)
}

/// Call it for each pod and its number, by so many threads.
fn side_by_side<T: Send>(pods: &[Netns], threads: usize, call: impl Fn(usize, &Netns) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(pod) = pods.get(n) else { return done };
            done.push((n, call(n, pod)));
        }
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    done.sort_unstable_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, value)| value).collect()
}

/// The kernel's waits end on its ticks. One DEL right after another would begin on
/// one, too, and a little more work count for a whole tick or for nothing.
fn out_of_step(n: usize) {
    thread::sleep(Duration::from_micros(n as u64 * 1300 % 4000));
}

fn timed<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let begun = Instant::now();
    let value = call();
    (begun.elapsed().as_secs_f64() * 1e3, value)
}

/// What it printed.
fn ended(mut child: Child) -> String {
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success(), "{output}");
    output
}

/// `VmHWM` in KiB, read again and again until the process has ended. It is looked
/// at rather than asked of wait4(2), whose answer includes the bench before it
/// executed the plugin.
fn watched(child: &Child) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let Some(now) = field("VmHWM:") else { return peak };
        let is_plugin = field("Name:").is_some_and(|name| !name.starts_with("cni-"));
        if let (true, Some((kib, _))) = (is_plugin, now.split_once(' ')) {
            peak = peak.max(kib.parse().unwrap());
        }
    }
}

/// The floor maps no port and has no process of its own.
fn shown(figure: f64) -> String {
    if figure.is_nan() { "-".to_owned() } else { format!("{figure:.1}") }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
