use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::node::{DUAL, Node, V4, ips};

#[test]
fn reservations_are_on_disk_as_host_local_writes_them() {
    let node = Node::new("cni-disk", DUAL);
    let pod = node.pod("a");
    node.add("a", &pod).result();
    let dir = node.host.dir().join("networks/cbr0");
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    let content = "a\r\neth0".to_owned();
    let expected = vec![("10.5.17.2".to_owned(), content.clone()), ("fd00:5:0:11::2".to_owned(), content)];
    assert_eq!(node.reservations(), expected);
    assert_eq!(fs::read_to_string(dir.join("last_reserved_ip.0")).unwrap(), "10.5.17.2");
    assert_eq!(fs::read_to_string(dir.join("last_reserved_ip.1")).unwrap(), "fd00:5:0:11::2");
    assert_eq!((mode("."), mode("10.5.17.2"), mode("lock")), (0o755, 0o600, 0o750));
    let cache = node.host.dir().join("flannel");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&cache), mode(&cache.join("a"))), (0o700, 0o600));
}

#[test]
fn a_released_address_is_the_last_to_be_given_again_and_an_empty_file_is_free() {
    let node = Node::new("cni-round", V4);
    let pod = node.pod("a");
    let add_del = |id: &str| {
        let result = node.add(id, &pod).result();
        node.del(id, &pod).result();
        ips(&result)[0].to_string()
    };
    assert_eq!(["x", "y", "z"].map(add_del), ["10.5.17.2", "10.5.17.3", "10.5.17.4"]);
    let dir = node.host.dir().join("networks/cbr0");
    fs::write(dir.join("10.5.17.5"), "").unwrap();
    fs::write(dir.join("10.5.17.6"), "other\r\neth0").unwrap();
    fs::write(dir.join("10.5.17.7"), "id-only-of-old-host-local").unwrap();
    assert_eq!(["x", "y"].map(add_del), ["10.5.17.5", "10.5.17.8"]);
}

#[test]
fn an_address_can_be_asked_for_in_three_ways() {
    let mut node = Node::new("cni-ask", V4);
    let plain = node.conf.clone();
    let ways: [fn(&mut Node); 3] = [
        |node| node.args = "IgnoreUnknown=1;IP=10.5.17.77".into(),
        |node| node.conf["args"] = json!({ "cni": { "ips": ["10.5.17.77"] } }),
        |node| node.conf["runtimeConfig"] = json!({ "ips": ["10.5.17.77/24"] }),
    ];
    for (i, way) in ways.into_iter().enumerate() {
        (node.conf, node.args) = (plain.clone(), String::new());
        way(&mut node);
        let pod = node.pod(&format!("p{i}"));
        assert_eq!(node.add("a", &pod).result()["ips"][0]["address"], "10.5.17.77/24", "way {i}");
        let taken = node.add("b", &pod).error();
        assert!(taken.1.contains("10.5.17.77"), "{taken:?}");
        node.del("a", &pod).result();
    }
    let pod = node.pod("refused");
    for (ip, part) in [("10.5.17.1", "gateway"), ("10.99.0.1", "10.99.0.1"), ("x", "an IP address")] {
        node.conf["runtimeConfig"] = json!({ "ips": [ip] });
        let (_, text) = node.add("c", &pod).error();
        assert!(text.contains(part), "{text}");
    }
    node.assert_empty();
}

#[test]
fn dns_comes_from_resolv_conf_and_routes_from_ipam() {
    let mut node = Node::new("cni-dns", V4);
    let file = node.host.dir().join("resolv.conf");
    fs::write(
        &file,
        "# x\nnameserver 10.0.0.53\nsearch a.example b.example\noptions ndots:5\ndomain c.example\n",
    )
    .unwrap();
    node.conf["ipam"]["resolvConf"] = json!(file);
    node.conf["ipam"]["routes"] = json!([{ "dst": "192.168.0.0/16", "gw": "10.5.17.9" }]);
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    let dns = json!({ "nameservers": ["10.0.0.53"], "domain": "c.example",
        "search": ["a.example", "b.example"], "options": ["ndots:5"] });
    assert_eq!(result["dns"], dns);
    let routes = pod.ip_json("route show 192.168.0.0/16").unwrap();
    assert_eq!(routes[0]["gateway"], "10.5.17.9");
}

#[test]
fn another_ipam_plugin_and_another_delegate_are_executed() {
    let mut node = Node::new("cni-exec", V4);
    let bin = node.host.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = |name: &str, body: &str| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\ncat > {}/{name}.$CNI_COMMAND\n{body}\n", bin.display()))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let stdin =
        |name: &str| -> Value { serde_json::from_str(&fs::read_to_string(bin.join(name)).unwrap()).unwrap() };
    node.path = bin.display().to_string();

    script(
        "fixed",
        r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.17.200/24"}]}'"#,
    );
    node.conf["ipam"]["type"] = json!("fixed");
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    assert_eq!(
        result["ips"][0],
        json!({ "interface": 2, "address": "10.5.17.200/24", "gateway": "10.5.17.1" })
    );
    assert_eq!(stdin("fixed.ADD")["ipam"]["ranges"], json!([[{ "subnet": "10.5.17.0/24" }]]));
    node.del("a", &pod).result();
    assert!(bin.join("fixed.DEL").exists());
    node.assert_empty();

    script(
        "other",
        r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0","ips":[],"mark":"passed through"}'"#,
    );
    node.conf["delegate"] = json!({ "type": "other", "own": 1 });
    assert_eq!(node.add("b", &pod).result()["mark"], "passed through");
    let given = stdin("other.ADD");
    assert_eq!((&given["own"], &given["mtu"], &given["name"]), (&json!(1), &json!(1450), &json!("cbr0")));
    node.del("b", &pod).result();
    assert_eq!(stdin("other.DEL"), given);
    assert_eq!(node.cache(), vec![]);

    script("other", r#"echo '{"code":42,"msg":"no","details":"at all"}'; exit 1"#);
    let (code, text) = node.add("b", &pod).error();
    assert!(code == 42 && text.contains("other: no") && text.contains("at all"), "{text}");
    node.conf["delegate"] = json!({ "type": "absent" });
    assert!(node.add("b", &pod).error().1.contains("absent"));
}

/// The machine's own boot, and files from before it.
#[test]
fn addresses_from_before_the_boot_are_free_again() {
    let node = Node::new("cni-boot", V4);
    let dir = node.host.dir().join("networks/cbr0");
    fs::create_dir_all(&dir).unwrap();
    for n in [2, 3] {
        fs::write(dir.join(format!("10.5.17.{n}")), format!("c{n}\r\neth0")).unwrap();
    }
    let old = fs::File::open(dir.join("10.5.17.2")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(86400)).unwrap();
    let pod = node.pod("a");
    assert_eq!(ips(&node.add("a", &pod).result())[0].to_string(), "10.5.17.2");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(fs::read_to_string(dir.join(".weft.boot")).unwrap(), boot.trim());
    assert!(dir.join("10.5.17.3").exists());
}
