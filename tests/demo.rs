//! `weft demo` as a stranger runs it. Needs root.

// Clippy takes helpers of tests for product code.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use netns_harness::wait_until;

#[test]
fn vxlan_is_shown_measured_hurt_and_healed() {
    let told = tell(&["--ipv6"]);
    for words in ["none lost", "Gbit/s", "flannel.1 deleted", "VXLAN", "10.244.", "Everything is removed"] {
        assert!(told.contains(words), "{words:?} in\n{told}");
    }
}

#[test]
fn host_gw_is_shown_with_many_hosts_and_a_real_etcd() {
    let told = tell(&["--backend", "host-gw", "--etcd", "--hosts", "5"]);
    for words in ["etcd", "90 pairs", "none lost", "route deleted", "host5", "no tunnel"] {
        assert!(told.contains(words), "{words:?} in\n{told}");
    }
}

#[test]
fn kept_until_ctrl_c_and_entered_meanwhile() {
    let mut demo = Demo::start(&["--keep", "--hosts", "2"]);
    let enter = format!("ip netns exec {}.host1.c1 ping", demo.lab());
    let told = demo.read_until(&enter);

    let command = told.lines().find(|line| line.contains(&enter)).unwrap().trim();
    let words: Vec<&str> = command.split(' ').collect();
    let pinged = Command::new(words[0]).args(&words[1..]).args(["-c1", "-W2"]).output().unwrap();
    assert!(pinged.status.success(), "{pinged:?}\n{told}");

    demo.signal("INT");
    assert!(demo.child.wait().unwrap().success());
    assert_eq!(demo.traces(), Vec::<String>::new());
}

#[test]
fn ctrl_c_half_way_leaves_nothing() {
    let mut demo = Demo::start(&[]);
    demo.read_until("lease of its own");
    demo.signal("INT");
    assert!(!demo.child.wait().unwrap().success());
    assert_eq!(demo.traces(), Vec::<String>::new());
}

#[test]
fn kill_9_half_way_leaves_nothing() {
    for moment in ["switch and 3 hosts", "lease of its own", "Gbit/s"] {
        let mut demo = Demo::start(&[]);
        demo.read_until(moment);
        demo.signal("KILL");
        demo.child.wait().unwrap();
        wait_until(Duration::from_secs(5), "the guard's work", || demo.traces().is_empty())
            .unwrap_or_else(|error| panic!("killed at {moment:?}: {error}: {:?}", demo.traces()));
    }
}

/// Runs the demo to its end; it must succeed and leave nothing.
fn tell(args: &[&str]) -> String {
    let mut demo = Demo::start(args);
    let mut told = String::new();
    demo.output.read_to_string(&mut told).unwrap();
    let status = demo.child.wait().unwrap();
    assert!(status.success(), "{status}\n{told}");
    assert_eq!(demo.traces(), Vec::<String>::new());
    told
}

struct Demo {
    child: Child,
    output: Box<dyn BufRead>,
}

impl Demo {
    fn start(args: &[&str]) -> Demo {
        build_plugin();
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg("demo")
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Box::new(BufReader::new(child.stdout.take().unwrap()));
        Demo { child, output }
    }

    fn lab(&self) -> String {
        format!("weft-demo.{}", self.child.id())
    }

    /// What it says up to and with the line that contains `words`.
    fn read_until(&mut self, words: &str) -> String {
        let mut told = String::new();
        while !told.contains(words) {
            assert!(self.output.read_line(&mut told).unwrap() > 0, "no {words:?} in\n{told}");
        }
        told
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Namespaces, files and processes of the lab.
    fn traces(&self) -> Vec<String> {
        let lab = self.lab();
        let names = ["/run/netns", "/run", "/tmp", "/var/tmp", "/dev/shm"].into_iter().flat_map(|dir| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(move |entry| format!("{dir}/{}", entry.file_name().to_string_lossy()))
        });
        let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        names.chain(commands).filter(|name| name.contains(&lab)).collect()
    }
}

/// The plugin is another package's program, which cargo does not build for this
/// package's tests.
fn build_plugin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_weft")).parent().unwrap().parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "-p", "weft-cni", "--target-dir"]).arg(target);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success());
    });
}
