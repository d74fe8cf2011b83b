//! The time of day jumps by hours under a running daemon, by Debian's libfaketime.

use std::path::Path;
use std::time::Duration;

use netns_harness::wait_until;

use crate::lab::SOON;
use crate::stage::Stage;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[test]
fn a_clock_that_jumps_by_hours_moves_nothing() {
    let library = library();
    let mut stage = Stage::new("clock", 1, &[("WEFT_LEASE_TTL", "20")]);
    let file = stage.fabric.lab.dir().join("clock");
    let set = |offset: &str| std::fs::write(&file, offset).unwrap();
    set("+0");
    let preload = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("WEFT_LEASE_TTL", "20"),
    ];
    stage.fabric.daemons[0].terminate(Duration::from_secs(10)).unwrap();
    let urls = stage.etcd.urls();
    stage.fabric.run(0, &["--etcd-endpoints", &urls], &preload);
    stage.fabric.wait_in_sync(0);
    let key = stage.fabric.key_of(0);
    let (written, begun) = (stage.etcd.mod_revision(&key), std::time::Instant::now());

    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let mut farthest: f64 = 0.0;
    for offset in ["+5h", "-7h", "+30d", "+0", "-2h"] {
        set(offset);
        std::thread::sleep(Duration::from_millis(2500));
        let told = metric(&stage, "process_start_time_seconds");
        farthest = farthest.max((told - now()).abs());
        let status = stage.fabric.status(0);
        let told = |pointer: &str| status.pointer(pointer).and_then(serde_json::Value::as_u64);
        assert!(told("/lease/expires_in").unwrap() <= 20, "{offset}: {status}");
        assert!(told("/kernel/last_pass").unwrap() < 300, "{offset}: {status}");
        assert!(told("/process/uptime").unwrap() < 300, "{offset}: {status}");
        assert_eq!(status["lease"]["state"], "held", "{offset}");
        assert_eq!(stage.etcd.mod_revision(&key), written, "{offset}: nobody takes or writes it anew");
    }
    assert!(farthest > 86_400.0, "the clock that the daemon sees did jump: {farthest} s");
    // Twice in the time of a lease, and once by chance.
    let renewals = metric(&stage, "weft_subnet_lease_renewals_total{result=\"done\"}");
    let expected = begun.elapsed().as_secs_f64() / 10.0 + 2.0;
    assert!(renewals <= expected, "{renewals} renewals in {:?}", begun.elapsed());
    stage.assert_right("a clock that jumps by hours");
}

fn metric(stage: &Stage, name: &str) -> f64 {
    let socket = stage.fabric.hosts[0].dir().join("admin.sock");
    let mut value = None;
    let told = || {
        let args = ["-s", "--unix-socket", socket.to_str().unwrap(), "http://weft/metrics"];
        let text = stage.fabric.hosts[0].run("curl", args).unwrap_or_default();
        value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.is_some()
    };
    wait_until(SOON, name, told).unwrap();
    value.unwrap()
}

fn library() -> String {
    let arch = std::env::consts::ARCH;
    let library = LIBRARY.replace("x86_64", arch);
    assert!(Path::new(&library).exists(), "{library} is missing: package libfaketime");
    library
}
