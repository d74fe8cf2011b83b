//! What was acknowledged outlives the process, and somebody always serves.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, PutOptions, WatchOptions};
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft::subnet::store::builtin::{Keeper, Role};

use crate::peers::{client, runtime, wait_for};

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..12u64 {
        let mut store = Store::start(dir.path());
        let runtime = runtime();
        let count = AtomicU64::new(0);
        let writers = (0..8).map(|writer| {
            write_until_it_dies(dir.path().join("store.sock"), format!("{round}/{writer}"), &count)
        });
        let killed = async {
            while count.load(Relaxed) < 30 + 7 * round {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            store.kill();
        };
        let (written, ()) = runtime.block_on(async { tokio::join!(join_all(writers), killed) });
        acknowledged.extend(written.into_iter().flatten());
    }
    let _store = Store::start(dir.path());
    runtime().block_on(async {
        let mut client = client(dir.path().join("store.sock")).await;
        let response = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
        let found: BTreeMap<_, _> =
            response.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision())).collect();
        for (key, revision) in &acknowledged {
            assert_eq!(found.get(key), Some(revision), "{key} was acknowledged at {revision}");
        }
    });
}

/// Puts one key after another; returns those that were acknowledged.
async fn write_until_it_dies(socket: PathBuf, prefix: String, count: &AtomicU64) -> BTreeMap<String, i64> {
    let mut client = client(socket).await;
    let mut acknowledged = BTreeMap::new();
    for i in 0.. {
        let key = format!("{prefix}/{i}");
        match client.put(key.as_str(), "v", None).await {
            Ok(response) => acknowledged.insert(key, response.header().unwrap().revision()),
            Err(_) => break,
        };
        count.fetch_add(1, Relaxed);
    }
    acknowledged
}

