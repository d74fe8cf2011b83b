use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use netns_harness::{Host, Netns};
use serde_json::{Value, json};

use crate::node::{Chained, DUAL, Node, V4, run};

#[test]
fn ports_lead_into_the_container_by_nftables() {
    ports_lead_into_the_container("nftables");
}

#[test]
fn ports_lead_into_the_container_by_iptables() {
    ports_lead_into_the_container("iptables");
}

#[test]
fn ports_lead_into_the_container_by_legacy_iptables() {
    ports_lead_into_the_container("iptables-legacy");
}

fn ports_lead_into_the_container(backend: &str) {
    let stage = Stage::new("cni-ports");
    let (node, outside) = (&stage.node, &stage.outside);
    let second: IpAddr = [192, 168, 77, 250].into();
    node.host.ip_batch(&[format!("addr add {second}/24 dev eth0")]).unwrap();
    let portmap = portmap(
        node,
        backend,
        json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp" },
            { "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": second.to_string() },
        ]),
    );
    let (a, b) = (node.pod("a"), node.pod("b"));
    let prev = node.add("a", &a).result();
    node.add("b", &b).result();
    let _servers =
        [Server::tcp(&a, 80, "a"), Server::udp(&a, 53, "a"), Server::tcp(outside, 8080, "outside")];
    assert_eq!(portmap.add("a", &a, &prev).result(), prev);
    portmap.check("a", &a, &prev).result();

    let (v4, v6) = (node.host.ip4(), node.host.ip6());
    for host in [v4, v6] {
        let from_outside = if host.is_ipv4() { outside.ip4() } else { outside.ip6() };
        let answer = Some(format!("a to {from_outside}"));
        assert_eq!(tcp(outside, host, 8080), answer, "the client's own address arrives");
        assert_eq!(udp(outside, host, 5353), answer);
        for client in [&node.host, &a, &b] {
            let answer = tcp(client, host, 8080).unwrap_or_default();
            assert!(answer.starts_with("a to "), "{} to {host}: {answer}", client.name());
            let answer = udp(client, host, 5353).unwrap_or_default();
            assert!(answer.starts_with("a to "), "{} to {host} by UDP: {answer}", client.name());
        }
        // What only passes through the host on its way to that port elsewhere.
        let elsewhere = from_outside;
        assert!(tcp(&b, elsewhere, 8080).unwrap().starts_with("outside to "), "{elsewhere} was captured");
    }
    let loopback = Ipv4Addr::LOCALHOST.into();
    assert!(tcp(&node.host, loopback, 8080).unwrap().starts_with("a to "));
    assert!(udp(&node.host, loopback, 5353).unwrap().starts_with("a to "));
    assert!(tcp(outside, second, 8081).is_some());
    assert_eq!((tcp(outside, v4, 8081), tcp(outside, v6, 8081)), (None, None), "bound to another address");

    let flush = match backend {
        "nftables" => "nft flush chain ip cni_hostport output",
        iptables => &format!("{iptables} -t nat -F OUTPUT"),
    };
    run(node.host.command("sh").args(["-c", flush]));
    let (code, text) = portmap.check("a", &a, &prev).error();
    assert!(code == 999 && text.to_lowercase().contains("output"), "{text}");

    // With as little as a runtime may give.
    let mut bare = self::portmap(node, backend, json!([]));
    bare.conf.as_object_mut().unwrap().retain(|key, _| key != "runtimeConfig" && key != "backend");
    bare.call("DEL", "a", "eth0", None, None).result();
    bare.call("DEL", "a", "eth0", None, None).result();
    assert_eq!(
        (tcp(outside, v4, 8080), tcp(outside, v6, 8080), tcp(outside, second, 8081)),
        (None, None, None)
    );
    assert_eq!(rules(node, "10.5.17.2") + rules(node, "fd00:5:0:11::2").as_str(), "");
    assert!(portmap.check("a", &a, &prev).error().0 == 999);
}

