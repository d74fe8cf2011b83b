//! The harness against the real kernel. Needs root.

// Clippy takes helpers of tests for product code.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use netns_harness::{Error, HostOptions, Lab, iperf3, wait_until};

#[test]
fn neighbours_reach_each_other_in_both_families() {
    let lab = Lab::new("near").unwrap();
    let (h1, h2) = (lab.host("h1").unwrap(), lab.host("h2").unwrap());

    for target in [h2.ip4(), h2.ip6()] {
        let report = h1.ping(target, 5).unwrap();
        assert_eq!((report.sent, report.received), (5, 5), "{target}");
        assert!(report.rtt_min > Duration::ZERO && report.rtt_min <= report.rtt_avg);
        assert!(report.rtt_avg <= report.rtt_max && report.rtt_max < Duration::from_secs(1));
    }
}

#[test]
fn segments_are_joined_by_a_router_and_mtu_is_as_asked() {
    let lab = Lab::new("far").unwrap();
    let h1 = lab.host("h1").unwrap();
    let h2 = lab.host_with("h2", HostOptions { segment: 1, mtu: 9000 }).unwrap();

    assert_eq!(h1.ping(h2.ip4(), 3).unwrap().lost(), 0);
    assert_eq!(h1.ping(h2.ip6(), 3).unwrap().lost(), 0);

    let route = h1.ip_json(&format!("route get {}", h2.ip4())).unwrap();
    assert_eq!(route[0]["gateway"], "192.168.77.254");
    assert_eq!(h2.ip_json("link show dev eth0").unwrap()[0]["mtu"], 9000);
}

#[test]
fn a_cut_cable_is_mended() {
    let lab = Lab::new("cut").unwrap();
    let (h1, h2) = (lab.host("h1").unwrap(), lab.host("h2").unwrap());

    lab.cut(&h2).unwrap();
    assert_eq!(h2.ip_json("link show dev eth0").unwrap()[0]["operstate"], "DOWN");
    assert_eq!(h1.ping(h2.ip4(), 3).unwrap().received, 0);

    lab.mend(&h2).unwrap();
    wait_until(Duration::from_secs(5), "h2 back", || h1.ping(h2.ip4(), 1).unwrap().received == 1).unwrap();
}

#[test]
fn a_cut_between_two_hosts_touches_no_third_and_may_be_one_way() {
    let lab = Lab::new("between").unwrap();
    let h1 = lab.host("h1").unwrap();
    let h2 = lab.host("h2").unwrap();
    let far = lab.host_with("far", HostOptions { segment: 1, ..HostOptions::default() }).unwrap();

    lab.cut_between(&h1, &h2).unwrap();
    lab.cut_between(&h1, &far).unwrap();
    for target in [h2.ip4(), h2.ip6(), far.ip4(), far.ip6()] {
        assert_eq!(h1.ping(target, 2).unwrap().received, 0, "{target}");
    }
    assert_eq!(h2.ping(far.ip4(), 2).unwrap().lost(), 0);

    lab.mend_between(&h1, &h2).unwrap();
    lab.mend_one_way(&h1, &far).unwrap();
    assert_eq!(h1.ping(h2.ip4(), 2).unwrap().lost(), 0);
    // The requests arrive and the answers are lost.
    let before = echo_requests(&far);
    assert_eq!(h1.ping(far.ip4(), 2).unwrap().received, 0);
    assert_eq!(echo_requests(&far), before + 2);
}

#[test]
fn a_thousand_pings_a_second_notice_an_outage() {
    let lab = Lab::new("flood").unwrap();
    let (h1, h2) = (lab.host("h1").unwrap(), lab.host("h2").unwrap());

    let quiet = h1.flood(h2.ip4(), 1000).unwrap();
    thread::sleep(Duration::from_millis(500));
    let report = quiet.stop().unwrap();
    assert_eq!(report.lost(), 0);
    assert!((400..700).contains(&report.sent), "{report:?}");

    let cut = h1.flood(h2.ip4(), 1000).unwrap();
    thread::sleep(Duration::from_millis(200));
    lab.cut_one_way(&h2, &h1).unwrap();
    thread::sleep(Duration::from_millis(300));
    lab.mend_one_way(&h2, &h1).unwrap();
    thread::sleep(Duration::from_millis(200));
    let report = cut.stop().unwrap();
    assert!(report.lost() >= 200, "{report:?}");
    let lost = Duration::from_millis(report.lost());
    assert!(report.longest_gap <= lost && report.longest_gap >= lost / 2, "{report:?}");
}

#[test]
fn throughput_is_measured() {
    let lab = Lab::new("iperf").unwrap();
    let (h1, h2) = (lab.host("h1").unwrap(), lab.host("h2").unwrap());
    assert!(iperf3(&h1, &h2, h2.ip4(), Duration::from_secs(1)).unwrap() > 0.1);
}

