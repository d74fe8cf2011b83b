//! Both daemons in one cluster.

use netns_harness::wait_until;
use serde_json::Value;

use crate::cluster::{Node, Pod, Program};
use crate::stage::{PREFIX, SOON, Stage};

const V4: &str = r#""Network":"10.42.0.0/16""#;
const DUAL: &str = r#""Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48""#;

#[test]
fn vxlan() {
    mixed(V4, r#"{"Type":"vxlan"}"#, 1);
}

#[test]
fn vxlan_dual_stack() {
    mixed(DUAL, r#"{"Type":"vxlan"}"#, 1);
}

#[test]
fn vxlan_with_direct_routing() {
    mixed(V4, r#"{"Type":"vxlan","DirectRouting":true}"#, 1);
}

#[test]
fn vxlan_with_direct_routing_dual_stack() {
    mixed(DUAL, r#"{"Type":"vxlan","DirectRouting":true}"#, 1);
}

#[test]
fn host_gw() {
    mixed(V4, r#"{"Type":"host-gw"}"#, 0);
}

#[test]
fn host_gw_dual_stack() {
    mixed(DUAL, r#"{"Type":"host-gw"}"#, 0);
}

/// In either order of arrival, so that every node sees the others' keys both in
/// its first listing and in its watch. The last node is in segment `far`.
fn mixed(families: &str, backend: &str, far: u8) {
    use Program::{Flanneld, Weft};
    let config = format!(r#"{{{families},"Backend":{backend}}}"#);
    for order in [[Flanneld, Weft, Flanneld], [Weft, Flanneld, Weft]] {
        let stage = Stage::new("mixed");
        stage.put("config", &config);
        let mut nodes: Vec<Node> = Vec::new();
        for (i, program) in order.into_iter().enumerate() {
            let mut node = Node::new(&stage, &format!("h{}", i + 1), if i == 2 { far } else { 0 });
            node.start(&stage, program, &[]);
            nodes.push(node);
            whole(&nodes);
        }
        let pods: Vec<Pod> = nodes.iter_mut().map(|node| node.pod(&stage)).collect();
        for a in &pods {
            for b in &pods {
                a.check(b);
            }
        }
        for node in &mut nodes {
            let log = node.log();
            assert!(node.is_up(), "{:?} has ended: {log}", node.program);
            assert_eq!(node.errors(), Vec::<String>::new(), "{order:?}: {config}");
            same_record(&stage, node);
        }
    }
}

/// Waits until each node routes to all others.
fn whole(nodes: &[Node]) {
    let all = || {
        nodes
            .iter()
            .enumerate()
            .all(|(i, a)| nodes.iter().enumerate().all(|(j, b)| i == j || a.has_routes_to(b)))
    };
    wait_until(SOON, "routes between all nodes", all)
        .unwrap_or_else(|error| panic!("{error}: {}", nodes.iter().map(Node::log).collect::<String>()));
}

/// Keys and values name the same fields in the same order, whoever wrote them.
fn same_record(stage: &Stage, node: &Node) {
    let value = stage.etcdctl(&["get", "--print-value-only", &node.key()]);
    let record: Value = serde_json::from_str(&value).unwrap_or_else(|_| panic!("{}: {value}", node.key()));
    let kind = record["BackendType"].as_str().unwrap();
    let v6 = record["PublicIPv6"].as_str();
    let quoted = |text: Option<&str>| text.map_or("null".to_owned(), |text| format!("\"{text}\""));
    let mut expected =
        format!(r#"{{"PublicIP":"{}","PublicIPv6":{},"BackendType":"{kind}""#, node.host.ip4(), quoted(v6));
    let vtep = |dev: &str| {
        let link = node.host.ip_json(&format!("link show dev {dev}")).unwrap();
        format!(r#"{{"VNI":1,"VtepMAC":{}}}"#, link[0]["address"])
    };
    if kind == "vxlan" {
        expected += &format!(r#","BackendData":{}"#, vtep("flannel.1"));
        if v6.is_some() {
            expected += &format!(r#","BackendV6Data":{}"#, vtep("flannel-v6.1"));
        }
    }
    assert_eq!(value.trim_end(), expected + "}", "written by {:?} below {PREFIX}", node.program);
}
