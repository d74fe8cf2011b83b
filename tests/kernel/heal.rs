//! The reconciler on a real kernel: it makes what is wanted, heals what others
//! break, and leaves alone what is not ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weft::desired::Op;
use weft::kernel::netlink::NetlinkError;
use weft::kernel::{Entry, Events, KernelEvent, Monitor, News, Nexthops};
use weft::reconciler::{Handle, Reconciler, Settings, State, Target};

use crate::fabric::{Fabric, apply, key, without};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn what_others_break_is_healed_at_once() {
    for (label, nexthops) in [("heal-nh", Nexthops::WherePossible), ("heal-plain", Nexthops::Never)] {
        let running = Running::start(Fabric::new(label, "vxlan", "", 20), nexthops);
        let fabric = &running.fabric;
        let mac = crate::fabric::mac(3, weft::model::Family::V4);
        let breakages = [
            "route del 10.64.3.0/24",
            "-6 route del fd00:64:0:3::/64",
            "route replace blackhole 10.64.3.0/24",
            "route replace 10.64.3.0/24 via 192.168.77.254",
            "neigh del 10.64.3.0 dev flannel.1",
            "neigh replace 10.64.3.0 lladdr 02:02:02:02:02:02 dev flannel.1 nud permanent",
            "neigh replace 10.64.3.0 lladdr 02:02:02:02:02:02 dev flannel.1 nud reachable",
            "neigh flush dev flannel.1 nud permanent",
            "addr del 10.64.0.0/32 dev flannel.1",
            "addr add 10.64.0.9/32 dev flannel.1",
            "addr flush dev flannel-v6.1",
            "link set flannel.1 address 02:02:02:02:02:02",
            "link set flannel.1 mtu 1300",
            "link set flannel.1 down",
            "link set flannel-v6.1 down",
            "link del flannel.1",
            "link del flannel-v6.1",
            "link set eth0 down",
        ];
        for breakage in breakages {
            let before = running.state().healing.total();
            fabric.by_hand(breakage);
            if breakage == "link set eth0 down" {
                fabric.by_hand("link set eth0 up");
                fabric.by_hand("addr replace fd77::1/64 dev eth0 nodad");
            }
            running.await_whole(breakage);
            running
                .await_state(breakage, |state| state.healing.total() > before || breakage.contains("eth0"));
        }
        for breakage in
            [format!("fdb del {mac} dev flannel.1"), format!("fdb replace {mac} dev flannel.1 dst 9.9.9.9")]
        {
            fabric.host.run("bridge", breakage.split_whitespace()).unwrap();
            running.await_whole(&breakage);
        }
        if nexthops != Nexthops::Never {
            fabric.by_hand("nexthop flush proto 87");
            running.await_whole("nexthop flush");
        }
        running.stop();
    }
}

#[test]
fn a_link_is_put_right_before_the_rest_is_read() {
    let running = Running::start(Fabric::new("heal-first", "vxlan", "", 5), Nexthops::WherePossible);
    for (n, breakage) in ["address 02:02:02:02:02:02", "mtu 1300", "down"].into_iter().enumerate() {
        let looks = running.state().looks;
        running.fabric.by_hand(&format!("link set flannel.1 {breakage}"));
        running.await_whole(breakage);
        running.await_state(breakage, |state| state.healing.repairs.get("link") == Some(&(n as u64 + 1)));
        assert_eq!(running.state().looks, looks + 1, "{breakage}: once, when the link was well again");
    }
    running.stop();
}

#[test]
fn peers_that_packets_are_sent_to_come_first() {
    let fabric = Fabric::new("heal-use", "vxlan", "", 30);
    let mut kernel = fabric.kernel(Nexthops::WherePossible);
    let plan = fabric.plan(&mut kernel);
    apply(&mut kernel, &plan);
    let sorted = |op: &Op| matches!(op, Op::SetNeighbour { ip, .. } if ip.to_string() == "10.64.1.0");
    let first = |plan: &[Op]| plan.iter().find(|op| matches!(op, Op::SetNeighbour { .. })).cloned().unwrap();
    fabric.by_hand("link set flannel.1 down");
    let plan = fabric.plan(&mut kernel);
    assert!(sorted(&first(&plan)), "{plan:?}");
    apply(&mut kernel, &plan);
    std::thread::sleep(Duration::from_millis(50));

    // Nobody answers.
    let _ = fabric.host.run("ping", ["-c1", "-W1", "10.64.23.0"]);
    fabric.by_hand("link set flannel.1 down");
    let plan = fabric.plan(&mut kernel);

    let peers = plan.iter().skip_while(|op| !matches!(op, Op::SetNeighbour { .. }));
    let peers: Vec<_> = peers.take(4).map(ToString::to_string).collect();
    assert!(peers[0].starts_with("neighbour 10.64.23.0 "), "{peers:?}");
    assert!(peers[1].contains("via 10.64.23.0 dev flannel.1"), "{peers:?}");
    assert!(peers[2].starts_with("route 10.64.23.0/24 via"), "{peers:?}");
    assert!(peers[3].starts_with("neighbour 10.64.1.0 "), "{peers:?}");
}