#[test]
fn a_udp_client_that_goes_on_sending_is_led_to_the_container() {
    for backend in BACKENDS {
        let stage = Stage::new("cni-udp");
        let (node, outside) = (&stage.node, &stage.outside);
        let (pod, other) = (node.pod("a"), node.pod("b"));
        let prev = node.add("a", &pod).result();
        // The kernel tracks connections since there is a port mapped at all.
        let port = json!([{ "hostPort": 9, "containerPort": 9, "protocol": "tcp" }]);
        portmap(node, backend, port).add("b", &other, &node.add("b", &other).result()).result();
        let _servers = [Server::udp(&node.host, 5353, "host"), Server::udp(&pod, 53, "a")];
        let client = udp_socket(outside, true);
        assert!(ask(&client, node.host.ip4(), 5353).unwrap().starts_with("host to "));

        let port = json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp" }]);
        portmap(node, backend, port).add("a", &pod, &prev).result();

        assert!(ask(&client, node.host.ip4(), 5353).unwrap().starts_with("a to "), "{backend}");
    }
}

#[test]
fn attachments_of_one_container_and_networks_are_told_apart() {
    let node = Node::new("cni-apart", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let port = |port: u16| json!([{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }]);
    let first = portmap(&node, "nftables", port(8001));
    let mut other = portmap(&node, "nftables", port(8002));
    other.conf["name"] = "other".into();
    first.add("a", &pod, &prev).result();
    other.add("a", &pod, &prev).result();
    let ports = |node: &Node| [8001, 8002].map(|port| rules(node, &format!("dport {port} ")).lines().count());
    assert_eq!(ports(&node), [1, 1]);
    // ADD again does not double.
    first.add("a", &pod, &prev).result();
    assert_eq!(ports(&node), [1, 1]);

    other.del("a", &pod, &prev).result();
    assert_eq!(ports(&node), [1, 0]);

    // GC: of its own network, what is not valid.
    other.add("a", &pod, &prev).result();
    first.gc(&["a"]).result();
    assert_eq!(ports(&node), [1, 1]);
    first.gc(&[]).result();
    assert_eq!(ports(&node), [0, 1]);

    // What the reference plugin wrote has the container's ID alone.
    let theirs = "add rule ip cni_hostport hostports tcp dport 8003 dnat to 10.5.17.2:80 comment \"a\"";
    run(node.host.command("nft").args([theirs]));
    first.del("a", &pod, &prev).result();
    assert_eq!((ports(&node), rules(&node, "dport 8003")), ([0, 1], String::new()));
}

/// There are as many rules as there should be.
#[test]
fn check_finds_a_rule_that_was_changed() {
    let node = Node::new("cni-changed", V4);
    let portmap = portmap(
        &node,
        "nftables",
        json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp" },
        ]),
    );
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    portmap.add("a", &pod, &prev).result();
    portmap.check("a", &pod, &prev).result();

    let listed =
        run(node.host.command("nft").args(["-a", "list", "chain", "ip", "cni_hostport", "hostports"]));
    let rule = listed.lines().find(|line| line.contains("8080")).unwrap();
    let handle = rule.rsplit(' ').next().unwrap();
    let elsewhere = r#"tcp dport 8080 dnat to 10.5.17.2:81 comment "a""#;
    let change = format!("replace rule ip cni_hostport hostports handle {handle} {elsewhere}");
    run(node.host.command("nft").arg(change));

    let (code, text) = portmap.check("a", &pod, &prev).error();
    assert!(code == 999 && text.contains("hostports: 1 of 2 rules"), "{text}");
}

#[test]
fn gc_removes_a_containers_iptables_rules() {
    let node = Node::new("cni-portgc", &V4.replace("IPMASQ=true", "IPMASQ=false"));
    let pods = ["a", "b"].map(|name| node.pod(name));
    for (i, pod) in pods.iter().enumerate() {
        let id = ["a", "b"][i];
        let prev = node.add(id, pod).result();
        let port = json!([{ "hostPort": 8000 + i, "containerPort": 80, "protocol": "tcp" }]);
        portmap(&node, "iptables", port).add(id, pod, &prev).result();
    }
    let portmap = portmap(&node, "iptables", json!([]));

    portmap.gc(&["a", "b"]).result();
    assert!(!rules(&node, "10.5.17.2:80").is_empty() && !rules(&node, "10.5.17.3:80").is_empty());
    portmap.gc(&["b"]).result();
    assert!(rules(&node, "10.5.17.2:80").is_empty() && !rules(&node, "10.5.17.3:80").is_empty());
}

