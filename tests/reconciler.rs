//! The reconciler on a kernel in memory: what it does about failures, and when
//! it looks. Real kernels: `tests/kernel`.
#![allow(clippy::unwrap_used)] // in the helpers of tests, too

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weft::backends::{Identity, Node, Peers, from_config};
use weft::desired::{Observed, ObservedLink, Op};
use weft::kernel::fake::Fake;
use weft::kernel::netlink::NetlinkError;
use weft::kernel::{Entry, KernelEvent};
use weft::model::{LeaseAttrs, Mac, NetworkConfig, PerFamily, SubnetKey};
use weft::reconciler::{Handle, Inputs, Reconciler, Settings, State, Target};

#[tokio::test]
async fn one_bad_peer_delays_no_other_and_is_tried_again() {
    let kernel = Fake::new(node());
    kernel.fail(|op| is_route_to(op, 2).then_some(libc::ENOSPC));
    let running = Running::start(&kernel, 3);

    let state = running.await_state(|state| state.passes > 3).await;
    assert!(!state.synced);
    assert_eq!(state.failed, ["route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink: ENOSPC".to_owned()]);
    let routes = kernel.state().routes;
    assert!(routes.contains_key(&subnet(1)) && routes.contains_key(&subnet(3)));

    kernel.fail(|_| None);
    let state = running.await_state(|state| state.synced).await;
    assert!(state.failed.is_empty() && kernel.state().routes.contains_key(&subnet(2)));
    let tried = kernel.take_tried();
    let others = tried.iter().filter(|op| is_route_to(op, 1)).count();
    assert_eq!(others, 1, "what is done is not done again");
    // This kernel has no files below /proc/sys: that keeps nothing from being in place.
    assert!(!tried.iter().any(|op| matches!(op, Op::SetSysctl { .. })));
    running.stop().await;
}