#[test]
fn the_kernel_tells_of_what_others_do_not_of_what_we_did() {
    let fabric = Fabric::new("heal-echo", "vxlan", "", 10);
    let mut kernel = fabric.kernel(Nexthops::WherePossible);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let netns = fabric.netns();
    let monitor = Monitor::open(Some(std::os::fd::AsFd::as_fd(&netns))).unwrap();
    let mut monitor = monitor.without_echo_of(&kernel).unwrap();
    let mut told = || std::iter::from_fn(|| monitor.next(News::All)).collect::<Vec<_>>();
    let plan = fabric.plan(&mut kernel);
    apply(&mut kernel, &plan);
    let is_echo = |event: &KernelEvent| {
        use Entry::{Neighbour, Nexthop, Route};
        matches!(
            event,
            KernelEvent::Added(Neighbour { mac: Some(_), .. } | Nexthop { .. } | Route { protocol: 87, .. })
        )
    };
    let events = told();
    assert!(events.iter().any(|event| matches!(event, KernelEvent::Added(Entry::Link(_)))), "{events:?}");
    assert_eq!(events.iter().filter(|event| is_echo(event)).count(), 0, "{events:?}");

    fabric.by_hand("route del 10.64.3.0/24");
    fabric.by_hand("neigh del 10.64.3.0 dev flannel.1");
    let events = told();
    assert!(
        events.iter().any(|event| matches!(event, KernelEvent::Removed(Entry::Route { .. }))),
        "{events:?}"
    );
    assert!(events.iter().any(|event| matches!(event, KernelEvent::Removed(Entry::Neighbour { .. }))));
    fabric.by_hand("neigh flush dev flannel.1 nud permanent");
    fabric.by_hand("link set flannel.1 mtu 1300");
    let of_links: Vec<_> = std::iter::from_fn(|| monitor.next(News::OfLinks)).collect();
    assert!(!of_links.is_empty());
    let is_of_links = |event: &KernelEvent| matches!(event, KernelEvent::Added(Entry::Link(_)));
    assert!(of_links.iter().all(is_of_links), "{of_links:?}");
}

#[test]
fn settings_that_the_fabric_needs_are_put_back() {
    let running = Running::start(Fabric::new("heal-sysctl", "vxlan", "", 1), Nexthops::WherePossible);
    let host = &running.fabric.host;
    for (key, good, bad) in [
        ("ipv4/ip_forward", "1", "0"),
        ("ipv6/conf/all/forwarding", "1", "0"),
        ("ipv4/conf/flannel.1/forwarding", "1", "0"),
        ("ipv6/conf/flannel-v6.1/forwarding", "1", "0"),
        // The kernel does not tell of this one: it is looked at every few seconds.
        ("ipv6/conf/flannel.1/accept_ra", "0", "2"),
    ] {
        let looks = running.state().looks;
        let value = || host.run("cat", [format!("/proc/sys/net/{key}")]).unwrap().trim().to_owned();
        assert_eq!(value(), good, "{key}");
        host.sysctl(key, bad).unwrap();
        let begun = Instant::now();
        while value() != good {
            assert!(begun.elapsed() < 4 * SOON, "{key}: {:#?}", running.state());
        }
        eprintln!("{key} was back after {:.1?}", begun.elapsed());
        assert_eq!(running.state().looks, looks, "{key}: without reading everything again");
    }
    running.stop();
}

#[test]
fn the_offload_that_is_to_be_off_is_put_off_again() {
    let fabric = Fabric::with_checksums_off("heal-offload", 1);
    let running = Running::start(fabric, Nexthops::WherePossible);
    let host = &running.fabric.host;
    let offload = || host.run("ethtool", ["-k", "flannel.1"]).unwrap().contains("tx-checksumming: on");
    assert!(!offload());
    host.run("ethtool", ["-K", "flannel.1", "tx", "on"]).unwrap();
    running.await_state("the offload", |state| state.healing.repairs.contains_key("link"));
    assert!(!offload());
    running.stop();
}

