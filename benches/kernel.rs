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
    println!(
        "dual stack, vxlan, median of {RUNS}, in milliseconds; the floor is ip -batch and bridge -batch"
    );
    println!(
        "{:<7} {:<7} {:>6} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8} | {:>7} {:>6}",
        "peers", "routes", "ops", "weft", "observe", "neigh", "fdb", "nexthop", "route", "floor", "ratio"
    );
    for (peers, nexthops) in [
        (1_000, Nexthops::WherePossible),
        (10_000, Nexthops::WherePossible),
        (16_000, Nexthops::WherePossible),
        (1_000, Nexthops::Never),
    ] {
        row(peers, nexthops);
    }
}

fn row(peers: u32, nexthops: Nexthops) {
    let mut times: [Vec<Duration>; 7] = Default::default();
    let mut ops = 0;
    for _ in 0..RUNS {
        let (plan, weft) = by_weft(peers, nexthops);
        let batches = by_batch(&plan);
        let run = weft.into_iter().chain(batches).chain([batches.iter().sum()]);
        times.iter_mut().zip(run).for_each(|(times, time)| times.push(time));
        ops = plan.len();
    }
    let [joined, observed, neigh, fdb, nexthop, route, floor] = times.map(|mut times| {
        times.sort_unstable();
        times[RUNS / 2].as_secs_f64() * 1e3
    });
    let routes = if nexthops == Nexthops::Never { "plain" } else { "by id" };
    println!(
        "{peers:<7} {routes:<7} {ops:>6} {joined:>8.1} {observed:>8.1} | {neigh:>8.1} {fdb:>8.1} {nexthop:>8.1} {route:>8.1} | {floor:>7.1} {:>6.2}",
        joined / floor
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

/// The same peers' objects by iproute2, kind by kind, on links that are there
/// already: neighbours, FDB entries, nexthops, routes.
fn by_batch(plan: &[Op]) -> [Duration; 4] {
    let fabric = Fabric::new("floor", "vxlan", "", 0);
    let links =
        diff(&fabric.observe(&mut fabric.kernel(Nexthops::Never)), &fabric.desired(), &Default::default());
    fabric::apply(&mut fabric.kernel(Nexthops::Never), &links.ops);
    let mut lines: [String; 4] = Default::default();
    for op in plan {
        let (kind, line) = match op {
            Op::SetNeighbour { dev, ip, mac } => {
                (0, format!("neigh replace {ip} lladdr {mac} dev {dev} nud permanent\n"))
            }
            Op::SetFdb { dev, mac, dst } => {
                (1, format!("fdb replace {mac} dst {dst} dev {dev} self permanent\n"))
            }
            Op::SetNexthop { id, nexthop } => {
                (2, format!("nexthop replace id {id} via {} dev {} onlink\n", nexthop.via, nexthop.dev))
            }
            Op::SetRoute { dst, id: Some(id), .. } => (3, format!("route replace {dst} nhid {id}\n")),
            Op::SetRoute { dst, nexthop, id: None } => {
                (3, format!("route replace {dst} via {} dev {} onlink\n", nexthop.via, nexthop.dev))
            }
            _ => continue,
        };
        lines[kind] += &line;
    }
    [("ip", 0), ("bridge", 1), ("ip", 2), ("ip", 3)].map(|(program, kind)| {
        let begun = Instant::now();
        batch(&fabric.host, program, &lines[kind]);
        begun.elapsed()
    })
}

fn batch(netns: &Netns, program: &str, lines: &str) {
    let mut child = netns.command(program).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} -batch");
}
