use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{DUAL, Node, Outcome, V4, ips, names, run};

/// Killed at moments spread over the time the command takes and a little more.
#[test]
fn after_a_kill_in_the_middle_of_add_or_del_a_del_leaves_nothing() {
    let node = Node::new("cni-kill", DUAL);
    let warm_up = node.pod("warm");
    let timed = |f: &dyn Fn() -> Outcome| {
        let start = Instant::now();
        f().result();
        start.elapsed()
    };
    let usual_add = timed(&|| node.add("warm", &warm_up));
    let usual_del = timed(&|| node.del("warm", &warm_up));
    let rounds = 40;
    let mut killed = 0;
    for round in 0..rounds {
        let (id, pod) = (format!("c{round}"), node.pod(&format!("p{round}")));
        let (command, usual) = if round % 2 == 0 { ("ADD", usual_add) } else { ("DEL", usual_del) };
        if command == "DEL" {
            node.add(&id, &pod).result();
        }
        let mut victim = node.start(command, &id, "eth0", Some(&pod.path()), None);
        thread::sleep(usual * round * 5 / 4 / rounds);
        victim.kill().unwrap();
        killed += u32::from(!victim.wait().unwrap().success());
        let del = node.del(&id, &pod);
        assert!(del.ok, "round {round}: {del:?}");
        node.assert_empty();
        assert_eq!(names(&pod.ip_json("link").unwrap()), ["lo"], "round {round}");
        let again = node.add(&id, &pod).result();
        assert_eq!(pod.ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0, "{again}");
        node.del(&id, &pod).result();
        pod.remove().unwrap();
    }
    assert!(killed >= rounds / 4, "only {killed} of {rounds} were caught in the middle");
}

/// The runtime is gone, too: nobody calls DEL, only GC when it is back.
#[test]
fn after_kills_in_the_middle_of_add_and_del_a_gc_leaves_what_is_valid() {
    let mut node = Node::new("cni-killgc", DUAL);
    node.conf["cniVersion"] = json!("1.1.0");
    node.conf["delegate"]["macspoofchk"] = json!(true);
    let pod = node.pod("valid");
    node.add("valid", &pod).result();
    let before = (node.reservations(), node.veths(), node.cache(), spoof_chains(&node));
    // A slow one would have most kills come too late.
    let usual = (0..3).map(|n| {
        let probe = node.pod(&format!("probe{n}"));
        let start = Instant::now();
        node.add(probe.name(), &probe).result();
        start.elapsed()
    });
    let usual = usual.min().unwrap();
    let rounds = 60;
    let mut killed = 0;
    let pods: Vec<_> = (0..rounds).map(|round| node.pod(&format!("p{round}"))).collect();
    for (round, pod) in (0..rounds).zip(&pods) {
        let id = format!("c{round}");
        let command = if round % 3 == 0 { "DEL" } else { "ADD" };
        if command == "DEL" {
            node.add(&id, pod).result();
        }
        let mut victim = node.start(command, &id, "eth0", Some(&pod.path()), None);
        thread::sleep(usual * round * 5 / 4 / rounds);
        victim.kill().unwrap();
        killed += u32::from(!victim.wait().unwrap().success());
    }
    assert!(killed >= rounds / 4, "only {killed} of {rounds} were caught in the middle");
    let mut conf = node.conf.clone();
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "valid", "ifname": "eth0" }]);
    node.give("GC", &conf).result();
    assert_eq!((node.reservations(), node.veths(), node.cache(), spoof_chains(&node)), before);
    assert!(!node.host.dir().join("networks/cbr0/.weft.tmp").exists());
    assert_eq!(pod.ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0);
}

fn spoof_chains(node: &Node) -> String {
    let listed = run(node.host.command("nft").args(["list", "table", "bridge", "nat"]));
    listed.lines().filter(|line| line.contains("cni-br-iface")).collect()
}

#[test]
fn parallel_adds_get_distinct_addresses_on_one_bridge() {
    let node = Node::new("cni-parallel", V4);
    let pods: Vec<_> = (0..24).map(|i| (format!("c{i}"), node.pod(&format!("p{i}")))).collect();
    let results: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            pods.iter().map(|(id, pod)| scope.spawn(|| node.add(id, pod).result())).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let distinct: BTreeSet<_> = results.iter().flat_map(ips).collect();
    assert_eq!(distinct.len(), pods.len());
    for (_, pod) in &pods {
        assert_eq!(pod.ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0);
    }
    thread::scope(|scope| {
        for (id, pod) in &pods {
            scope.spawn(|| node.del(id, pod).result());
        }
    });
    node.assert_empty();
}

#[test]
fn add_waits_for_a_daemon_that_is_starting() {
    let node = Node::new("cni-wait", V4);
    let pod = node.pod("a");
    std::fs::remove_file(node.host.dir().join("subnet.env")).unwrap();
    let add = node.start("ADD", "a", "eth0", Some(&pod.path()), None);
    thread::sleep(Duration::from_millis(300));
    node.set_subnet(V4);
    let output = add.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    node.del("a", &pod).result();
}
