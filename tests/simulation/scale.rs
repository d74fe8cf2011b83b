//! What many nodes ask of one store: the load of docs/scale.md, counted.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft::backends;
use weft::model::PerFamily;

use super::kernel::{before, uplink};
use super::node::{Node, Setting};
use super::store::{Load, Model, PREFIX, Writer};
use super::verdict::Verdict;

const CONFIG: &str = r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
const TTL: Duration = Duration::from_secs(600);

/// What a fabric cost.
#[derive(Debug)]
pub struct Cost {
    /// Until all had joined, by a watch on the first and the last of them.
    pub start: Load,
    pub joined_after: Duration,
    /// From then on for as long as a lease lives.
    pub keep: Load,
    /// Ops on the kernel of each node that watched.
    pub ops: Vec<usize>,
    pub watching: usize,
}

/// `nodes` start within `spread` of each other; `watching` of them follow all
/// leases and have kernels, the others take and keep their own alone, so that one
/// machine's memory holds them.
pub fn run(nodes: usize, watching: usize, spread: Duration) -> Cost {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    fastrand::seed(7);
    runtime.block_on(cost(nodes, watching, spread))
}

async fn cost(count: usize, watching: usize, spread: Duration) -> Cost {
    let verdict = Verdict::new(false);
    let hosts: Vec<_> = (0..count).map(host).collect();
    let addresses = hosts.iter().map(|host| host.public_ip.v4.unwrap().to_string()).collect();
    let model = Model::new(verdict.clone(), addresses, 1);
    let key = format!("{PREFIX}/config");
    model.update(|state| state.put_by(Writer::Other, key.as_bytes(), CONFIG.as_bytes(), 0));
    tokio::spawn(model.clone().expire());
    let setting = Setting { model: model.clone(), verdict, ttl: TTL, audit: 2 * TTL, mutant: None };
    let mut nodes: Vec<_> = hosts
        .into_iter()
        .enumerate()
        .map(|(index, host)| Node::new(index, host, before(&[]), 10 * count + 1_000, index as u64))
        .collect();

    let begin = Instant::now();
    let pause = spread.div_f64(count as f64);
    for (index, node) in nodes.iter_mut().enumerate() {
        // Those that watch are spread among the others.
        match index % (count / watching) == 0 {
            true => node.start(&setting),
            false => node.start_blind(&setting),
        }
        sleep(pause.mul_f64(2.0 * fastrand::f64())).await;
    }
    while model.lock().leases().count() < count {
        assert!(begin.elapsed() < spread * 3, "{} of {count} have joined", model.lock().leases().count());
        sleep(Duration::from_millis(100)).await;
    }
    let joined_after = begin.elapsed();
    sleep(Duration::from_secs(5)).await;
    let start = std::mem::take(&mut model.lock().load);
    sleep(TTL).await;
    let keep = std::mem::take(&mut model.lock().load);
    let watching: Vec<_> = nodes.iter().filter(|node| node.member().is_some()).collect();
    for node in &watching {
        let routes = node.fake.with(|have| have.routes.values().filter(|route| route.protocol == 87).count());
        assert_eq!(routes, count - 1, "node {}", node.index);
    }
    let ops = watching.iter().map(|node| node.fake.take_tried().len()).collect();
    assert!(setting.verdict.violation().is_none());
    Cost { start, joined_after, keep, ops, watching: watching.len() }
}

fn host(index: usize) -> backends::Node {
    let v4 = std::net::Ipv4Addr::from(0xac10_0000 + 10 + index as u32).into();
    let address = PerFamily { v4: Some(v4), v6: None };
    backends::Node { uplink: uplink(), uplink_mtu: 1500, address, public_ip: address, on_link: Vec::new() }
}