#[test]
fn a_tunnel_follows_its_address_without_being_made_anew() {
    let running = Running::start(Fabric::new("heal-local", "vxlan", "", 3), Nexthops::WherePossible);
    let tunnel = || running.fabric.ip("-d link show flannel.1")[0].clone();
    let before = tunnel();
    assert_eq!(before["linkinfo"]["info_data"]["local"], "192.168.77.1");

    running.fabric.by_hand("addr add 192.168.77.111/24 dev eth0");
    let ip: std::net::IpAddr = "192.168.77.111".parse().unwrap();
    let revision = running.target.update(|inputs| {
        inputs.node.address.v4 = Some(ip);
        inputs.node.public_ip.v4 = Some(ip);
    });
    running.await_state("the new address", |state| state.synced && state.revision == revision);

    let after = tunnel();
    assert_eq!(after["linkinfo"]["info_data"]["local"], "192.168.77.111");
    for same in ["ifindex", "address", "mtu"] {
        assert_eq!(after[same], before[same]);
    }
    let state = running.state();
    assert_eq!(state.ops.get("set_link"), Some(&1), "{:?}", state.ops);
    assert_eq!(state.ops.get("set_route"), Some(&6), "nothing on it was touched");
    running.stop();
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let running = Running::start(Fabric::new("heal-idle", "vxlan", "", 50), Nexthops::WherePossible);
    let before = running.state();

    // Others' business, and news that is none.
    running.fabric.by_hand("link add other0 type veth peer name other1");
    running.fabric.by_hand("link set other0 up");
    running.fabric.by_hand("link set other1 up");
    running.fabric.by_hand("addr add 10.99.0.1/24 dev other0");
    running.fabric.by_hand("route add 10.98.0.0/16 dev other0");
    running.fabric.by_hand("neigh add 10.99.0.2 lladdr 02:00:00:00:00:01 dev other0");
    std::thread::sleep(Duration::from_millis(500));

    let after = running.state();
    assert_eq!(after.ops, before.ops);
    assert_eq!(after.looks, before.looks);
    let fabric = running.stop();

    // A second one finds all in place: what a restart of the daemon does.
    let objects =
        |fabric: &Fabric| (fabric.ip("-d link show"), fabric.ip("nexthop show"), fabric.ip("route show"));
    let left = objects(&fabric);
    let again = Running::start(fabric, Nexthops::WherePossible);
    assert_eq!(again.state().ops.len(), 0, "{:?}", again.state().ops);
    assert_eq!(objects(&again.stop()), left);
}

