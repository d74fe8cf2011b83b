//! Members of one etcd on the lab's switch.

use std::fs;
use std::path::PathBuf;

use netns_harness::{Daemon, Lab, wait_until};

use crate::lab::SOON;

pub struct Cluster {
    pub members: Vec<Member>,
    lab: Lab,
}

pub struct Member {
    number: usize,
    process: Option<Daemon>,
}

impl Cluster {
    pub fn start_all(lab: &Lab, members: usize) -> Cluster {
        let members = (0..members).map(|number| Member { number, process: None }).collect();
        let mut cluster = Cluster { members, lab: lab.clone() };
        for member in 0..cluster.members.len() {
            cluster.spawn(member);
        }
        cluster.await_health();
        cluster
    }

    /// The client URLs, as `--etcd-endpoints` takes them.
    pub fn urls(&self) -> String {
        self.members.iter().map(|member| self.url(member.number, 0)).collect::<Vec<_>>().join(",")
    }

    /// On the data it had, until it serves.
    pub fn start(&mut self, member: usize) {
        self.spawn(member);
        self.await_health();
    }

    /// The same without waiting for it.
    pub fn spawn(&mut self, member: usize) {
        let args =
            ["--listen-client-urls", &self.url(member, 0), "--advertise-client-urls", &self.url(member, 0)];
        self.members[member].process = Some(self.process(member, &args));
    }

    /// Keeps what it holds, for `restore`.
    pub fn save(&self) {
        let file = self.path("snapshot");
        self.ctl(&["snapshot", "save", file.to_str().unwrap()]);
    }

    /// Lets the only member be what it was at `save`, and `meanwhile` happen before
    /// anyone finds it again.
    pub fn restore(&mut self, meanwhile: impl FnOnce(&Cluster)) {
        self.members[0].kill();
        self.wipe();
        let (snapshot, data) = (self.path("snapshot"), self.data(0));
        let peer = self.url(0, 1);
        let cluster = format!("m0={peer}");
        self.ctl(&[
            "snapshot",
            "restore",
            snapshot.to_str().unwrap(),
            "--data-dir",
            data.to_str().unwrap(),
            "--name",
            "m0",
            "--initial-cluster",
            &cluster,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        self.start_hidden(meanwhile);
    }

    /// Starts the only member, and lets `meanwhile` happen before anyone finds it.
    pub fn start_hidden(&mut self, meanwhile: impl FnOnce(&Cluster)) {
        // Every host is behind the bridge: without it nobody but us is here.
        let switch = self.lab.switch().clone();
        let rules = "add table ip hidden; add chain ip hidden in { type filter hook input priority 0; }; add rule ip hidden in iifname br0 tcp dport 2379 drop";
        switch.run("nft", [rules]).unwrap();
        self.start(0);
        meanwhile(self);
        switch.run("nft", ["delete table ip hidden"]).unwrap();
    }

    /// Every trace of the only member.
    pub fn wipe(&self) {
        fs::remove_dir_all(self.data(0)).unwrap();
    }

    /// To any other member.
    pub fn move_leader(&self) {
        let status = self.ctl(&["endpoint", "status", "-w", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let of = |at: usize| status[at]["Status"]["header"]["member_id"].as_u64().unwrap();
        let leader = status[0]["Status"]["leader"].as_u64().unwrap();
        let next = (0..self.members.len()).map(of).find(|id| *id != leader).unwrap();
        self.ctl(&["move-leader", &format!("{next:x}")]);
    }

    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap()
    }

    /// Until it is done.
    pub fn insist(&self, args: &[&str]) -> String {
        let mut said = Err(());
        let done = || {
            said = self.try_ctl(args).map_err(drop);
            said.is_ok()
        };
        wait_until(2 * SOON, &args.join(" "), done).unwrap();
        said.unwrap()
    }

    /// The keys of all leases.
    pub fn keys(&self) -> Vec<String> {
        let keys = self.try_ctl(&["get", "--prefix", "/coreos.com/network/subnets/", "--keys-only"]);
        keys.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    /// All leases: each key, and the address that its record publishes.
    pub fn records(&self) -> Vec<(String, String)> {
        let prefix = "/coreos.com/network/subnets/";
        let keys = self.keys();
        let values = self.ctl(&["get", "--prefix", prefix, "--print-value-only"]);
        let ip = |value: &str| {
            let record: serde_json::Value = serde_json::from_str(value).unwrap();
            record["PublicIP"].as_str().unwrap().to_owned()
        };
        let values: Vec<_> = values.lines().filter(|line| !line.is_empty()).map(ip).collect();
        assert_eq!(keys.len(), values.len());
        keys.into_iter().zip(values).collect()
    }

    /// Which number of the store's history a key was written with last.
    pub fn mod_revision(&self, key: &str) -> u64 {
        let found: serde_json::Value = serde_json::from_str(&self.ctl(&["get", key, "-w", "json"])).unwrap();
        found["kvs"][0]["mod_revision"].as_u64().unwrap()
    }

    fn try_ctl(&self, args: &[&str]) -> Result<String, netns_harness::Error> {
        let urls = self.urls();
        let all = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &urls];
        self.lab.switch().run("env", all.iter().chain(args))
    }

    fn process(&self, member: usize, args: &[&str]) -> Daemon {
        let peer = self.url(member, 1);
        let all = self.members.iter().map(|m| format!("m{}={}", m.number, self.url(m.number, 1)));
        let mut command = self.lab.switch().command("etcd");
        command.arg("--data-dir").arg(self.data(member)).args(["--name", &format!("m{member}")]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &all.collect::<Vec<_>>().join(",")]).args(args);
        self.lab.switch().spawn(&format!("etcd{member}"), &mut command).unwrap()
    }

    fn await_health(&self) {
        wait_until(SOON, "etcd", || self.try_ctl(&["get", "anything"]).is_ok()).unwrap();
    }

    fn url(&self, member: usize, peer: usize) -> String {
        format!("http://{}:{}", self.lab.switch_ip4(), 2379 + 100 * member + peer)
    }

    fn data(&self, member: usize) -> PathBuf {
        self.path(&format!("etcd{member}"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join(name)
    }
}

impl Member {
    /// As by `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill9().unwrap();
    }

    /// It hangs, its connections stay open.
    pub fn pause(&mut self) {
        self.process.as_mut().expect("it runs").pause().unwrap();
    }

    pub fn resume(&mut self) {
        self.process.as_mut().expect("it runs").resume().unwrap();
    }
}
