//! A fabric under churn, faults and traffic for as long as is asked, and what
//! became of it:
//!
//! ```text
//! MINUTES=30 SEED=7 cargo bench --bench soak
//! OUTAGE=60 cargo bench --bench soak
//! ```
//!
//! Four nodes on one etcd, a container on each, and every pair pings, both
//! families, through every round. A round has one fault, of one node or of the
//! store. Pairs without the node at fault must not lose a packet; for the others
//! the longest silence is shown, with the time until the node is right again.
//! Meanwhile other leases come and go. With `OUTAGE` the store is away for so many
//! minutes first, the faults are of nodes alone, and it is shown how long after its
//! return all nodes are right, and that each has the subnet it had. The process ends
//! with an error when a packet was lost that had nothing to do with the fault, when
//! a node did not come back, or when memory grew.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

#[path = "../tests/fabric/lab.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod lab;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use lab::{Fabric, Pod};
use netns_harness::{Flood, wait_until};

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00:42::/48",
    "SubnetMin":"10.1.1.0","SubnetMax":"10.1.20.0","Backend":{"Type":"vxlan"}}"#;
const NODES: usize = 4;
/// Leases of nodes that are not there.
const GHOSTS: usize = 400;
const CHURNED: usize = 50;
const PINGS_PER_SECOND: u32 = 100;
/// A node that takes longer than this has not come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nodes are right this long after a store's return.
const PROMPT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let outage = number("OUTAGE", 0);
    let minutes = number("MINUTES", if outage > 0 { 0 } else { 1 });
    let seed = number("SEED", 1);
    fastrand::seed(seed);
    println!(
        "soak: {outage} min without the store, then {minutes} min, seed {seed}, {NODES} nodes, {GHOSTS} further leases"
    );
    let mut soak = Soak::new();
    let prompt = outage == 0 || soak.outage(Duration::from_secs(60 * outage));
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < end {
        soak.round(FAULTS);
    }
    if soak.report() && prompt { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Soak {
    fabric: Fabric,
    pods: Vec<Pod>,
    ghosts: Vec<bool>,
    rounds: BTreeMap<&'static str, Vec<Outcome>>,
    /// Resident kilobytes of the daemon that is never restarted, once a round.
    memory: Vec<u64>,
    sent: u64,
    store_is_away: bool,
}

/// What a fault did.
struct Outcome {
    /// Between the node at fault and any other.
    silence: Duration,
    /// Until the daemon says that all is well.
    recovery: Duration,
    /// Packets of pairs that had no part in it.
    lost: u64,
    back: bool,
}

#[derive(Clone, Copy)]
struct Fault {
    name: &'static str,
    /// Of one node; else of the store, which every node has a share in and no
    /// packet may suffer from.
    of_node: bool,
    make: fn(&mut Fabric, usize),
}

const LEASE_DELETED: &str = "own lease deleted";

const FAULTS: &[Fault] = &[
    Fault { name: "routes flushed", of_node: true, make: |f, i| ip(f, i, "route flush dev flannel.1") },
    Fault {
        name: "neighbours flushed",
        of_node: true,
        make: |f, i| ip(f, i, "neigh flush dev flannel.1 nud permanent"),
    },
    Fault { name: "FDB emptied", of_node: true, make: empty_fdb },
    Fault {
        name: "MAC changed",
        of_node: true,
        make: |f, i| ip(f, i, "link set flannel.1 address 02:11:22:33:44:55"),
    },
    Fault { name: "MTU changed", of_node: true, make: |f, i| ip(f, i, "link set flannel.1 mtu 1000") },
    Fault { name: "tunnel down", of_node: true, make: |f, i| ip(f, i, "link set flannel.1 down") },
    Fault { name: "tunnel deleted", of_node: true, make: |f, i| ip(f, i, "link delete flannel.1") },
    Fault { name: "nexthops flushed", of_node: true, make: |f, i| ip(f, i, "nexthop flush proto 87") },
    Fault { name: "cable pulled for 1 s", of_node: true, make: pull_cable },
    Fault { name: "daemon killed", of_node: true, make: |f, i| restart(f, i, true) },
    Fault { name: "daemon restarted", of_node: true, make: |f, i| restart(f, i, false) },
    Fault { name: LEASE_DELETED, of_node: true, make: |f, i| drop(f.etcdctl(&["del", &f.key_of(i)])) },
    Fault {
        name: "broken record",
        of_node: false,
        make: |f, _| f.put("subnets/10.2.99.0-24", "{\"PublicIP\":7}"),
    },
    Fault { name: "store paused 3 s", of_node: false, make: pause_store },
    Fault { name: "store killed", of_node: false, make: restart_store },
    Fault { name: "store compacted", of_node: false, make: compact },
    Fault { name: "nothing", of_node: false, make: |_, _| {} },
];

impl Fault {
    /// Whether it needs no store.
    fn stands_alone(&self) -> bool {
        self.of_node && self.name != LEASE_DELETED
    }
}

impl Soak {
    fn new() -> Soak {
        let mut fabric = Fabric::new("soak", CONFIG, NODES);
        fabric.start_all();
        let pods = (0..NODES).map(|i| fabric.pod(i)).collect();
        let mut soak = Soak {
            fabric,
            pods,
            ghosts: vec![false; GHOSTS],
            rounds: BTreeMap::new(),
            memory: Vec::new(),
            sent: 0,
            store_is_away: false,
        };
        for _ in 0..GHOSTS / CHURNED {
            soak.churn();
        }
        soak
    }

    /// Rounds without the store, and its return: whether all was as it was, and soon.
    fn outage(&mut self, length: Duration) -> bool {
        let subnets = |fabric: &Fabric| (0..NODES).map(|i| fabric.subnet_env(i)).collect::<Vec<_>>();
        let before = subnets(&self.fabric);
        let of_nodes: Vec<Fault> = FAULTS.iter().filter(|fault| fault.stands_alone()).copied().collect();
        // What came last is in the checkpoint by then.
        thread::sleep(PROMPT);
        self.fabric.etcd_away();
        self.store_is_away = true;
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.round(&of_nodes);
        }
        self.fabric.start_etcd();
        self.store_is_away = false;
        let begun = Instant::now();
        self.churn();
        let back = self.wait_until_right();
        let took = begun.elapsed();
        let kept = before == subnets(&self.fabric);
        println!("all nodes right {took:.1?} after the store's return: {back}; subnets kept: {kept}");
        back && kept && took < PROMPT
    }

    fn round(&mut self, faults: &[Fault]) {
        let fault = fastrand::choice(faults).copied().unwrap();
        // The first node is the one whose memory is watched: its daemon lives on.
        let node = fastrand::usize(1..NODES);
        let pings = self.start_pings();
        thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        (fault.make)(&mut self.fabric, node);
        if !self.store_is_away {
            self.churn();
        }
        let back = self.wait_until_right();
        let recovery = begun.elapsed();
        thread::sleep(Duration::from_millis(700));
        let mut outcome = Outcome { silence: Duration::ZERO, recovery, lost: 0, back };
        for (pair, ping) in pings {
            let report = ping.stop().unwrap();
            self.sent += report.sent;
            if fault.of_node && pair.contains(&node) {
                outcome.silence = outcome.silence.max(report.longest_gap);
            } else {
                outcome.lost += report.lost();
            }
        }
        if outcome.lost > 0 || !back {
            println!("{} on node {node}: {} lost elsewhere, back: {back}", fault.name, outcome.lost);
        }
        self.rounds.entry(fault.name).or_default().push(outcome);
        self.memory.push(resident(self.fabric.daemons[0].pid()));
    }

    fn start_pings(&self) -> Vec<([usize; 2], Flood)> {
        let mut pings = Vec::new();
        for a in 0..NODES {
            for b in a + 1..NODES {
                for ip in &self.pods[b].ips {
                    pings.push(([a, b], self.pods[a].netns.flood(*ip, PINGS_PER_SECOND).unwrap()));
                }
            }
        }
        pings
    }

    /// Some of the leases come, some go, in one transaction.
    fn churn(&mut self) {
        let mut txn = String::from("\n");
        for _ in 0..CHURNED {
            let i = fastrand::usize(..GHOSTS);
            let (high, low) = (i / 256, i % 256);
            let key = format!(
                "/coreos.com/network/subnets/10.{}.{low}.0-24&fd00:42:0:{:x}::-64",
                100 + high,
                0x1000 + i
            );
            // One operation a key is all that a transaction may have.
            if txn.contains(&key) {
                continue;
            }
            self.ghosts[i] = !self.ghosts[i];
            match self.ghosts[i] {
                true => txn += &format!("put {key} {:?}\n", ghost(i)),
                false => txn += &format!("del {key}\n"),
            }
        }
        self.fabric.etcdctl_in(&["txn"], &(txn + "\n\n"));
    }

    /// All nodes in sync with the store and the kernel.
    fn wait_until_right(&self) -> bool {
        let others = NODES - 1 + self.ghosts.iter().filter(|there| **there).count();
        (0..NODES).all(|i| {
            let right = || {
                self.fabric.try_status(i).is_some_and(|(status, _)| {
                    // So many faults at one link are named as a fight, and `weft status`
                    // fails over it.
                    let holds = |key: &str, what: &str| status[key][what] == true;
                    holds("kernel", "synced")
                        && holds("lease", "ok")
                        && status["peers"].as_array().is_some_and(|peers| peers.len() == others)
                })
            };
            let right = wait_until(PATIENCE, "a node in sync", right).is_ok();
            if !right {
                println!("node {i} is not right: {:.2000}", format!("{:?}", self.fabric.try_status(i)));
            }
            right
        })
    }

    /// Whether it is a good one.
    fn report(&self) -> bool {
        println!(
            "{:<22} {:>6} {:>14} {:>14} {:>12} {:>12} {:>5}",
            "fault", "rounds", "silence median", "worst", "right after", "worst", "lost"
        );
        for (name, outcomes) in &self.rounds {
            let [mut silence, mut recovery] = [const { Vec::new() }; 2];
            silence.extend(outcomes.iter().map(|o| o.silence));
            recovery.extend(outcomes.iter().map(|o| o.recovery));
            let ((s, s_max), (r, r_max)) = (median_and_worst(silence), median_and_worst(recovery));
            let lost: u64 = outcomes.iter().map(|o| o.lost).sum();
            println!(
                "{name:<22} {:>6} {s:>11} ms {s_max:>11} ms {r:>9} ms {r_max:>9} ms {lost:>5}",
                outcomes.len()
            );
        }
        let all = || self.rounds.values().flatten();
        let (lost, missing) = (all().map(|o| o.lost).sum::<u64>(), all().filter(|o| !o.back).count());
        println!(
            "{} pings sent; {lost} lost by nodes without a fault; {missing} times a node was not back",
            self.sent
        );
        // The first quarter warms up: buffers, the allocator, the lease table.
        let quarter = self.memory.len() / 4;
        let middle =
            |of: &[u64]| median_and_worst(of.iter().map(|kb| Duration::from_millis(*kb)).collect()).0;
        let (early, late) = (middle(&self.memory[quarter..2 * quarter]), middle(&self.memory[3 * quarter..]));
        println!(
            "resident memory of the first node's daemon: {early} kB in the second quarter, {late} kB in the last"
        );
        let grew = quarter > 4 && late > early + early / 20;
        lost == 0 && missing == 0 && !grew
    }
}

