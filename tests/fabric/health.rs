//! `/healthz` and `/readyz` of a daemon whose etcd comes late.

use std::io::{Read, Write};
use std::net::TcpStream;

use netns_harness::wait_until;

use crate::lab::{Fabric, SOON, VXLAN};

const PORT: u16 = 8471;

#[test]
fn readiness_names_what_is_waited_for_until_the_node_has_joined() {
    let mut fabric = Fabric::without_etcd("health", 1);
    fabric.start(0, &[&format!("-healthz-port={PORT}")]);
    becomes(&fabric, "/readyz", 503, "flanneld is not ready yet\nwaiting for the store: etcd");
    becomes(&fabric, "/healthz", 200, "flanneld is running");

    fabric.start_etcd();
    becomes(&fabric, "/readyz", 503, "flanneld is not ready yet\nwaiting for a network config");
    fabric.put("config", VXLAN);
    becomes(&fabric, "/readyz", 200, "flanneld is ready");
    assert!(!fabric.subnet_env(0).is_empty());

    let key = format!("subnets/{}", fabric.subnet_of(0).replace('/', "-"));
    let foreign = r#"{"PublicIP":"192.168.77.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
    fabric.put(&key, foreign);
    becomes(&fabric, "/readyz", 503, "flanneld is not ready yet\nsubnet ");
    fabric.etcdctl(&["del", &format!("/coreos.com/network/{key}")]);
    becomes(&fabric, "/readyz", 200, "flanneld is ready");
    becomes(&fabric, "/healthz", 200, "flanneld is running");
    becomes(&fabric, "/other", 404, "");
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_the_way_out() {
    let mut fabric = Fabric::without_etcd("port", 1);
    let _taken = fabric.hosts[0].enter(|| std::net::TcpListener::bind(("127.0.0.1", PORT)).unwrap()).unwrap();
    fabric.start(0, &["--healthz-port", &PORT.to_string()]);
    wait_until(SOON, "the end", || fabric.daemons[0].exited().unwrap().is_some()).unwrap();
    let said = fabric.daemons[0].log_tail(5);
    assert!(said.contains("127.0.0.1:8471: choose another by --healthz-ip and --healthz-port"), "{said}");
}

fn becomes(fabric: &Fabric, path: &str, code: u16, body: &str) {
    let mut seen = None;
    let reached = wait_until(SOON, &format!("{path} with {code} {body:?}"), || {
        seen = ask(fabric, path);
        seen.as_ref().is_some_and(|(status, text)| *status == code && text.contains(body))
    });
    if let Err(error) = reached {
        panic!("{error}: {seen:?}: {}", fabric.daemons[0].log_tail(50));
    }
}

/// Status and body; `None` where nobody answers.
fn ask(fabric: &Fabric, path: &str) -> Option<(u16, String)> {
    let exchange = || {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT)).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    };
    fabric.hosts[0].enter(exchange).ok()?
}
