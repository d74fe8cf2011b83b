use std::fs;

use serde_json::json;

use crate::node::{DUAL, Node, V4};

type Spoil<'a> = &'a dyn Fn(&netns_harness::Netns);

#[test]
fn del_is_complete_however_little_is_left_to_go_by() {
    let node = Node::new("cni-del", DUAL);
    let dir = node.host.dir().to_owned();
    let spoil: [(&str, Spoil<'_>); 6] = [
        ("nothing", &|_| {}),
        ("the namespace is gone", &|pod| pod.remove().unwrap()),
        ("the saved config is gone", &|_| fs::remove_dir_all(dir.join("flannel")).unwrap()),
        ("the saved config is torn", &|_| {
            for file in fs::read_dir(dir.join("flannel")).unwrap() {
                fs::write(file.unwrap().path(), "{\"name\":\"cb").unwrap();
            }
        }),
        ("subnet.env and the saved config are gone", &|_| {
            fs::remove_file(dir.join("subnet.env")).unwrap();
            fs::remove_dir_all(dir.join("flannel")).unwrap();
        }),
        ("the interface is gone", &|pod| pod.ip_batch(&["link del eth0"]).unwrap()),
    ];
    for (i, (what, spoil)) in spoil.into_iter().enumerate() {
        node.set_subnet(DUAL);
        let (id, pod) = (format!("c{i}"), node.pod(&format!("p{i}")));
        node.add(&id, &pod).result();
        spoil(&pod);
        let first = node.del(&id, &pod);
        assert!(first.ok && first.json.is_null(), "{what}: {first:?}");
        let again = node.call("DEL", &id, "eth0", None, None);
        assert!(again.ok, "{what}: {again:?}");
        node.assert_empty();
    }
}

#[test]
fn del_of_what_never_was_succeeds() {
    let node = Node::new("cni-never", V4);
    let outcome = node.call("DEL", "ghost", "eth0", Some("/run/netns/no-such".as_ref()), None);
    assert!(outcome.ok, "{outcome:?}");
}

#[test]
fn the_hosts_end_goes_by_prev_result_while_a_process_holds_the_namespace() {
    let node = Node::new("cni-held", V4);
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    let mut holder = pod.command("sleep").arg("60").spawn().unwrap();
    pod.remove().unwrap();
    let outcome = node.call("DEL", "a", "eth0", Some(&pod.path()), Some(&result));
    assert!(outcome.ok, "{outcome:?}");
    node.assert_empty();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Known by its name alone, while a process holds the namespace; and what another
/// container has where the namespace was is left alone.
#[test]
fn the_hosts_end_goes_while_a_process_holds_the_namespace() {
    let node = Node::new("cni-byname", V4);
    let (pod, other) = (node.pod("a"), node.pod("b"));
    node.add("a", &pod).result();
    node.add("b", &other).result();
    let mut holder = pod.command("sleep").arg("60").spawn().unwrap();
    pod.remove().unwrap();
    fs::remove_dir_all(node.host.dir().join("flannel")).unwrap();
    node.call("DEL", "a", "eth0", Some(&other.path()), None).result();
    assert_eq!((node.veths().len(), node.reservations().len()), (1, 1));
    assert_eq!(other.ping("10.5.17.1".parse().unwrap(), 1).unwrap().lost(), 0);
    holder.kill().unwrap();
    holder.wait().unwrap();
    node.del("b", &other).result();
    node.assert_empty();
}

#[test]
fn a_failed_add_leaves_nothing_and_a_repeated_one_leaves_the_first() {
    let mut node = Node::new("cni-undo", V4);
    let pod = node.pod("a");
    // The route cannot be added: its gateway is on no link of the container.
    node.conf["ipam"]["routes"] = json!([{ "dst": "192.168.0.0/16", "gw": "172.31.0.1" }]);
    let (_, text) = node.add("a", &pod).error();
    assert!(text.contains("route 192.168.0.0/16 via 172.31.0.1 dev eth0"), "{text}");
    node.assert_empty();
    node.conf["ipam"].as_object_mut().unwrap().remove("routes");
    let result = node.add("a", &pod).result();
    let before = (node.cache(), node.reservations(), node.veths());
    let (code, text) = node.add("a", &pod).error();
    assert!(code == 999 && text.contains("duplicate allocation"), "{text}");
    assert_eq!((node.cache(), node.reservations(), node.veths()), before);
    assert!(node.call("CHECK", "a", "eth0", Some(&pod.path()), Some(&result)).ok);
    node.del("a", &pod).result();
    node.assert_empty();
}
