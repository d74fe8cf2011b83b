//! The two stores that are compared, each in a directory of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::Client;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft::subnet::store::builtin::{ServeOptions, TcpListen, connect, serve};

/// Debian's etcd.
pub struct Etcd {
    child: Child,
    url: String,
    _dir: TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let (url, peer) = (format!("http://{}", free_address()), format!("http://{}", free_address()));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd (package etcd-server)");
        Self { child, url, _dir: dir }
    }

    pub async fn client(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(mut client) = Client::connect([&self.url], None).await
                && client.get("up?", None).await.is_ok()
            {
                return client;
            }
            assert!(Instant::now() < deadline, "etcd at {} is not up after 30 s", self.url);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The built-in store, served by a thread of this process.
pub struct Builtin {
    pub url: String,
    pub dir: TempDir,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Builtin {
    pub fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let (stop, address) = (CancellationToken::new(), free_address());
        let tcp = TcpListen { address, tls: None, insecure: false };
        let options = ServeOptions { data_dir: dir.path().join("weft"), unix: vec![], tcp: vec![tcp] };
        let shutdown = stop.clone();
        let thread = std::thread::spawn(move || runtime().block_on(serve(options, shutdown)).unwrap());
        let store = Self { url: format!("http://{address}"), dir, stop, thread: Some(thread) };
        wait_for("the built-in store to listen", || TcpStream::connect(address).is_ok());
        store
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("weft/store.sock")
    }

    pub async fn client(&self) -> Client {
        client(self.socket()).await
    }
}

impl Drop for Builtin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Err(panic)) = self.thread.take().map(std::thread::JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A client of the store that listens, or will, at `socket`.
pub async fn client(socket: PathBuf) -> Client {
    Client::from_channel(etcd_client::Channel::Tonic(connect(socket)), None).await.unwrap()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
