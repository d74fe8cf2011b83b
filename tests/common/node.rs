//! A host with a daemon on the lab's built-in store, for container runtimes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use netns_harness::{Daemon, Host, Lab, wait_until};

pub const SOON: Duration = Duration::from_secs(60);

/// A host with a daemon of ours.
pub struct Node {
    daemon: Daemon,
    pub host: Host,
}

impl Node {
    pub fn new(lab: &Lab, name: &str) -> Node {
        let host = lab.host(name).unwrap();
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command
            .args(["daemon", "--network", "10.42.0.0/16", "--ip-masq", "--data-dir"])
            .arg(lab.dir().join("store"))
            .arg("--subnet-file")
            .arg(host.dir().join("subnet.env"))
            .arg("--admin-socket")
            .arg(host.dir().join("admin.sock"));
        Node { daemon: host.spawn("weft", &mut command).unwrap(), host }
    }

    pub fn wait_in_sync(&self) {
        let in_sync = || {
            let mut command = self.host.command(env!("CARGO_BIN_EXE_weft"));
            command.args(["status", "--json", "--admin-socket"]).arg(self.host.dir().join("admin.sock"));
            let output = command.output().unwrap();
            let status = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
            output.status.success() && status["peers"].as_array().is_some_and(|peers| !peers.is_empty())
        };
        wait_until(SOON, "a daemon in sync", in_sync)
            .unwrap_or_else(|error| panic!("{error}: {}", self.daemon.log_tail(50)));
    }

    /// Of subnet.env.
    pub fn value(&self, key: &str) -> String {
        let env = fs::read_to_string(self.host.dir().join("subnet.env")).unwrap();
        let line = env.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} in {env}")).to_owned()
    }
}

/// Of that name in every hierarchy, which is one, or one for each controller.
pub fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    remove_cgroup(&root.join(name));
    for controller in fs::read_dir(root).into_iter().flatten().flatten() {
        remove_cgroup(&controller.path().join(name));
    }
}

/// The kernel lets go of an empty one only once its last process is reaped.
fn remove_cgroup(path: &Path) {
    let _ = wait_until(Duration::from_secs(5), "an empty cgroup", || {
        for child in fs::read_dir(path).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(child.path());
        }
        fs::remove_dir(path).is_ok() || !path.exists()
    });
}
