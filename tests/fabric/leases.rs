//! What a daemon does where the store forgot its lease or gave it away.

use std::time::Duration;

use netns_harness::wait_until;

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
    let mod_revision = |record: &str| {
        serde_json::from_str::<serde_json::Value>(record).unwrap()["kvs"][0]["mod_revision"].clone()
    };
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