#[test]
fn portmap_is_part_of_the_integrated_plugin() {
    let stage = Stage::new("cni-all");
    let mut node = stage.node;
    node.conf["runtimeConfig"] =
        json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let _server = Server::tcp(&pod, 80, "a");

    assert!(tcp(&stage.outside, node.host.ip4(), 8080).is_some());
    node.call("CHECK", "a", "eth0", Some(&pod.path()), Some(&prev)).result();
    node.conf.as_object_mut().unwrap().remove("runtimeConfig");
    node.del("a", &pod).result();
    assert_eq!(rules(&node, "10.5.17.2"), "", "DEL does not need to be told the ports");
    node.assert_empty();
}

/// The legacy variant is what `iptables` is for the plugin then.
pub const BACKENDS: [&str; 3] = ["nftables", "iptables", "iptables-legacy"];

/// A node and a host outside, which knows the way to the node's containers.
pub struct Stage {
    pub node: Node,
    pub outside: Host,
}

impl Stage {
    pub fn new(label: &str) -> Stage {
        let node = Node::new(label, DUAL);
        let outside = node.lab.host("outside").unwrap();
        let (v4, v6) = (node.host.ip4(), node.host.ip6());
        outside
            .ip_batch(&[
                format!("route add 10.5.17.0/24 via {v4}"),
                format!("route add fd00:5:0:11::/64 via {v6}"),
            ])
            .unwrap();
        Stage { node, outside }
    }
}

pub fn portmap<'a>(node: &'a Node, backend: &str, mappings: Value) -> Chained<'a> {
    let legacy = backend == "iptables-legacy";
    let mut conf = json!({ "backend": if legacy { "iptables" } else { backend }, "runtimeConfig": {} });
    conf["runtimeConfig"]["portMappings"] = mappings;
    let mut plugin = node.chained("portmap", conf);
    if legacy {
        let path = format!("PATH={}", legacy_tools(node).display());
        plugin.arguments = vec![path.into(), std::mem::replace(&mut plugin.program, "env".into())];
    }
    plugin
}

/// A folder in which the legacy variant is all there is.
fn legacy_tools(node: &Node) -> PathBuf {
    let folder = node.host.dir().join("legacy");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        for name in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
            let link = folder.join(name);
            std::os::unix::fs::symlink("/usr/sbin/xtables-legacy-multi", link).unwrap();
        }
    }
    folder
}

/// The rules, of both programs, that mention something.
pub fn rules(node: &Node, part: &str) -> String {
    let listings = [
        "nft list ruleset",
        "iptables-save",
        "ip6tables-save",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
    ];
    let all = listings.map(|command| run(node.host.command("sh").args(["-c", command])));
    let lines = all.iter().flat_map(|listing| listing.lines()).filter(|line| line.contains(part));
    lines.fold(String::new(), |all, line| all + line + "\n")
}

fn tcp(client: &Netns, ip: IpAddr, port: u16) -> Option<String> {
    client
        .enter(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), TIME).ok()?;
            stream.set_read_timeout(Some(TIME)).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
        .unwrap()
}

fn udp(client: &Netns, ip: IpAddr, port: u16) -> Option<String> {
    ask(&udp_socket(client, ip.is_ipv4()), ip, port)
}

fn ask(socket: &UdpSocket, ip: IpAddr, port: u16) -> Option<String> {
    let mut buffer = [0; 100];
    socket.send_to(b"?", (ip, port)).ok()?;
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn udp_socket(netns: &Netns, v4: bool) -> UdpSocket {
    let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = netns.enter(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
    socket.set_read_timeout(Some(TIME)).unwrap();
    socket
}

/// Long for an answer, short for none.
pub const TIME: Duration = Duration::from_secs(1);

/// Tells each client the server's name and the client's address, until dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn tcp(netns: &Netns, port: u16, name: &'static str) -> Server {
        let listener = netns.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        Server::start(move || {
            let (mut stream, client) = listener.accept()?;
            stream.write_all(answer(name, client).as_bytes())
        })
    }

    fn udp(netns: &Netns, port: u16, name: &'static str) -> Server {
        let socket = netns.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Server::start(move || {
            let (_, client) = socket.recv_from(&mut [0; 100])?;
            socket.send_to(answer(name, client).as_bytes(), client).map(drop)
        })
    }

    fn start(mut serve: impl FnMut() -> io::Result<()> + Send + 'static) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if serve().is_err() {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Server { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(name: &str, client: SocketAddr) -> String {
    format!("{name} to {}", client.ip().to_canonical())
}
