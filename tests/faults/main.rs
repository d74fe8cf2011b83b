//! Faults of the store under whole nodes: real etcd, three members where it takes
//! three, daemons and containers on hosts that are network namespaces. Traffic
//! goes on through each, no subnet ever has two holders, and the node is right
//! soon after the store is back. How soon is printed, not judged: the machine
//! may be busy.

// Helpers may unwrap as tests do.
#![cfg(test)]

mod clock;
mod cluster;
#[path = "../fabric/lab.rs"]
#[expect(dead_code, reason = "what other tests use of it")]
mod lab;
mod refusal;
mod restart;
mod stage;

use std::time::Duration;

use netns_harness::wait_until;

use crate::lab::SOON;
use crate::stage::Stage;

/// Longer than any lease here lives.
const TTL: &str = "6";
const LONG: Duration = Duration::from_secs(15);

#[test]
fn down_for_longer_than_a_lease_lives() {
    let mut stage = Stage::new("down", 1, &[("WEFT_LEASE_TTL", TTL)]);
    stage.etcd.members[0].kill();
    stage.delete_route(0);
    std::thread::sleep(LONG);

    stage.etcd.start(0);
    stage.assert_right("etcd down for 15 s, a lease of 6 s");
}

#[test]
fn hanging_again_and_again() {
    let mut stage = Stage::new("slow", 1, &[]);
    for _ in 0..4 {
        stage.etcd.members[0].pause();
        std::thread::sleep(Duration::from_millis(1500));
        stage.etcd.members[0].resume();
        std::thread::sleep(Duration::from_millis(200));
    }
    stage.etcd.members[0].pause();
    std::thread::sleep(Duration::from_secs(8));
    stage.etcd.members[0].resume();
    stage.assert_right("etcd hung for 8 s");
}

#[test]
fn a_node_cut_off_for_a_while_and_compacted_past() {
    let mut stage = Stage::new("cut", 1, &[]);
    stage.cut_off_from_store(0);
    for n in 100..120 {
        stage.put_peer(n);
    }
    for n in 100..120 {
        stage.delete_peer(n);
    }
    stage.put_peer(120);
    stage.compact();
    std::thread::sleep(Duration::from_secs(20));
    assert!(!stage.fabric.has_route(0, "10.42.120.0/24"));

    stage.mend_to_store(0);
    let took = wait_until(SOON, "what was missed", || stage.fabric.has_route(0, "10.42.120.0/24")).unwrap();
    eprintln!("cut off for 20 s and compacted: a peer of meanwhile was there {took:.1?} after");
    assert!(!stage.fabric.has_route(0, "10.42.119.0/24"));
    stage.assert_right("cut off for 20 s");
}

#[test]
fn a_lease_that_ran_out_while_its_node_was_cut_off_is_taken_again() {
    let mut stage = Stage::new("expired", 1, &[("WEFT_LEASE_TTL", TTL)]);
    let env = stage.fabric.subnet_env(0);
    // The others take its end for its end: traffic goes on between who is left.
    stage.watch_traffic_within(1);
    stage.cut_off_from_store(0);
    let key = stage.fabric.key_of(0);
    wait_until(SOON, "the end of the lease", || !stage.etcd.keys().contains(&key)).unwrap();

    stage.mend_to_store(0);
    let took = wait_until(SOON, "the lease", || stage.etcd.keys().contains(&key)).unwrap();
    eprintln!("a lease that ran out was taken again {took:.1?} after the partition");
    assert_eq!(stage.fabric.subnet_env(0), env);
    stage.assert_right("a lease that ran out");
}

#[test]
fn one_of_three_members_lost_and_the_leader_moved() {
    let mut stage = Stage::new("three", 3, &[]);
    stage.etcd.move_leader();
    stage.assert_right("the leader moved");
    // Whichever the daemons speak to, it is killed once.
    for member in 0..3 {
        stage.etcd.members[member].kill();
        stage.assert_right(&format!("member {member} of three killed"));
        stage.etcd.start(member);
    }
    // Without a quorum nothing can be said for sure; with it again all is well.
    stage.etcd.members[0].kill();
    stage.etcd.members[1].kill();
    std::thread::sleep(Duration::from_secs(5));
    stage.etcd.start(1);
    stage.assert_right("the quorum lost for 5 s");
}

#[test]
fn restored_from_a_snapshot_with_revisions_that_go_back() {
    let mut stage = Stage::new("restored", 1, &[]);
    stage.put_peer(100);
    stage.etcd.save();
    stage.put_peer(101);
    stage.delete_peer(100);
    for i in 0..2 {
        stage.fabric.wait_for_route(i, "10.42.101.0/24");
    }

    stage.etcd.restore(|_| {});
    for (i, dst, there) in [(0, "100", true), (1, "100", true), (0, "101", false), (1, "101", false)] {
        let dst = format!("10.42.{dst}.0/24");
        wait_until(SOON, &dst, || stage.fabric.has_route(i, &dst) == there).unwrap();
    }
    stage.assert_right("restored from a snapshot");
}

