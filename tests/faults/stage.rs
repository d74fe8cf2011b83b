//! Nodes that carry traffic, and what to say of them after a fault.

use std::cell::Cell;
use std::path::PathBuf;

use netns_harness::{Flood, wait_until};

use crate::cluster::Cluster;
use crate::lab::{Fabric, Pod, SOON, VXLAN};

pub struct Stage {
    // Ends before the lab it stands in.
    flood: Option<Flood>,
    pub fabric: Fabric,
    pub etcd: Cluster,
    /// One on each of the first two nodes.
    pub pods: Vec<Pod>,
    /// One more on the second.
    neighbour: Pod,
    env: Vec<(&'static str, &'static str)>,
    peers: Cell<usize>,
}

impl Stage {
    /// Two nodes in sync whose containers ping each other a hundred times a second.
    pub fn new(label: &str, members: usize, env: &[(&'static str, &'static str)]) -> Stage {
        Stage::with_config(label, members, env, VXLAN)
    }

    pub fn with_config(
        label: &str,
        members: usize,
        env: &[(&'static str, &'static str)],
        config: &str,
    ) -> Stage {
        let fabric = Fabric::without_etcd(label, 2);
        let etcd = Cluster::start_all(&fabric.lab, members);
        etcd.ctl(&["put", "/coreos.com/network/config", config]);
        let mut fabric = fabric;
        for i in 0..2 {
            fabric.run(i, &["--etcd-endpoints", &etcd.urls()], env);
        }
        for i in 0..2 {
            fabric.wait_in_sync(i);
        }
        let pods: Vec<_> = (0..2).map(|i| fabric.pod(i)).collect();
        let neighbour = fabric.pod(1);
        let target = pods[1].ips[0];
        wait_until(SOON, "traffic", || pods[0].netns.reaches(target)).unwrap();
        let flood = Some(pods[0].netns.flood(target, 100).unwrap());
        Stage { flood, fabric, etcd, pods, neighbour, env: env.to_vec(), peers: Cell::new(200) }
    }

    pub fn start_daemon(&mut self, i: usize) {
        let urls = self.etcd.urls();
        self.fabric.run(i, &["--etcd-endpoints", &urls], &self.env);
    }

    /// The third, with a lease.
    pub fn add_node(&mut self) {
        let i = self.fabric.hosts.len();
        self.fabric.hosts.push(self.fabric.lab.host(&format!("h{}", i + 1)).unwrap());
        self.start_daemon(i);
        self.fabric.wait_for_env(i);
    }

    /// What node `i` goes by when it starts without a store.
    pub fn checkpoint(&self, i: usize) -> PathBuf {
        self.fabric.hosts[i].dir().join("subnet.env.checkpoint")
    }

