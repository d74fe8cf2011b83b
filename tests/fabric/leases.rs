//! What a daemon does where the store forgot its lease or gave it away.

use std::time::Duration;

use netns_harness::wait_until;
use serde_json::{Value, json};

use crate::lab::{Fabric, SOON, VXLAN};

const OTHERS: &str = r#"{"PublicIP":"192.168.77.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;

#[test]
fn a_subnet_given_away_while_its_daemon_hung_is_not_fought_for() {
    let mut fabric = Fabric::new("given-away", VXLAN, 2);
    fabric.start_with(0, &[], &[("WEFT_LEASE_TTL", "3")]);
    fabric.start(1, &[]);
    for i in 0..2 {
        fabric.wait_in_sync(i);
    }
    let (a, near, b) = (fabric.pod(0), fabric.pod(0), fabric.pod(1));
    let (key, env) = (fabric.key_of(0), fabric.subnet_env(0));
    fabric.daemons[0].pause().unwrap();
    wait_until(SOON, "the end of the lease", || fabric.etcdctl(&["get", &key]).is_empty()).unwrap();
    fabric.etcdctl(&["put", &key, OTHERS]);
    let record = fabric.etcdctl(&["get", &key, "-w", "json"]);
    fabric.daemons[0].resume().unwrap();

    let lost = || fabric.try_status(0).is_some_and(|(status, ok)| !ok && status["lease"]["ok"] == false);
    wait_until(SOON, "a state that says so", lost).unwrap();
    let state = fabric.status(0)["lease"]["state"].to_string();
    assert!(state.contains("is lost") && state.contains("reserved for 192.168.77.99"), "{state}");
    std::thread::sleep(Duration::from_secs(4));
    let mod_revision =
        |record: &str| serde_json::from_str::<Value>(record).unwrap()["kvs"][0]["mod_revision"].clone();
    let now = fabric.etcdctl(&["get", &key, "-w", "json"]);
    assert_eq!(mod_revision(&now), mod_revision(&record), "nobody writes");
    assert_eq!(near.netns.ping(a.ips[0], 3).unwrap().lost(), 0, "what works is kept");
    assert_eq!(fabric.subnet_env(0), env);
    assert!(fabric.daemons[0].exited().unwrap().is_none());
    assert_eq!(fabric.daemons[0].log_tail(500).matches("is lost:").count(), 1, "said once");

    fabric.etcdctl(&["del", &key]);
    fabric.wait_in_sync(0);
    assert!(fabric.etcdctl(&["get", &key]).contains("192.168.77.1\""));
    wait_until(SOON, "traffic", || a.netns.reaches(b.ips[0])).unwrap();
}