fn ghost(i: usize) -> String {
    let [high, low] = [i / 256, i % 256];
    let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
    format!(
        "{{\"PublicIP\":\"172.20.{high}.{low}\",\"PublicIPv6\":\"fd20::{i:x}\",\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}},\"BackendV6Data\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}}}"
    )
}

fn ip(fabric: &mut Fabric, node: usize, args: &str) {
    // What an earlier fault took may be on its way back still.
    let _ = fabric.hosts[node].run("ip", args.split(' '));
}

fn empty_fdb(fabric: &mut Fabric, node: usize) {
    let host = &fabric.hosts[node];
    let entries = host.bridge_json("fdb show dev flannel.1").unwrap();
    for entry in entries.as_array().unwrap().iter().filter(|e| e["dst"].is_string()) {
        let (mac, dst) = (entry["mac"].as_str().unwrap(), entry["dst"].as_str().unwrap());
        let _ = host.run("bridge", ["fdb", "del", mac, "dev", "flannel.1", "dst", dst]);
    }
}

fn pull_cable(fabric: &mut Fabric, node: usize) {
    let host = fabric.hosts[node].clone();
    fabric.lab.cut(&host).unwrap();
    thread::sleep(Duration::from_secs(1));
    fabric.lab.mend(&host).unwrap();
}

fn restart(fabric: &mut Fabric, node: usize, hard: bool) {
    let daemon = &mut fabric.daemons[node];
    let ended = if hard { daemon.kill9() } else { daemon.terminate(Duration::from_secs(10)) };
    ended.unwrap();
    fabric.start(node, &[]);
}

fn pause_store(fabric: &mut Fabric, _: usize) {
    fabric.etcd.as_mut().unwrap().pause().unwrap();
    thread::sleep(Duration::from_secs(3));
    fabric.etcd.as_mut().unwrap().resume().unwrap();
}

fn restart_store(fabric: &mut Fabric, _: usize) {
    fabric.etcd_away();
    fabric.start_etcd();
}

fn compact(fabric: &mut Fabric, _: usize) {
    let status = fabric.etcdctl(&["endpoint", "status", "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    let _ = fabric.try_etcdctl(&["compact", &revision]);
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn median_and_worst(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort_unstable();
    let at = |i: usize| times.get(i).map_or(0, Duration::as_millis);
    (at(times.len() / 2), at(times.len().saturating_sub(1)))
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |value| value.parse().expect(variable))
}
