//! How long a node's whole state takes to get into the kernel, beside the same
//! objects by `ip -batch` and `bridge -batch`, in namespaces of its own:
//!
//! ```text
//! cargo bench --bench kernel
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

#[path = "../tests/kernel/fabric.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod fabric;

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use netns_harness::Netns;
use weft::desired::{Op, diff};
use weft::kernel::{Kernel, Nexthops};

use fabric::Fabric;

const RUNS: usize = 3;

fn main() {
    println!("dual stack, vxlan, median of {RUNS}, in milliseconds");
    println!(
        "{:<8} {:<8} {:>7} {:>9} {:>9} {:>9} {:>7}",
        "peers", "routes", "ops", "weft", "observe", "batch", "ratio"
    );
    for (peers, nexthops) in
        [(1_000, Nexthops::WherePossible), (10_000, Nexthops::WherePossible), (1_000, Nexthops::Never)]
    {
        row(peers, nexthops);
    }
}

fn row(peers: u32, nexthops: Nexthops) {
    let mut times = [const { Vec::new() }; 3];
    let mut ops = 0;
    for _ in 0..RUNS {
        let (plan, [joined, observed]) = by_weft(peers, nexthops);
        times[0].push(joined);
        times[1].push(observed);
        times[2].push(by_batch(&plan));
        ops = plan.len();
    }
    let [joined, observed, batch] = times.map(|mut times: Vec<Duration>| {
        times.sort_unstable();
        times[RUNS / 2].as_secs_f64() * 1e3
    });
    let routes = if nexthops == Nexthops::Never { "plain" } else { "by id" };
    println!(
        "{peers:<8} {routes:<8} {ops:>7} {joined:>9.1} {observed:>9.1} {batch:>9.1} {:>7.2}",
        joined / batch
    );
}

/// The plan, and the times of the first pass and of a look afterwards.
fn by_weft(peers: u32, nexthops: Nexthops) -> (Vec<Op>, [Duration; 2]) {
    let fabric = Fabric::new("bench", "vxlan", "", peers);
    let mut kernel = fabric.kernel(nexthops);
    let (want, own, scope) = (fabric.desired(), fabric.backend.ownership(), fabric.scope());
    let begun = Instant::now();
    let plan = diff(&kernel.observe(&scope).unwrap(), &want, &own).ops;
    fabric::apply(&mut kernel, &plan);
    let joined = begun.elapsed();
    let begun = Instant::now();
    kernel.observe(&scope).unwrap();
    (plan, [joined, begun.elapsed()])
}

/// The same peers' objects by iproute2, on links that are there already.
fn by_batch(plan: &[Op]) -> Duration {
    let fabric = Fabric::new("floor", "vxlan", "", 0);
    let links =
        diff(&fabric.observe(&mut fabric.kernel(Nexthops::Never)), &fabric.desired(), &Default::default());
    fabric::apply(&mut fabric.kernel(Nexthops::Never), &links.ops);
    let (mut ip, mut bridge) = (String::new(), String::new());
    for op in plan {
        match op {
            Op::SetNeighbour { dev, ip: address, mac } => {
                ip += &format!("neigh replace {address} lladdr {mac} dev {dev} nud permanent\n");
            }
            Op::SetFdb { dev, mac, dst } => {
                bridge += &format!("fdb replace {mac} dst {dst} dev {dev} self permanent\n");
            }
            Op::SetNexthop { id, nexthop } => {
                ip += &format!("nexthop replace id {id} via {} dev {} onlink\n", nexthop.via, nexthop.dev);
            }
            Op::SetRoute { dst, id: Some(id), .. } => ip += &format!("route replace {dst} nhid {id}\n"),
            Op::SetRoute { dst, nexthop, id: None } => {
                ip += &format!("route replace {dst} via {} dev {} onlink\n", nexthop.via, nexthop.dev);
            }
            _ => {}
        }
    }
    let begun = Instant::now();
    batch(&fabric.host, "ip", &ip);
    batch(&fabric.host, "bridge", &bridge);
    begun.elapsed()
}

fn batch(netns: &Netns, program: &str, lines: &str) {
    let mut child = netns.command(program).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} -batch");
}