#[test]
fn forty_broken_leases_at_once_harm_nobody() {
    let mut fabric = Fabric::new("forty", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let good =
        |n: usize| OTHERS.replace(".99\"", &format!(".{n}\"")).replace("00:99", &format!("01:{n:02x}"));
    let values: [&dyn Fn(usize) -> String; 8] = [
        &|_| String::new(),
        &|_| "{".to_owned(),
        &|_| r#"{"PublicIP":"nonsense"}"#.to_owned(),
        &|_| "[1,2]".to_owned(),
        &|n| good(n).replace("02:00", "ff:ff"),
        &|n| good(n).replace("\"VNI\":1", "\"VNI\":\"one\""),
        &|n| good(n).replace(&format!("192.168.77.{n}"), "224.0.0.1"),
        &|_| format!("{{\"PublicIP\":{}", "[".repeat(4000)),
    ];
    let mut txn = String::from("mod(\"nothing\") = \"0\"\n\n");
    for n in 0..40 {
        let value = values[n % values.len()](100 + n).replace('\\', "\\\\").replace('"', "\\\"");
        txn += &format!("put /coreos.com/network/subnets/10.42.{}.0-24 \"{value}\"\n", 100 + n);
    }
    fabric.etcdctl_in(&["txn"], &(txn + "\n\n"));
    fabric.put("subnets/10.42.200.0-24", &good(200));
    for i in 0..2 {
        fabric.wait_for_route(i, "10.42.200.0/24");
        let status = fabric.status(i);
        let bad = status["store"]["bad_records"].as_array().unwrap().len();
        let rejected = status["peers"].as_array().unwrap().iter().filter(|peer| !peer["rejected"].is_null());
        assert_eq!(bad + rejected.count(), 40, "each with its reason: {status:#}");
        assert!(fabric.daemons[i].exited().unwrap().is_none());
    }
    assert_eq!(a.netns.ping(b.ips[0], 5).unwrap().lost(), 0);
}

#[test]
fn people_reserve_release_and_clear_away_leases() {
    let mut fabric = Fabric::new("people", VXLAN, 2);
    let url = fabric.etcd_url();
    fabric.etcdctl(&["put", "/coreos.com/network/subnets/10.42.66.0-24", "{"]);
    assert_eq!(
        weft(&fabric, &["reserve", "10.42.9.0/24", "--public-ip", "192.168.77.1", "--etcd-endpoints", &url]),
        Ok("10.42.9.0/24 is reserved for 192.168.77.1\n".to_owned())
    );
    let reserved = fabric.etcdctl(&["get", "/coreos.com/network/subnets/10.42.9.0-24", "--print-value-only"]);
    assert_eq!(reserved.trim(), r#"{"PublicIP":"192.168.77.1","PublicIPv6":null}"#);
    let taken = "10.42.9.0/24 is reserved for 192.168.77.1";
    for (args, says) in [
        (&["reserve", "10.42.9.0/24", "--public-ip", "192.168.77.7"][..], taken),
        (&["reserve", "10.99.9.0/24", "--public-ip", "192.168.77.7"], "not a subnet of the network"),
        (&["reserve", "10.42.9.0/25", "--public-ip", "192.168.77.7"], "not a subnet of the network"),
        (&["reserve", "10.42.9.7/24", "--public-ip", "192.168.77.7"], "host bits"),
        (&["reserve", "10.42.66.0/24", "--public-ip", "192.168.77.7"], "broken record"),
        (&["reserve", "10.42.8.0/24", "--public-ip", "fd77::7"], "known by its IPv4 address"),
        (&["reserve", "10.42.8.0/24", "--public-ip", "0.0.0.0"], "that other nodes can reach"),
        (&["reserve", "10.42.8.0/24"], "--public-ip"),
        (&["release", "10.42.8.0/24"], "nobody has it"),
        (&["release", "10.42.66.0/24"], "`weft leases gc`"),
        (&["release", "10.42.9.0/24"], "say --yes"),
        (&["show", "nonsense"], "is not an IPv4 subnet of the form"),
    ] {
        let error = weft(&fabric, &[args, &["--etcd-endpoints", &url]].concat()).unwrap_err();
        assert!(error.contains(says), "{args:?}: {error}");
    }
    let error = weft(&fabric, &["list", "--data-dir", "/nowhere"]).unwrap_err();
    assert!(error.contains("nobody serves the built-in store"), "{error}");

    fabric.start_all();
    assert_eq!(fabric.subnet_of(0), "10.42.9.0/24");
    let other = fabric.subnet_of(1);
    let on_etcd = |args: &[&str]| weft(&fabric, &[args, &["--etcd-endpoints", &url]].concat());
    let rows: Value = serde_json::from_str(&on_etcd(&["list", "--json"]).unwrap()).unwrap();
    let row = |subnet: &str| {
        let is = |row: &&Value| row["subnets"][0] == subnet;
        rows.as_array().unwrap().iter().find(is).unwrap_or_else(|| panic!("{subnet}: {rows:#}"))
    };
    assert_eq!(
        (&row("10.42.9.0/24")["state"], &row("10.42.9.0/24")["this_node"]),
        (&json!("reserved"), &json!(true))
    );
    assert_eq!((&row(&other)["state"], &row(&other)["this_node"]), (&json!("leased"), &json!(false)));
    assert!(row(&other)["expires_in"].as_u64().is_some_and(|left| (86_000..=86_400).contains(&left)));
    assert_eq!(row("10.42.66.0/24")["state"], "broken");
    let table = on_etcd(&["list"]).unwrap();
    assert!(table.contains("leased, 23 h 59 min left") && table.contains("this node"), "{table}");

    for (subnet, says) in
        [(other.as_str(), "is leased to 192.168.77.2 for another"), ("10.42.9.0/24", "which has taken it")]
    {
        let error = on_etcd(&["release", subnet, "--yes"]).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    fabric.daemons[1].terminate(SOON).unwrap();
    let on_etcd = |args: &[&str]| weft(&fabric, &[args, &["--etcd-endpoints", &url]].concat());
    assert!(on_etcd(&["show", &other]).unwrap().contains("VtepMAC"));
    assert_eq!(on_etcd(&["release", &other, "--yes", "--force"]), Ok(format!("{other} is free\n")));
    let gone = || !fabric.has_route(0, &other);
    wait_until(SOON, "the end of the peer", gone).unwrap();

    let overdue = on_etcd(&["gc", "--overdue", "1500"]).unwrap();
    assert!(overdue.starts_with("/coreos.com/network/subnets/10.42.66.0-24: broken: "), "{overdue}");
    assert!(on_etcd(&["gc"]).unwrap().contains("1 to remove: say --yes"));
    assert!(fabric.etcdctl(&["get", "/coreos.com/network/subnets/10.42.66.0-24"]).contains('{'));
    assert!(on_etcd(&["gc", "--yes"]).unwrap().contains("1 removed, 0 left"));
    assert_eq!(fabric.etcdctl(&["get", "/coreos.com/network/subnets/10.42.66.0-24"]), "");
    assert_eq!(on_etcd(&["gc"]), Ok("nothing to remove\n".to_owned()));
}

#[test]
fn the_built_in_store_has_leases_to_show_too() {
    let lab = netns_harness::Lab::new("shown").unwrap();
    let host = lab.host("h1").unwrap();
    let data = host.dir().join("store").display().to_string();
    let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
    command.args(["daemon", "--network", "10.42.0.0/16", "--data-dir", &data]);
    command.arg("--subnet-file").arg(host.dir().join("subnet.env"));
    command.arg("--admin-socket").arg(host.dir().join("admin.sock"));
    let daemon = host.spawn("weft", &mut command).unwrap();
    let leases = |args: &[&str]| {
        let output = host
            .command(env!("CARGO_BIN_EXE_weft"))
            .arg("leases")
            .args(args)
            .args(["--data-dir", &data])
            .output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap()
    };
    wait_until(SOON, "a lease", || leases(&["list"]).contains("this node"))
        .unwrap_or_else(|error| panic!("{error}: {}", daemon.log_tail(50)));
    assert!(leases(&["reserve", "10.42.200.0/24", "--public-ip", "192.168.77.9"]).contains("is reserved"));
    assert!(leases(&["release", "10.42.200.0/24", "--yes"]).contains("is free"));
}

/// What `weft leases …` prints on host 0, or its error.
fn weft(fabric: &Fabric, args: &[&str]) -> Result<String, String> {
    let output = fabric.hosts[0].command(env!("CARGO_BIN_EXE_weft")).arg("leases").args(args).output();
    let output = output.expect("weft");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