#[test]
fn a_daemon_runs_inside_and_obeys() {
    let lab = Lab::new("daemon").unwrap();
    let h1 = lab.host("h1").unwrap();
    let script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.01; done";

    let mut daemon = h1.spawn("loop", h1.command("sh").args(["-c", script])).unwrap();
    wait_until(Duration::from_secs(5), "greeting", || daemon.log_tail(9) == "hello").unwrap();
    let netns =
        |path: &str| fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).unwrap();
    assert_eq!(netns(&format!("/proc/{}/ns/net", daemon.pid())), netns(&h1.path().display().to_string()));

    daemon.pause().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    assert!(stat.contains(") T "), "{stat}");
    let status = daemon.terminate(Duration::from_secs(5)).unwrap();
    assert_eq!((status.code(), daemon.log_tail(9).as_str()), (Some(3), "hello\nbye"));

    let pid = h1.spawn("dropped", h1.command("sleep").arg("1000")).unwrap().pid();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn labs_of_one_label_stand_side_by_side() {
    let labs: Vec<Lab> = thread::scope(|scope| {
        let makers: Vec<_> = (0..4).map(|_| scope.spawn(|| Lab::new("twin").unwrap())).collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).collect()
    });
    thread::scope(|scope| {
        for lab in &labs {
            scope.spawn(|| {
                let (h1, h2) = (lab.host("h1").unwrap(), lab.host("h2").unwrap());
                assert_eq!(h1.ping(h2.ip4(), 3).unwrap().lost(), 0);
            });
        }
    });
}

#[test]
fn removal_takes_everything_and_later_calls_say_so() {
    let lab = Lab::new("gone").unwrap();
    let h1 = lab.host("h1").unwrap();
    let pod = lab.pod(&h1, "p1").unwrap();
    // Started behind the harness's back, as a daemon's own child would be.
    let mut stray = pod.command("sleep").arg("1000").spawn().unwrap();

    lab.remove().unwrap();

    assert_eq!(traces(lab.name()), Vec::<String>::new());
    assert!(!stray.wait().unwrap().success());
    assert!(matches!(lab.host("h2"), Err(Error::Gone { .. })));
    assert!(matches!(h1.run("true", [""; 0]), Err(Error::Gone { .. })));
    lab.remove().unwrap();
}

#[test]
fn bad_names_are_refused() {
    for name in ["", "../x", "a.b", "H1", "-x", "sixteen-letters-", "a b", "$(x)"] {
        assert!(matches!(Lab::new(name), Err(Error::Name { .. })), "{name}");
    }
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let lab = Lab::new("tool").unwrap();
    let h1 = lab.host("h1").unwrap();
    let mut etcdctl = h1.command("etcdctl");
    let error = h1.spawn("x", etcdctl.env("PATH", "/nonexistent")).unwrap_err();
    assert_eq!(error.to_string(), "etcdctl is not installed: apt-get install etcd-client");
}

#[test]
fn kill_9_of_the_owner_leaves_nothing() {
    let lab = killed_owner("crash", false);
    wait_until(Duration::from_secs(5), "the guard's work", || traces(&lab).is_empty()).unwrap();
}

#[test]
fn a_sweep_removes_what_even_the_guard_did_not() {
    let lab = killed_owner("sweep", true);
    assert!(!traces(&lab).is_empty());

    let swept = Lab::sweep().unwrap();

    assert!(swept.contains(&lab), "{swept:?}");
    assert_eq!(traces(&lab), Vec::<String>::new());
}

/// Not a test of its own: with `WEFT_TEST_OWNER` set this process is the one to
/// be killed by the tests above.
#[test]
fn owner_to_be_killed() {
    let Ok(label) = env::var("WEFT_TEST_OWNER") else { return };
    let lab = Lab::new(&label).unwrap();
    let h1 = lab.host("h1").unwrap();
    let pod = lab.pod(&h1, "p1").unwrap();
    let daemons = [
        h1.spawn("sleep", h1.command("sleep").arg("1000")).unwrap(),
        pod.spawn("sleep2", pod.command("sleep").arg("1000")).unwrap(),
    ];
    println!("\nready {}", lab.name());
    thread::sleep(Duration::from_secs(1000));
    drop(daemons);
}

/// Starts this test binary as the owner of a lab, kills it, returns the name.
fn killed_owner(label: &str, guard_too: bool) -> String {
    let mut owner = Command::new(env::current_exe().unwrap())
        .args(["--exact", "owner_to_be_killed", "--nocapture"])
        .env("WEFT_TEST_OWNER", label)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
    let lab = ready.expect("the owner's lab");
    if guard_too {
        let guard =
            processes().into_iter().find(|(_, line)| line.contains("weft-lab-guard") && line.contains(&lab));
        let pid = guard.expect("the guard").0;
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    lab
}

/// Namespaces, files and processes that carry the lab's name or live in it.
fn traces(lab: &str) -> Vec<String> {
    let names = ["/run/netns", "/run", "/tmp"].into_iter().flat_map(|dir| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(move |entry| format!("{dir}/{}", entry.file_name().to_string_lossy()))
    });
    let mut found: Vec<String> = names.filter(|name| name.contains(lab)).collect();
    found.extend(processes().into_iter().filter(|(_, line)| line.contains(lab)).map(|(_, line)| line));
    found
}

/// Process ids and command lines.
fn processes() -> Vec<(String, String)> {
    let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

/// Echo requests received so far (SNMP counter IcmpInEchos).
fn echo_requests(node: &netns_harness::Netns) -> u64 {
    let snmp = node.run("cat", ["/proc/self/net/snmp"]).unwrap();
    let mut lines = snmp.lines().filter(|line| line.starts_with("Icmp:")).map(|line| line.split_whitespace());
    let at = lines.next().unwrap().position(|word| word == "InEchos").unwrap();
    lines.next().unwrap().nth(at).unwrap().parse().unwrap()
}