#[tokio::test]
async fn tries_of_a_failing_op_become_rare() {
    let kernel = Fake::new(node());
    kernel.fail(|op| is_route_to(op, 2).then_some(libc::EPERM));
    let running = Running::start(&kernel, 3);

    tokio::time::sleep(Duration::from_millis(1000)).await;
    // A wake for another reason is no reason to try it now.
    for peers in [4, 5, 6] {
        running.target.update(|inputs| inputs.peers = leases(peers));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let tried = kernel.take_tried().iter().filter(|op| is_route_to(op, 2)).count();
    // After 10, 20, 40, … ms.
    assert!((3..=8).contains(&tried), "{tried} tries in a second");
    assert!(kernel.state().routes.contains_key(&subnet(6)));
    let failed = &running.handle.state().borrow().failed.clone()[0];
    assert!(failed.ends_with("EPERM: run as root or with CAP_NET_ADMIN"), "{failed}");
    running.stop().await;
}

#[tokio::test]
async fn the_newest_peers_win_and_nothing_queues_up() {
    let kernel = Fake::new(node());
    let running = Running::start(&kernel, 1);
    let before = running.await_state(|state| state.synced).await;

    for n in 0..250 {
        running.target.update(|inputs| inputs.peers = leases(1 + n % 50));
    }
    let revision = running.target.update(|inputs| inputs.peers = leases(7));

    let state = running.await_state(|state| state.synced && state.revision == revision).await;
    assert!(state.passes - before.passes < 10, "{} passes", state.passes - before.passes);
    assert_eq!(kernel.state().routes.len(), 7);
    assert_eq!(state.healing.total(), 0);
    running.stop().await;
}

#[tokio::test]
async fn what_nobody_tells_is_found_after_a_loss_or_at_the_audit() {
    let kernel = Fake::new(node());
    let running = Running::start(&kernel, 3);
    running.await_state(|state| state.synced).await;
    let looks = kernel.observed();

    kernel.disturb(|state| state.routes.clear(), [KernelEvent::Resync("ENOBUFS".to_owned())]);
    let state = running.await_state(|state| state.healing.total() == 3).await;
    assert_eq!(kernel.observed(), looks + 1);
    assert_eq!(state.ops["set_route"], 6);

    kernel.disturb(|state| state.neighbours.clear(), []);
    running.await_state(|state| state.healing.total() == 6).await;
    assert!(kernel.observed() > looks + 1);
    running.stop().await;
}

#[tokio::test]
async fn what_is_undone_again_and_again_is_named_and_left_alone_ever_longer() {
    let kernel = Fake::new(node());
    let running = Running::start(&kernel, 3);
    running.await_state(|state| state.synced).await;
    kernel.take_tried();

    // Another program takes the route away whenever it is there.
    let foe = tokio::spawn({
        let kernel = kernel.clone();
        async move {
            loop {
                if kernel.state().routes.contains_key(&subnet(2)) {
                    let lost = KernelEvent::Removed(Entry::Route {
                        dst: subnet(2),
                        hop: None,
                        nexthop_id: 0,
                        protocol: 87,
                    });
                    kernel.disturb(|state| state.routes.retain(|dst, _| *dst != subnet(2)), [lost]);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let state = running.await_state(|state| state.healing.fights.iter().any(|fight| fight.count >= 7)).await;
    assert_eq!(state.healing.fights[0].object, "route 10.5.2.0/24");
    assert_eq!(state.healing.fights.len(), 1);
    running.await_state(|state| !state.synced).await;
    kernel.take_tried();
    // Nobody else waits for it: neither another object, nor a new peer.
    kernel.disturb(|state| state.neighbours.clear(), [KernelEvent::Resync("test".to_owned())]);
    running.await_state(|state| state.healing.repairs.get("neighbour") == Some(&3)).await;
    running.target.update(|inputs| inputs.peers = leases(4));
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert!(kernel.state().routes.contains_key(&subnet(4)));
    let tried = kernel.take_tried().iter().filter(|op| is_route_to(op, 2)).count();
    assert!((1..=4).contains(&tried), "{tried} repairs after 400, 800, 1600 ms");

    foe.abort();
    let state = running.await_state(|state| state.synced).await;
    assert!(kernel.state().routes.contains_key(&subnet(2)));
    assert_eq!(state.healing.fights.len(), 1, "until it has been quiet for long");
    running.stop().await;
}

#[tokio::test]
async fn a_link_that_comes_and_goes_is_fought_over_not_what_stands_on_it() {
    let kernel = Fake::new(node());
    let running = Running::start(&kernel, 3);
    running.await_state(|state| state.synced).await;
    for n in 1..=6 {
        kernel.disturb(
            |state| state.record(&Op::DelLink { name: "flannel.1".parse().unwrap() }),
            [KernelEvent::Resync("test".to_owned())],
        );
        running.await_state(|state| state.healing.repairs.get("link") == Some(&n)).await;
    }
    let state = running.await_state(|state| state.synced).await;
    let fights: Vec<_> = state.healing.fights.iter().map(|fight| fight.object.as_str()).collect();
    assert_eq!(fights, ["link flannel.1"]);
    assert_eq!(state.healing.repairs["route"], 18);
    running.stop().await;
}

#[tokio::test]
async fn stopping_leaves_everything_in_place() {
    let kernel = Fake::new(node());
    let running = Running::start(&kernel, 3);
    running.await_state(|state| state.synced).await;
    let before = kernel.state();
    kernel.take_tried();

    running.stop().await;

    assert_eq!(kernel.state(), before);
    assert_eq!(kernel.take_tried(), []);
}

#[tokio::test]
async fn without_its_uplink_it_waits_and_says_so() {
    let kernel = Fake::new(Observed { nexthop_objects: true, ..Observed::default() });
    let running = Running::start(&kernel, 3);

    let state = running.await_state(|state| state.passes > 0).await;
    assert_eq!(state.failed, ["link eth0: missing or down: waiting for it"]);
    assert_eq!(kernel.take_tried(), []);

    kernel.disturb(|state| *state = node(), [KernelEvent::Resync("test".to_owned())]);
    running.await_state(|state| state.synced).await;
    running.stop().await;
}

struct Running {
    target: Target,
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), NetlinkError>>,
}

impl Running {
    fn start(kernel: &Fake, peers: u8) -> Running {
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let backend = from_config(&NetworkConfig::parse(config).unwrap(), false).unwrap();
        let address = PerFamily { v4: Some("192.168.7.1".parse().unwrap()), v6: None };
        let inputs = Inputs {
            node: Node {
                uplink: "eth0".parse().unwrap(),
                uplink_mtu: 1500,
                address,
                public_ip: address,
                on_link: vec![],
            },
            identity: Identity { mac: PerFamily { v4: Some(Mac([2, 0, 0, 0, 0, 0])), v6: None } },
            own: "10.5.0.0-24".parse().unwrap(),
            peers: leases(peers),
            whole: true,
        };
        let settings = Settings {
            audit: Duration::from_millis(1500),
            retry_min: Duration::from_millis(10),
            retry_max: Duration::from_secs(30),
        };
        let (target, stop) = (Target::new(inputs), CancellationToken::new());
        let own = backend.ownership();
        let (reconciler, handle) = Reconciler::new(
            kernel.clone(),
            kernel.clone(),
            Arc::from(backend),
            own,
            target.clone(),
            settings,
        );
        let task = tokio::spawn(reconciler.run(stop.clone()));
        Running { target, handle, stop, task }
    }

    async fn await_state(&self, good: impl FnMut(&State) -> bool) -> State {
        let mut state = self.handle.state();
        let good = tokio::time::timeout(Duration::from_secs(5), state.wait_for(good)).await;
        match good {
            Ok(state) => state.unwrap().clone(),
            Err(_) => panic!("{:#?}", self.handle.state().borrow()),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A node as it is before weft: an uplink and nothing of ours.
fn node() -> Observed {
    let uplink = ObservedLink { index: 1, mac: None, mtu: 1500, up: true, kind: None, tx_checksum: None };
    Observed {
        links: [("eth0".parse().unwrap(), uplink)].into(),
        nexthop_objects: true,
        ..Observed::default()
    }
}

fn leases(peers: u8) -> Peers {
    let lease = |n: u8| {
        let json = format!(
            r#"{{"PublicIP":"192.168.8.{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{n:02x}"}}}}"#
        );
        let key: SubnetKey = format!("10.5.{n}.0-24").parse().unwrap();
        (key, LeaseAttrs::parse(json.as_bytes()).unwrap())
    };
    (1..=peers).map(lease).collect()
}

fn subnet(n: u8) -> ipnetwork::IpNetwork {
    format!("10.5.{n}.0/24").parse().unwrap()
}

fn is_route_to(op: &Op, n: u8) -> bool {
    matches!(op, Op::SetRoute { dst, .. } if *dst == subnet(n))
}