#[test]
fn peers_come_and_go_and_foreign_state_stays() {
    let fabric = Fabric::new("heal-peers", "vxlan", r#","DirectRouting":false"#, 20);
    fabric.by_hand("link add other0 type veth peer name other1");
    fabric.by_hand("link set other0 up");
    fabric.by_hand("link set other1 up");
    fabric.by_hand("route add 10.98.0.0/16 dev other0");
    fabric.by_hand("route add 10.64.77.0/24 dev other0 metric 5");
    fabric.by_hand("nexthop add id 7 dev other0 protocol zebra");
    let running = Running::start(fabric, Nexthops::WherePossible);
    running.fabric.by_hand("route add 172.30.0.0/16 via 10.64.3.0 dev flannel.1 onlink proto static");

    let revision = running.target.update(|inputs| inputs.peers = without(&inputs.peers, 3));
    running.await_state("peer 3 gone", |state| state.synced && state.revision == revision);

    let routes = running.fabric.ip("route show");
    let find = |dst: &str| routes.as_array().unwrap().iter().any(|route| route["dst"] == dst);
    assert!(!find("10.64.3.0/24"));
    assert!(find("10.64.4.0/24"));
    assert!(find("10.98.0.0/16") && find("10.64.77.0/24") && find("172.30.0.0/16"));
    assert!(running.fabric.ip("nexthop show").as_array().unwrap().iter().any(|object| object["id"] == 7));

    let revision = running.target.update(|inputs| inputs.peers.clear());
    running.await_state("no peers", |state| state.synced && state.revision == revision);
    let ours = running.fabric.ip("route show proto 87");
    assert_eq!(ours, json!([]));
    assert_eq!(running.fabric.ip("neigh show dev flannel.1 nud permanent"), json!([]));
    let snapshot = running.runtime.block_on(running.handle.observe()).unwrap().unwrap();
    assert!(snapshot.missing.is_empty() && snapshot.inputs.peers.is_empty());
    assert_eq!(snapshot.inputs.own, key(0));
}

#[test]
fn host_gw_survives_its_uplink() {
    let running = Running::start(Fabric::new("heal-gw", "host-gw", "", 20), Nexthops::WherePossible);

    // Without a carrier the kernel drops nexthops and their routes in silence.
    running.fabric.lab.cut(&running.fabric.host).unwrap();
    running.await_state("cut", |state| !state.synced || state.healing.total() > 0);
    running.fabric.lab.mend(&running.fabric.host).unwrap();
    running.await_whole("mended");

    running.fabric.by_hand("link set eth0 down");
    running.await_state("down", |state| state.failed.iter().any(|text| text.contains("link eth0")));
    running.fabric.by_hand("link set eth0 name eth9");
    running.fabric.by_hand("link set eth9 up");
    running.await_state("renamed", |state| state.failed.iter().any(|text| text.contains("link eth0")));
    running.fabric.by_hand("link set eth9 down");
    running.fabric.by_hand("link set eth9 name eth0");
    running.fabric.by_hand("link set eth0 up");
    running.fabric.by_hand("addr replace fd77::1/64 dev eth0 nodad");
    running.await_whole("back");
    running.stop();
}

#[test]
fn one_change_among_thousands_is_prompt() {
    let running = Running::start(Fabric::new("heal-2k", "vxlan", "", 2_000), Nexthops::WherePossible);
    std::thread::sleep(Duration::from_millis(300));

    let begun = Instant::now();
    let looks = running.state().looks;
    assert!(looks <= 4, "{looks} looks at the kernel to start with");
    running.fabric.by_hand("route del 10.64.3.0/24");
    while running.fabric.ip("route show 10.64.3.0/24") == json!([]) {
        assert!(begun.elapsed() < SOON);
    }

    eprintln!(
        "a deleted route among 2,000 peers was back after {:.1?}, two runs of ip included",
        begun.elapsed()
    );
    assert_eq!(running.state().looks, looks, "from what was told, without reading everything again");
    running.stop();
}

struct Running {
    fabric: Fabric,
    runtime: Runtime,
    target: Target,
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), NetlinkError>>,
}

impl Running {
    /// Until everything is in place.
    fn start(fabric: Fabric, nexthops: Nexthops) -> Running {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let target = Target::new(fabric.inputs.clone());
        let stop = CancellationToken::new();
        let netns = fabric.netns();
        let (task, handle) = {
            let _inside = runtime.enter();
            let (kernel, backend) = (fabric.kernel(nexthops), Arc::from(fabric.backend()));
            let monitor = Monitor::open(Some(std::os::fd::AsFd::as_fd(&netns))).unwrap();
            let monitor = monitor.without_echo_of(&kernel).unwrap();
            let own = fabric.backend.ownership();
            let (reconciler, handle) =
                Reconciler::new(kernel, monitor, backend, own, target.clone(), Settings::default());
            (runtime.spawn(reconciler.run(stop.clone())), handle)
        };
        let running = Running { fabric, runtime, target, handle, stop, task };
        running.await_state("start", |state| state.synced);
        running
    }

    fn state(&self) -> State {
        self.handle.state().borrow().clone()
    }

    fn await_state(&self, what: &str, good: impl Fn(&State) -> bool) {
        let begun = Instant::now();
        while !good(&self.state()) {
            assert!(begun.elapsed() < SOON, "{what}: {:#?}", self.state());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Everything wanted is in the kernel, seen with other eyes.
    fn await_whole(&self, what: &str) {
        let mut kernel = self.fabric.kernel(Nexthops::WherePossible);
        let begun = Instant::now();
        loop {
            let missing = self.fabric.desired().missing_from(&self.fabric.observe(&mut kernel));
            let plan = self.fabric.plan(&mut kernel);
            if missing.is_empty() && plan.is_empty() && self.state().synced {
                return;
            }
            assert!(begun.elapsed() < SOON, "{what}: {missing:?}, {plan:?}, {:#?}", self.state());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stop it; the fabric stays.
    fn stop(self) -> Fabric {
        self.stop.cancel();
        self.runtime.block_on(self.task).unwrap().unwrap();
        self.fabric
    }
}
