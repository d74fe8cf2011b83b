//! What it costs to get a node's whole state into the kernel, beside the same
//! objects by `ip -batch` and `bridge -batch`, in namespaces of its own, and by
//! how many at a time. Rtnetlink works inside the caller's system calls, so that
//! CPU time is the time that it takes on a machine with nothing else to do.
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
use std::time::Duration;

use netns_harness::Netns;
use rustix::time::{ClockId, clock_gettime};
use weft::desired::{Desired, Op, diff};
use weft::kernel::{Kernel, Nexthops};
use weft::model::Family;

use fabric::Fabric;

const RUNS: usize = 3;
/// Ops given to the kernel at once.
const LOTS: [usize; 7] = [1, 10, 25, 50, 100, 200, 1000];

fn main() {
    println!("milliseconds of CPU, median of {RUNS}; the floor is ip -batch and bridge -batch");
    println!(
        "{:<8} {:<6} {:<6} {:<6} {:>6} {:>7} {:>8} | {:>6} {:>6} {:>8} {:>6} | {:>6} {:>6}",
        "backend",
        "family",
        "peers",
        "routes",
        "ops",
        "weft",
        "observe",
        "neigh",
        "fdb",
        "nexthop",
        "route",
        "floor",
        "ratio"
    );
    for (kind, peers, nexthops) in [
        ("vxlan", 1_000, Nexthops::WherePossible),
        ("vxlan", 10_000, Nexthops::WherePossible),
        ("vxlan", 16_000, Nexthops::WherePossible),
        ("vxlan", 1_000, Nexthops::Never),
        ("host-gw", 10_000, Nexthops::WherePossible),
        ("host-gw", 10_000, Nexthops::Never),
    ] {
        Family::BOTH.iter().for_each(|family| row(kind, *family, peers, nexthops));
    }
    print!("\n10,000 peers of vxlan and IPv4, by ops at a time:");
    let times = LOTS.map(|_| Vec::new());
    let times = (0..RUNS).fold(times, |mut times, _| {
        LOTS.iter().zip(&mut times).for_each(|(lot, times)| times.push(by_lots(*lot)));
        times
    });
    LOTS.iter().zip(times).for_each(|(lot, times)| print!(" {lot}: {:.1}", median(times)));
    println!();
}

fn row(kind: &str, family: Family, peers: u32, nexthops: Nexthops) {
    let mut times: [Vec<Duration>; 7] = Default::default();
    let mut ops = 0;
    for _ in 0..RUNS {
        let (plan, weft) = by_weft(kind, family, peers, nexthops);
        let batches = by_batch(kind, family, &plan);
        let run = weft.into_iter().chain(batches).chain([batches.iter().sum()]);
        times.iter_mut().zip(run).for_each(|(times, time)| times.push(time));
        ops = plan.len();
    }
    let [joined, observed, neigh, fdb, nexthop, route, floor] = times.map(median);
    let routes = if nexthops == Nexthops::Never { "plain" } else { "by id" };
    println!(
        "{kind:<8} {family:<6} {peers:<6} {routes:<6} {ops:>6} {joined:>7.1} {observed:>8.1} | {neigh:>6.1} {fdb:>6.1} {nexthop:>8.1} {route:>6.1} | {floor:>6.1} {:>6.2}",
        joined / floor
    );
}

/// In milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[RUNS / 2].as_secs_f64() * 1e3
}

/// The plan, and the times of the first pass and of a look afterwards.
fn by_weft(kind: &str, family: Family, peers: u32, nexthops: Nexthops) -> (Vec<Op>, [Duration; 2]) {
    let fabric = Fabric::new("bench", kind, "", peers);
    let mut kernel = fabric.kernel(nexthops);
    let (want, own, scope) = (fabric.desired().only(family), fabric.backend.ownership(), fabric.scope());
    let (plan, joined) = timed(|| {
        let plan = diff(&kernel.observe(&scope).unwrap(), &want, &own).ops;
        fabric::apply(&mut kernel, &plan);
        plan
    });
    let ((), observed) = timed(|| drop(kernel.observe(&scope).unwrap()));
    (plan, [joined, observed])
}

fn by_lots(lot: usize) -> Duration {
    let fabric = Fabric::new("lots", "vxlan", "", 10_000);
    let mut kernel = fabric.kernel(Nexthops::WherePossible);
    let want = fabric.desired().only(Family::V4);
    let plan = diff(&fabric.observe(&mut kernel), &want, &fabric.backend.ownership()).ops;
    timed(|| plan.chunks(lot).for_each(|lot| fabric::apply(&mut kernel, lot))).1
}

/// The same peers' objects by iproute2, kind by kind, on links that are there
/// already: neighbours, FDB entries, nexthops, routes.
fn by_batch(kind: &str, family: Family, plan: &[Op]) -> [Duration; 4] {
    let fabric = Fabric::new("floor", kind, "", 0);
    let links: Desired = fabric.desired().only(family);
    let links = diff(&fabric.observe(&mut fabric.kernel(Nexthops::Never)), &links, &Default::default());
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
            Op::SetNexthop { id, nexthop } => (2, format!("nexthop replace id {id} {nexthop}\n")),
            Op::SetRoute { dst, id: Some(id), .. } => (3, format!("route replace {dst} nhid {id}\n")),
            Op::SetRoute { dst, nexthop, id: None } => (3, format!("route replace {dst} {nexthop}\n")),
            _ => continue,
        };
        lines[kind] += &line;
    }
    [("ip", 0), ("bridge", 1), ("ip", 2), ("ip", 3)].map(|(program, kind)| {
        let before = of_children();
        batch(&fabric.host, program, &lines[kind]);
        of_children() - before
    })
}

fn batch(netns: &Netns, program: &str, lines: &str) {
    let mut child = netns.command(program).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} -batch");
}

/// CPU time of this thread.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let begun = now();
    let done = work();
    (done, now() - begun)
}

/// CPU time of all programs that have ended.
fn of_children() -> Duration {
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it is written to before the call returns, and not kept.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) }, 0);
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}
