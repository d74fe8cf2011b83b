//! A real etcd on loopback, gone when dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Debian's etcd with a data directory of its own.
pub struct Etcd {
    pub url: String,
    child: Child,
    args: Vec<String>,
    /// What etcdctl is called with besides the endpoint.
    ctl_args: Vec<String>,
    dir: TempDir,
}

impl Etcd {
    pub fn start() -> Etcd {
        Etcd::start_with("http", |_| (Vec::new(), Vec::new()))
    }

    /// `options` gives the arguments of etcd and of etcdctl, files in the
    /// directory included.
    pub fn start_with(scheme: &str, options: impl FnOnce(&Path) -> (Vec<String>, Vec<String>)) -> Etcd {
        let dir = TempDir::new().expect("a temporary directory");
        let (client, peer) = free_ports();
        let url = format!("{scheme}://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let (extra, ctl_args) = options(dir.path());
        let mut args: Vec<String> = [
            ("--listen-client-urls", url.clone()),
            ("--advertise-client-urls", url.clone()),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("default={peer}")),
            ("--logger", "zap".into()),
            ("--log-outputs", dir.path().join("log").display().to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        args.extend(extra);
        let child = spawn(&args, &dir.path().join("data"));
        let etcd = Etcd { url, child, args, ctl_args, dir };
        etcd.wait();
        etcd
    }

    /// As by `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("etcd is ours to kill");
        self.child.wait().expect("etcd is our child");
    }

    /// `-STOP` or `-CONT`: etcd hangs, its connections stay open.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill(1)").success());
    }

    /// On the same data and address, after `kill`.
    pub fn restart(&mut self) {
        self.child = spawn(&self.args, &self.data());
        self.wait();
    }

    /// As another store at the same address, after `kill`.
    pub fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.data()).expect("the data directory");
        self.restart();
    }

    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(&self.ctl_args)
            .args(args)
            .output()
            .expect("etcdctl (package etcd-client)");
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).expect("etcdctl prints UTF-8")),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|e| panic!("etcdctl {args:?}: {e}"))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.try_ctl(&["get", "anything"]).is_err_and(|e| !e.contains("user name is empty")) {
            assert!(Instant::now() < deadline, "etcd is not up after 30 s; its log: {:?}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(args: &[String], data: &Path) -> Child {
    Command::new("etcd")
        .arg("--data-dir")
        .arg(data)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd (package etcd-server)")
}

fn free_ports() -> (u16, u16) {
    let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
    let (a, b) = (bind(), bind());
    (port(&a), port(&b))
}