#[test]
fn restored_from_a_snapshot_and_gone_past_our_revision_before_we_looked() {
    let mut stage = Stage::new("passed", 1, &[]);
    stage.etcd.save();
    stage.put_peer(101);
    for i in 0..2 {
        stage.fabric.wait_for_route(i, "10.42.101.0/24");
    }

    stage.etcd.restore(|etcd| {
        for n in 0..20 {
            etcd.ctl(&["put", "/elsewhere", &n.to_string()]);
        }
    });
    for i in 0..2 {
        wait_until(SOON, "the end of what never was", || !stage.fabric.has_route(i, "10.42.101.0/24"))
            .unwrap();
    }
    stage.assert_right("restored and gone past");
}

#[test]
fn wiped_under_running_nodes_they_write_themselves_down_again() {
    let mut stage = Stage::new("wiped", 1, &[("WEFT_LEASE_TTL", TTL)]);
    let envs = [stage.fabric.subnet_env(0), stage.fabric.subnet_env(1)];
    stage.etcd.members[0].kill();
    stage.etcd.wipe();
    stage.etcd.start(0);
    let keys = [stage.fabric.key_of(0), stage.fabric.key_of(1)];
    wait_until(SOON, "both leases", || keys.iter().all(|key| stage.etcd.keys().contains(key))).unwrap();
    assert_eq!([stage.fabric.subnet_env(0), stage.fabric.subnet_env(1)], envs);
    stage.etcd.ctl(&["put", "/coreos.com/network/config", lab::VXLAN]);
    // They were each other's peers no more for a moment.
    stage.forget_traffic();
    stage.assert_right("wiped");
}

#[test]
fn a_login_that_is_refused_and_then_not() {
    let mut stage = Stage::new("login", 1, &[("WEFT_LEASE_TTL", "60")]);
    stage.etcd.ctl(&["user", "add", "root:secret"]);
    stage.etcd.ctl(&["user", "grant-role", "root", "root"]);
    stage.etcd.ctl(&["auth", "enable"]);
    // What is connected may go on for a while: nobody is, after this.
    stage.etcd.members[0].kill();
    stage.etcd.spawn(0);
    let says = |i: usize| stage.fabric.daemons[i].log_tail(50).contains("user name is empty");
    wait_until(SOON, "a word on it", || says(0) && says(1)).unwrap();
    stage.etcd.ctl(&["--user", "root:secret", "auth", "disable"]);
    stage.assert_right("a login refused and then not");
}

#[test]
fn notifications_of_the_kernel_that_were_lost_end_in_a_fresh_look() {
    let mut stage = Stage::new("enobufs", 1, &[]);
    let dst = stage.fabric.subnet_of(1);
    stage.fabric.daemons[0].pause().unwrap();
    // Far more than the socket holds, then what is ours, of which it tells no more.
    let host = &stage.fabric.hosts[0];
    let foreign = (0..20_000).map(|n| format!("10.99.{}.{}/32 dev eth0", n / 256, n % 256));
    let lines: Vec<_> =
        foreign.flat_map(|route| [format!("route add {route}"), format!("route del {route}")]).collect();
    host.ip_batch(&lines).unwrap();
    host.run("ip", ["route", "del", &dst]).unwrap();
    stage.forget_traffic();
    stage.fabric.daemons[0].resume().unwrap();

    let took = wait_until(SOON, "the route", || stage.fabric.has_route(0, &dst));
    let took = took.unwrap_or_else(|e| panic!("{e}: {}", stage.fabric.daemons[0].log_tail(30)));
    eprintln!("a route whose loss was lost, too, was back {took:.1?} after");
    let log = stage.fabric.daemons[0].log_tail(50);
    assert!(log.contains("reading the kernel's state afresh: notifications were lost"), "{log}");
    stage.assert_right("lost notifications");
}

#[test]
fn a_subnet_that_another_node_took_meanwhile_is_left_to_it() {
    // Room for two.
    let config = lab::VXLAN.replace("10.42.66.0", "10.42.9.0");
    let mut stage = Stage::with_config("taken", 1, &[("WEFT_LEASE_TTL", TTL)], &config);
    stage.watch_traffic_within(1);
    let key = stage.fabric.key_of(0);
    stage.cut_off_from_store(0);
    wait_until(SOON, "the end of the lease", || !stage.etcd.keys().contains(&key)).unwrap();
    stage.add_node();
    assert_eq!(stage.fabric.key_of(2), key);

    stage.mend_to_store(0);
    let says = || stage.fabric.status(0)["lease"]["state"].as_str().is_some_and(|s| s.contains("is lost"));
    wait_until(SOON, "the loss", says).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    stage.assert_one_holder_each("taken by another node", &[1, 2]);
    assert!(!stage.etcd.records().iter().any(|(_, ip)| *ip == stage.fabric.hosts[0].ip4().to_string()));

    // Nor does it come up with it again while nobody can tell.
    assert!(!stage.checkpoint(0).exists());
    stage.cut_off_from_store(0);
    stage.fabric.daemons[0].kill9().unwrap();
    stage.start_daemon(0);
    let waits = || stage.fabric.daemons[0].log_tail(50).contains("waiting for the store");
    wait_until(SOON, "a word on it", waits).unwrap();
    assert!(stage.fabric.try_status(0).is_none());
}