#[test]
fn a_restart_keeps_keys_and_history_and_gives_leases_their_whole_time() {
    let dir = TempDir::new().unwrap();
    let mut store = Store::start(dir.path());
    let socket = dir.path().join("store.sock");
    let lease = runtime().block_on(async {
        let mut client = client(socket.clone()).await;
        let lease = client.lease_grant(100, None).await.unwrap().id();
        client.put("k", "old", None).await.unwrap();
        client.put("k", "new", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(client.lease_time_to_live(lease, None).await.unwrap().ttl() <= 98);
        lease
    });
    store.kill();
    let _store = Store::start(dir.path());
    runtime().block_on(async {
        let mut client = client(socket).await;
        let old = client.get("k", Some(GetOptions::new().with_revision(2))).await.unwrap();
        assert_eq!(old.kvs()[0].value(), b"old");
        assert_eq!(old.header().unwrap().revision(), 3);
        assert!(client.lease_time_to_live(lease, None).await.unwrap().ttl() >= 99);
        client.lease_revoke(lease).await.unwrap();
        assert_eq!(client.get("k", None).await.unwrap().count(), 0);
    });
}

#[test]
fn keepers_take_over_when_the_owner_is_killed_and_when_it_stops() {
    let dir = TempDir::new().unwrap();
    let mut store = Store::start(dir.path());
    runtime().block_on(async {
        let stops = [CancellationToken::new(), CancellationToken::new()];
        let (first, a) = Keeper::start(dir.path(), stops[0].clone()).await.unwrap();
        let (second, b) = Keeper::start(dir.path(), stops[1].clone()).await.unwrap();
        assert_eq!((a.role().borrow().clone(), b.role().borrow().clone()), (Role::Client, Role::Client));
        let mut clients = [of(first).await, of(second).await];
        let revision = clients[0].put("k", "1", None).await.unwrap().header().unwrap().revision();

        store.kill();
        let killed = Instant::now();
        clients[1].put("k", "2", None).await.expect("a put waits for the next owner");
        let gap = killed.elapsed();
        println!("kill -9 to the next acknowledged put: {gap:?}");
        let roles = [a.role().borrow().clone(), b.role().borrow().clone()];
        let owner = roles.iter().position(|role| *role == Role::Owner).expect("one took over");
        assert_eq!(roles[1 - owner], Role::Client);

        let mut handles = [Some(a), Some(b)];
        stops[owner].cancel();
        clients[1 - owner].put("k", "3", None).await.expect("the old or the next owner serves");
        handles[owner].take().unwrap().stopped().await;
        let mut role = handles[1 - owner].as_ref().unwrap().role();
        role.wait_for(|role| *role == Role::Owner).await.expect("the other took over");
        clients[1 - owner].put("k", "4", None).await.expect("the next owner serves");

        let options = WatchOptions::new().with_start_revision(revision);
        let mut watch = clients[1 - owner].watch("k", Some(options)).await.unwrap();
        assert!(watch.message().await.unwrap().unwrap().created());
        let events = watch.message().await.unwrap().unwrap();
        let values: Vec<_> = events.events().iter().map(|event| event.kv().unwrap().value()).collect();
        assert_eq!(values, [b"1", b"2", b"3", b"4"], "no revision is lost by a change of owners");
        stops[1 - owner].cancel();
        handles[1 - owner].take().unwrap().stopped().await;
    });
}

#[test]
fn keepers_step_back_for_weft_store_and_take_over_after_it() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let keepers = runtime.block_on(async {
        let mut keepers = Vec::new();
        for _ in 0..3 {
            keepers.push(Keeper::start(dir.path(), stop.clone()).await.unwrap());
        }
        keepers
    });
    let mut store = Store::start(dir.path());
    let owner = || std::fs::read_to_string(dir.path().join("store.lock")).unwrap_or_default();
    wait_for("weft store to own the lock", || owner().trim() == store.child.id().to_string());
    runtime.block_on(async {
        let mut client = of(keepers[0].0.clone()).await;
        client.put("k", "served by weft store", None).await.unwrap();
        store.kill();
        // What is sent while the client learns of the death fails.
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Err(error) = client.put("k", "served by a keeper", None).await {
            assert!(Instant::now() < deadline, "a keeper serves within a second: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
        for (_, keeper) in keepers {
            keeper.stopped().await;
        }
    });
}

#[test]
fn a_stopping_owner_ends_its_streams() {
    let dir = TempDir::new().unwrap();
    runtime().block_on(async {
        let stop = CancellationToken::new();
        let (channel, keeper) = Keeper::start(dir.path(), stop.clone()).await.unwrap();
        let mut client = of(channel).await;
        let mut watch = client.watch("k", None).await.unwrap();
        assert!(watch.message().await.unwrap().unwrap().created());
        stop.cancel();
        assert!(watch.message().await.unwrap_err().to_string().contains("etcdserver: server stopped"));
        let started = Instant::now();
        keeper.stopped().await;
        assert!(started.elapsed() < Duration::from_secs(5), "drained after {:?}", started.elapsed());
        assert!(!dir.path().join("store.sock").exists());
    });
}

#[test]
fn children_inherit_nothing_of_the_store() {
    let dir = TempDir::new().unwrap();
    runtime().block_on(async {
        let stop = CancellationToken::new();
        let (_, keeper) = Keeper::start(dir.path(), stop.clone()).await.unwrap();
        let fds = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
        let fds = String::from_utf8(fds.stdout).unwrap();
        assert!(!fds.contains(&*dir.path().to_string_lossy()) && !fds.contains("socket:"), "{fds}");
        stop.cancel();
        keeper.stopped().await;
    });
}

#[test]
fn a_second_server_is_refused_and_leaves_the_first_alone() {
    let dir = TempDir::new().unwrap();
    let store = Store::start(dir.path());
    let second = start_and_fail(dir.path(), &[]);
    assert!(
        second.contains("another process") && second.contains(&format!("(pid {})", store.child.id())),
        "{second}"
    );
    runtime().block_on(async {
        client(dir.path().join("store.sock")).await.put("k", "v", None).await.unwrap();
    });
}

#[test]
fn directory_socket_and_file_are_their_owners_alone() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("weft");
    let _store = Store::start(&dir);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for file in ["store.db", "store.lock", "store.sock"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
}

#[test]
fn a_file_that_is_not_ours_or_broken_is_named_and_left_alone() {
    let refused = |make: &dyn Fn(&Path), expected: &str| {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("store.db");
        make(&file);
        let before = std::fs::read(&file).unwrap();
        let error = start_and_fail(dir.path(), &[]);
        assert!(error.contains(expected) && error.contains(&*file.to_string_lossy()), "{error}");
        assert!(std::fs::read(&file).unwrap() == before, "{expected}: the file was changed");
    };
    refused(
        &|file| std::fs::write(file, "This is a note, long enough to be read as one. ".repeat(40)).unwrap(),
        "not a weft store",
    );
    refused(&|file| sqlite(file, "CREATE TABLE theirs (a)"), "not a weft store");
    refused(
        &|file| {
            full_store(file);
            sqlite(file, "PRAGMA user_version = 99");
        },
        "install a newer weft",
    );
    refused(
        &|file| {
            full_store(file);
            let size = std::fs::metadata(file).unwrap().len();
            let file = std::fs::File::options().write(true).open(file).unwrap();
            for page in 2..size / 4096 {
                file.write_all_at(&[0xa5; 600], page * 4096).unwrap();
            }
        },
        "damaged",
    );
}

#[test]
fn history_and_file_stay_bounded() {
    let dir = TempDir::new().unwrap();
    let _store = Store::start(dir.path());
    runtime().block_on(async {
        let client = client(dir.path().join("store.sock")).await;
        for _ in 0..30 {
            join_all((0..400).map(|i| {
                let mut client = client.clone();
                async move { client.put(format!("{}", i % 10), "v".repeat(100), None).await.unwrap() }
            }))
            .await;
        }
        let mut client = client;
        let at = |revision| Some(GetOptions::new().with_revision(revision));
        assert!(client.get("1", at(900)).await.unwrap_err().to_string().contains("has been compacted"));
        assert_eq!(client.get("1", at(12_001 - 10_000)).await.unwrap().count(), 1);
        assert!(client.status().await.unwrap().db_size() < 8 << 20);
    });
}

#[test]
fn a_watcher_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let dir = TempDir::new().unwrap();
    let _store = Store::start(dir.path());
    runtime().block_on(async {
        let mut client = client(dir.path().join("store.sock")).await;
        let mut watch = client.watch("", Some(WatchOptions::new().with_all_keys())).await.unwrap();
        let mut written = Vec::new();
        for i in 0..600usize {
            let value = "v".repeat(if i % 50 == 0 { 200_000 } else { 5_000 });
            client.put(format!("{i}"), value, None).await.unwrap();
            written.push(i.to_string());
        }
        let mut seen = Vec::new();
        while seen.len() < written.len() {
            let response = tokio::time::timeout(Duration::from_secs(10), watch.message()).await;
            let response = response.expect("the rest within 10 s").unwrap().unwrap();
            seen.extend(
                response.events().iter().map(|event| event.kv().unwrap().key_str().unwrap().to_owned()),
            );
        }
        assert_eq!(seen, written);
    });
}

/// `weft store`, killed when dropped.
struct Store {
    child: Child,
}

impl Store {
    fn start(dir: &Path) -> Self {
        let mut child = command(dir, &[]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let socket = dir.join("store.sock");
        wait_for("weft store to listen", || {
            assert_eq!(child.try_wait().unwrap(), None, "weft store ended");
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Self { child }
    }

    /// As by `kill -9`.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("store").arg("--data-dir").arg(dir).args(args);
    command
}

fn start_and_fail(dir: &Path, args: &[&str]) -> String {
    let Output { status, stderr, .. } = command(dir, args).output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

fn full_store(file: &Path) {
    let dir = file.parent().unwrap();
    let mut store = Store::start(dir);
    runtime().block_on(async {
        let mut client = client(dir.join("store.sock")).await;
        for i in 0..200 {
            client.put(format!("{i}"), "v".repeat(300), None).await.unwrap();
        }
    });
    store.kill();
    sqlite(file, "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE");
}

fn sqlite(file: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(file).unwrap();
    for statement in sql.split(';') {
        connection.prepare(statement).unwrap().query([]).unwrap().next().unwrap();
    }
}

async fn of(channel: tonic::transport::Channel) -> Client {
    Client::from_channel(etcd_client::Channel::Tonic(channel), None).await.unwrap()
}