    /// Until it says this of node `i`'s leases.
    pub fn await_checkpoint(&self, i: usize, what: &str) -> PathBuf {
        let path = self.checkpoint(i);
        let says = || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(what));
        wait_until(SOON, "a checkpoint", says).unwrap();
        path
    }

    /// Until node `i` has what it wants in its kernel, without a store.
    pub fn await_resumed(&self, i: usize) {
        let resumed = || {
            let status = self.fabric.try_status(i);
            status.is_some_and(|(s, _)| s["kernel"]["synced"] == true && s["store"]["connected"] == false)
        };
        let up = wait_until(SOON, "a start without the store", resumed);
        up.unwrap_or_else(|e| panic!("{e}: {}", self.fabric.daemons[i].log_tail(30)));
    }

    /// Both know a peer that comes now, each subnet has one holder, which is who it
    /// was, and no packet is lost.
    pub fn assert_right(&mut self, what: &str) {
        let peer = self.peers.replace(self.peers.get() + 1);
        self.put_peer(peer);
        let dst = format!("10.42.{peer}.0/24");
        for i in 0..2 {
            let took = wait_until(SOON, &dst, || self.fabric.has_route(i, &dst));
            let took =
                took.unwrap_or_else(|e| panic!("{what}: {e}: {}", self.fabric.daemons[i].log_tail(30)));
            eprintln!("{what}: node {i} had a new peer's route {took:.1?} after it was there");
        }
        for i in 0..2 {
            let record = self.etcd.insist(&["get", &self.fabric.key_of(i), "--print-value-only"]);
            let ip = format!("\"PublicIP\":\"{}\"", self.fabric.hosts[i].ip4());
            assert!(record.contains(&ip), "{what}: {record}");
            assert!(self.fabric.daemons[i].exited().unwrap().is_none(), "{what}");
        }
        self.assert_one_holder_each(what, &[0, 1]);
        if let Some(flood) = self.flood.take() {
            let report = flood.stop().unwrap();
            assert_eq!(report.lost(), 0, "{what}: traffic goes on");
        }
        let target = self.pods[1].ips[0];
        wait_until(SOON, "traffic", || self.pods[0].netns.reaches(target)).unwrap();
        self.flood = Some(self.pods[0].netns.flood(target, 100).unwrap());
    }

    /// Each of these nodes holds the subnet that its containers live in, and no other;
    /// nobody else holds one of theirs.
    pub fn assert_one_holder_each(&self, what: &str, nodes: &[usize]) {
        let records = self.etcd.records();
        for &i in nodes {
            let (own, ip) = (self.fabric.key_of(i), self.fabric.hosts[i].ip4().to_string());
            let held: Vec<_> = records.iter().filter(|(_, holder)| *holder == ip).collect();
            assert!(matches!(held[..], [(key, _)] if *key == own), "{what}: {ip} in {own}: {records:?}");
        }
    }

    /// Traffic between nodes will be interrupted for a reason; watch that within one
    /// instead.
    pub fn watch_traffic_within(&mut self, i: usize) {
        let target = self.pods[i].ips[0];
        self.forget_traffic();
        self.flood = Some(self.neighbour.netns.flood(target, 100).unwrap());
    }

    pub fn forget_traffic(&mut self) {
        drop(self.flood.take());
    }

    /// By another hand.
    pub fn delete_route(&self, i: usize) {
        let dst = self.fabric.subnet_of(1 - i);
        self.fabric.hosts[i]
            .run(
                "ip",
                [
                    "route",
                    "replace",
                    &dst,
                    "proto",
                    "static",
                    "via",
                    &dst.replace(".0/24", ".0"),
                    "dev",
                    "flannel.1",
                    "onlink",
                ],
            )
            .unwrap();
        let healed = || {
            !self.fabric.hosts[i]
                .ip_json(&format!("route show {dst} proto 87"))
                .unwrap()
                .as_array()
                .unwrap()
                .is_empty()
        };
        let took = wait_until(SOON, "the route", healed);
        took.unwrap_or_else(|e| panic!("{e}: {}", self.fabric.daemons[i].log_tail(30)));
    }

    pub fn put_peer(&self, n: usize) {
        let value = format!(
            r#"{{"PublicIP":"192.168.77.{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:02:{n:02x}"}}}}"#
        );
        // Three members may be choosing a leader.
        self.etcd.insist(&["put", &key(n), &value]);
    }

    pub fn delete_peer(&self, n: usize) {
        self.etcd.ctl(&["del", &key(n)]);
    }

    pub fn compact(&self) {
        let status: serde_json::Value =
            serde_json::from_str(&self.etcd.ctl(&["endpoint", "status", "-w", "json"])).unwrap();
        let revision = status[0]["Status"]["header"]["revision"].as_u64().unwrap();
        self.etcd.ctl(&["compact", &revision.to_string()]);
    }

    /// Silently: what is sent to the store is dropped, and what comes from it.
    pub fn cut_off_from_store(&self, i: usize) {
        let ip = self.fabric.lab.switch_ip4();
        let rules = format!(
            "add table ip cut; add chain ip cut in {{ type filter hook input priority 0; }}; \
             add chain ip cut out {{ type filter hook output priority 0; }}; \
             add rule ip cut in ip saddr {ip} drop; add rule ip cut out ip daddr {ip} drop"
        );
        self.fabric.hosts[i].run("nft", [rules]).unwrap();
    }

    pub fn mend_to_store(&self, i: usize) {
        self.fabric.hosts[i].run("nft", ["delete table ip cut"]).unwrap();
    }
}

fn key(n: usize) -> String {
    format!("/coreos.com/network/subnets/10.42.{n}.0-24")
}
