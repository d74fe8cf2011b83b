//! The daemon's own code, node by node, against a store, kernels, wires and a
//! clock that are all in memory, with faults drawn from a number. See
//! ARCHITECTURE.md, "Simulation".
#![allow(clippy::unwrap_used)] // in the helpers of tests, too

mod faults;
mod kernel;
mod life;
mod mutants;
mod network;
mod node;
mod oracle;
mod scale;
mod store;
mod verdict;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mutants::Mutant;
use verdict::{Invariant, Violation};
use world::{Outcome, run};

/// So many with `cargo test`; `WEFT_SIM_SCHEDULES` asks for others.
const SCHEDULES: u64 = 400;
/// A mutant is to be found out within so many.
const MUTANT_SCHEDULES: u64 = 5_000;
/// Of this machine's time, of which a schedule takes milliseconds: longer, and it
/// will never end.
const ENDLESS: Duration = Duration::from_secs(60);

#[test]
fn no_schedule_violates_an_invariant() {
    let (first, count) = (number("WEFT_SIM_FIRST", 0), number("WEFT_SIM_SCHEDULES", SCHEDULES));
    let begin = Instant::now();
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let (faults, slowest) = (AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    // What each thread runs, and since when.
    let running: &[Mutex<Option<(u64, Instant)>>] =
        (0..threads).map(|_| Mutex::default()).collect::<Vec<_>>().leak();
    std::thread::spawn(|| give_up_on_endless(running));
    std::thread::scope(|scope| {
        let work = |mine: &Mutex<Option<(u64, Instant)>>| {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                *mine.lock().unwrap() = (seed < first + count).then(|| (seed, Instant::now()));
                if seed >= first + count {
                    return;
                }
                let outcome = schedule(seed, None).unwrap_or_else(|violation| {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                    panic!("seed {seed}: {violation}\n{}", to_replay(seed))
                });
                faults.fetch_add(outcome.faults as u64, Ordering::Relaxed);
                slowest.fetch_max(outcome.settled_after.as_secs(), Ordering::Relaxed);
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(50_000) {
                    eprintln!("{done} schedules in {:.0?}", begin.elapsed());
                }
            }
        };
        let workers: Vec<_> = running.iter().map(|mine| scope.spawn(move || work(mine))).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let took = begin.elapsed();
    println!(
        "{count} schedules from {first} with {} faults in {took:.1?}, {:.0} a minute; the longest took {} s to settle",
        faults.into_inner(),
        count as f64 * 60.0 / took.as_secs_f64(),
        slowest.into_inner(),
    );
}

/// Tells a schedule aloud: `WEFT_SIM_SEED=…`, `RUST_LOG=weft=debug` for the
/// daemons' own words.
#[test]
fn replay() {
    let seed = number("WEFT_SIM_SEED", 1);
    let asked = std::env::var_os("WEFT_SIM_SEED").is_some();
    if asked {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    run(seed, None, asked).unwrap();
}

#[test]
fn a_seed_is_one_schedule() {
    for seed in 0..20 {
        let fingerprint = |outcome: Outcome| outcome.fingerprint;
        let [one, other] = [(); 2].map(|()| run(seed, None, false).map(fingerprint).unwrap());
        assert_eq!(one, other, "seed {seed}");
    }
}

#[test]
fn every_mutant_is_found_out() {
    for (mutant, invariant) in Mutant::ALL {
        let begin = Instant::now();
        let mut sooner = None;
        let found = (0..MUTANT_SCHEDULES).find_map(|seed| {
            let violation = schedule(seed, Some(mutant)).err()?;
            sooner.get_or_insert_with(|| (seed, violation.to_string()));
            (violation.of == invariant).then_some((seed, violation))
        });
        let Some((seed, violation)) = found else {
            panic!("{mutant:?}: nothing violates {invariant:?} in {MUTANT_SCHEDULES} schedules: {sooner:?}")
        };
        let violation: String = violation.to_string().chars().take(160).collect();
        println!("{mutant:?}: schedule {} after {:.1?}: {violation}", seed + 1, begin.elapsed());
    }
}

/// `WEFT_SIM_NODES=5000` is what docs/scale.md speaks of.
#[test]
fn what_many_nodes_cost_grows_with_their_number() {
    let nodes = number("WEFT_SIM_NODES", 60) as usize;
    let (watching, spread) = (6, Duration::from_secs(number("WEFT_SIM_SPREAD", 60)));
    let begin = Instant::now();
    let scale::Cost { start, joined_after, keep, ops, watching } = scale::run(nodes, watching, spread);
    println!(
        "{nodes} nodes that start within {spread:?}, {watching} of them watching ({:.1?} of this machine's time):\n  \
         joined after {joined_after:.1?}; to the store: {} ranges ({} bytes), {} transactions ({} lost), {} grants\n  \
         events to those that watch: {} ({} bytes); ops on their kernels: {ops:?}\n  \
         while a lease lives ({} s): {} keep-alives, {} ranges, {} transactions, {} events",
        begin.elapsed(),
        start.ranges,
        start.range_bytes,
        start.txns,
        start.lost_txns,
        start.grants,
        start.events,
        start.event_bytes,
        600,
        keep.keep_alives,
        keep.ranges,
        keep.txns,
        keep.events,
    );
    let nodes = nodes as u64;
    assert!(start.txns <= 2 * nodes && start.grants <= 2 * nodes, "taking a lease is one transaction");
    assert!(start.events <= (nodes + 1) * watching as u64, "an event a lease and watch");
    assert_eq!((keep.txns, keep.events), (0, 0), "a renewal wakes nobody");
    // Each node's margin is its own: it renews after half a lease's life or later.
    assert!(keep.keep_alives <= 4 * nodes && keep.ranges <= 2 * nodes, "a renewal in half a lease's life");
    assert!(ops.iter().all(|ops| *ops as u64 <= 4 * nodes + 3), "four ops a peer");
}

/// A thread cannot be stopped: the process ends with the seed as its last word.
fn give_up_on_endless(running: &[Mutex<Option<(u64, Instant)>>]) {
    loop {
        std::thread::sleep(ENDLESS / 10);
        for mine in running {
            let Some((seed, since)) = *mine.lock().unwrap() else { continue };
            if since.elapsed() > ENDLESS {
                eprintln!("seed {seed}: not over after {ENDLESS:?}\n{}", to_replay(seed));
                std::process::exit(1);
            }
        }
    }
}

fn to_replay(seed: u64) -> String {
    format!("replay: WEFT_SIM_SEED={seed} cargo test --test simulation replay -- --nocapture")
}

/// A panic anywhere in it is a violation, too.
fn schedule(seed: u64, mutant: Option<Mutant>) -> Result<Outcome, Violation> {
    let ended = catch_unwind(AssertUnwindSafe(|| run(seed, mutant, false)));
    let panicked = |_| Violation { of: Invariant::Lives, what: "a panic, see above".to_owned() };
    ended.map_err(panicked).flatten()
}

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name);
    text.map_or(default, |text| {
        text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text}: a number"))
    })
}
