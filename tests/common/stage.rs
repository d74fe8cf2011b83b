//! A lab with Debian's etcd on its switch.

use std::time::Duration;

use netns_harness::{Daemon, Lab, wait_until};

pub const PREFIX: &str = "/coreos.com/network";
pub const SOON: Duration = Duration::from_secs(30);

pub struct Stage {
    // The store ends before the lab it stands in.
    _store: Daemon,
    pub lab: Lab,
}

impl Stage {
    pub fn new(label: &str) -> Stage {
        let lab = Lab::new(label).unwrap();
        let url = url(&lab);
        let data = lab.dir().join("etcd").display().to_string();
        let mut command = lab.switch().command("etcd");
        command.args(["--data-dir", &data, "--advertise-client-urls", &url]).args([
            "--listen-client-urls",
            "http://0.0.0.0:2379",
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
        ]);
        let store = lab.switch().spawn("etcd", &mut command).unwrap();
        Stage::with_store(lab, store)
    }

    /// With a store of the caller's own that serves etcd's API at `url()`.
    pub fn with_store(lab: Lab, store: Daemon) -> Stage {
        let stage = Stage { _store: store, lab };
        wait_until(SOON, "the store", || stage.try_etcdctl(&["get", "anything"]).is_ok()).unwrap();
        stage
    }

    pub fn url(&self) -> String {
        url(&self.lab)
    }

    pub fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", &format!("{PREFIX}/{key}"), value]);
    }

    pub fn etcdctl(&self, args: &[&str]) -> String {
        self.try_etcdctl(args).unwrap()
    }

    fn try_etcdctl(&self, args: &[&str]) -> Result<String, netns_harness::Error> {
        let url = self.url();
        let all = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &url];
        self.lab.switch().run("env", all.iter().chain(args))
    }
}

fn url(lab: &Lab) -> String {
    format!("http://{}:2379", lab.switch_ip4())
}
