//! Debian's `etcdctl` on the built-in store, over its Unix socket and over TCP.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::peers::Builtin;

struct Ctl {
    _store: Builtin,
    endpoint: String,
}

fn over_unix_and_tcp(check: impl Fn(&Ctl)) {
    let unix = |store: &Builtin| format!("unix://{}", store.socket().display());
    let tcp = |store: &Builtin| store.url.clone();
    for endpoint in [unix as fn(&Builtin) -> String, tcp] {
        let store = Builtin::start();
        check(&Ctl { endpoint: endpoint(&store), _store: store });
    }
}

#[test]
fn keys_are_put_read_and_deleted() {
    over_unix_and_tcp(|ctl| {
        for (key, value) in [("/a/1", "one"), ("/a/2", "two"), ("/b", "three"), ("/a/1", "uno")] {
            assert_eq!(ctl.run(&["put", key, value]), "OK\n");
        }
        assert_eq!(ctl.run(&["get", "/a/1"]), "/a/1\nuno\n");
        assert_eq!(ctl.run(&["get", "/a/1", "--rev", "2", "--print-value-only"]), "one\n");
        assert_eq!(ctl.run(&["get", "/a", "--prefix", "--keys-only"]), "/a/1\n\n/a/2\n\n");
        assert_eq!(ctl.run(&["get", "", "--prefix", "--limit", "1", "--print-value-only"]), "uno\n");
        let sorted =
            ["get", "/", "--prefix", "--sort-by", "VALUE", "--order", "DESCEND", "--print-value-only"];
        assert_eq!(ctl.run(&sorted), "uno\ntwo\nthree\n");
        assert_eq!(ctl.run(&["put", "/b", "drei", "--prev-kv"]), "OK\n/b\nthree\n");
        assert_eq!(ctl.run(&["del", "/a", "--prefix", "--prev-kv"]), "2\n/a/1\nuno\n/a/2\ntwo\n");
        assert_eq!(ctl.run(&["del", "/none"]), "0\n");
        assert_eq!(ctl.run(&["compaction", "5", "--physical"]), "compacted revision 5\n");
        assert!(ctl.fail(&["get", "/a/1", "--rev", "3"]).contains("required revision has been compacted"));
        assert!(ctl.fail(&["get", "/a/1", "--rev", "99"]).contains("required revision is a future revision"));
    });
}

#[test]
fn transactions_take_the_branch_they_should() {
    over_unix_and_tcp(|ctl| {
        let input = "create(\"k\") = \"0\"\n\nput k v\nget k\n\nget k\n\n";
        assert_eq!(ctl.run_with(&["txn"], input), "SUCCESS\n\nOK\n\nk\nv\n");
        assert_eq!(ctl.run_with(&["txn"], input), "FAILURE\n\nk\nv\n");
    });
}

#[test]
fn watches_tell_of_the_past_and_the_present() {
    over_unix_and_tcp(|ctl| {
        ctl.run(&["put", "/w/a", "1"]);
        ctl.run(&["put", "/w/a", "2"]);
        let args = ["watch", "/w", "--prefix", "--rev", "2", "--prev-kv"];
        let mut child = ctl.command(&args).stdout(Stdio::piped()).spawn().expect("etcdctl");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut read = |count: usize| lines.by_ref().take(count).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(read(3), ["PUT", "/w/a", "1"]);
        assert_eq!(read(5), ["PUT", "/w/a", "1", "/w/a", "2"]);
        ctl.run(&["del", "/w/a"]);
        assert_eq!(read(4), ["DELETE", "/w/a", "2", "/w/a"]);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn leases_live_as_long_as_they_are_kept() {
    over_unix_and_tcp(|ctl| {
        let granted = ctl.run(&["lease", "grant", "60"]);
        let id = granted.split(' ').nth(1).unwrap();
        assert_eq!(granted, format!("lease {id} granted with TTL(60s)\n"));
        ctl.run(&["put", "leased", "v", "--lease", id]);
        let left = ctl.run(&["lease", "timetolive", id, "--keys"]);
        assert!(
            left.contains("granted with TTL(60s), remaining(") && left.contains("attached keys([leased])")
        );
        let kept = ctl.run(&["lease", "keep-alive", id, "--once"]);
        assert_eq!(kept, format!("lease {id} keepalived with TTL(60)\n"));
        assert_eq!(ctl.run(&["lease", "list"]), format!("found 1 leases\n{id}\n"));
        assert_eq!(ctl.run(&["lease", "revoke", id]), format!("lease {id} revoked\n"));
        assert_eq!(ctl.run(&["get", "leased"]), "");
        assert_eq!(ctl.run(&["lease", "timetolive", id]), format!("lease {id} already expired\n"));
        assert!(ctl.fail(&["lease", "revoke", id]).contains("requested lease not found"));
    });
}

#[test]
fn a_lease_that_nobody_keeps_ends_with_its_keys() {
    over_unix_and_tcp(|ctl| {
        let granted = ctl.run(&["lease", "grant", "2"]);
        let id = granted.split(' ').nth(1).unwrap();
        ctl.run(&["put", "leased", "v", "--lease", id]);
        let events = ctl.command(&["watch", "leased", "--rev", "3"]).stdout(Stdio::piped()).spawn();
        let mut child = events.expect("etcdctl");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2);
        assert_eq!(lines.collect::<Result<Vec<_>, _>>().unwrap(), ["DELETE", "leased"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(ctl.run(&["lease", "list"]), "found 0 leases\n");
    });
}

#[test]
fn the_store_is_a_healthy_cluster_of_one() {
    over_unix_and_tcp(|ctl| {
        // etcdctl says so on its error stream.
        let health = ctl.command(&["endpoint", "health"]).output().unwrap();
        assert!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
        let status = ctl.run(&["endpoint", "status"]);
        assert!(
            status.starts_with(&format!("{}, ", ctl.endpoint)) && status.contains("true, false"),
            "{status}"
        );
        assert!(ctl.run(&["member", "list"]).contains(", started, weft, "));
        assert_eq!(ctl.run(&["alarm", "list"]), "");
        assert!(
            ctl.fail(&["member", "add", "other", "--peer-urls=http://127.0.0.1:1"]).contains("one machine's")
        );
    });
}

impl Ctl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> String {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], input: &str) -> String {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(input.as_bytes()).unwrap();
        drop(writer);
        let output = self.command(args).stdin(reader).output().expect("etcdctl (package etcd-client)");
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("etcdctl (package etcd-client)");
        assert!(!output.status.success(), "etcdctl {args:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}
