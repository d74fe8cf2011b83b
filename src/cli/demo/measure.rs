//! Figures: every pair of containers pinged, throughput and latency between hosts.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use netns_harness::{PingReport, iperf3};

use super::fabric::{Container, Fabric};
use super::voice::Voice;

const PINGS_PER_ADDRESS: u64 = 3;
/// They sleep between pings.
const WORKERS: usize = 32;

/// Row by row, who pinged whom; nothing on the diagonal.
pub type Matrix = Vec<Vec<Option<PingReport>>>;

pub struct Figures {
    /// TCP between containers on two hosts, and between the bare hosts.
    pub fabric_gbits: f64,
    pub underlay_gbits: f64,
    /// A thousand pings a second between containers on two hosts.
    pub latency: PingReport,
    /// Resident memory of the largest daemon.
    pub daemon_mib: f64,
    pub whole_after: Duration,
}

/// Every container pings every other, in every family.
pub fn every_pair(fabric: &Fabric, voice: &Voice) -> anyhow::Result<Matrix> {
    let containers: Vec<&Container> = fabric.containers().map(|(_, container)| container).collect();
    let size = containers.len();
    let pairs: Vec<(usize, usize)> =
        (0..size).flat_map(|i| (0..size).map(move |j| (i, j))).filter(|(i, j)| i != j).collect();
    voice.step("every container pings every other", |spinner| {
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let worker = || -> Result<(), netns_harness::Error> {
            while let Some(&(i, j)) = pairs.get(next.fetch_add(1, Relaxed)) {
                let report = ping_all(containers[i], containers[j])?;
                let Ok(mut done) = done.lock() else { break };
                done.push((i, j, report));
                spinner.set_message(format!("{} of {} pairs pinged", done.len(), pairs.len()));
            }
            Ok(())
        };
        let workers = thread::scope(|scope| {
            let handles: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
            handles.into_iter().map(|handle| handle.join()).collect::<Vec<_>>()
        });
        for worker in workers {
            worker.map_err(|_| anyhow::anyhow!("a pinging thread panicked"))??;
        }
        let mut matrix = vec![vec![None; size]; size];
        for (i, j, report) in done.into_inner().unwrap_or_default() {
            matrix[i][j] = Some(report);
        }
        let (sent, lost) = totals(&matrix);
        if lost > 0 {
            bail!("{lost} of {sent} pings between containers were lost");
        }
        Ok((matrix, format!("{} pairs of containers, {sent} pings, none lost", pairs.len())))
    })
}

pub fn figures(fabric: &Fabric, voice: &Voice) -> anyhow::Result<Figures> {
    let [near, far, ..] = &fabric.nodes[..] else { bail!("two hosts are needed") };
    let (from, to) = (first(&near.containers)?, first(&far.containers)?);
    let second = Duration::from_secs(1);
    let (fabric_gbits, underlay_gbits) = voice.step("throughput between hosts", |_| {
        let fabric_gbits = iperf3(&from.netns, &to.netns, to.ips[0], second)?;
        let underlay_gbits = iperf3(&near.host, &far.host, far.host.ip4(), second)?;
        let line =
            format!("{fabric_gbits:.1} Gbit/s between containers, {underlay_gbits:.1} between bare hosts");
        Ok(((fabric_gbits, underlay_gbits), line))
    })?;
    let latency = voice.step("latency between hosts", |_| {
        let flood = from.netns.flood(to.ips[0], 1000)?;
        thread::sleep(second);
        let report = flood.stop()?;
        let line = format!("{} on average, container to container", micros(report.rtt_avg));
        Ok((report, line))
    })?;
    let resident = fabric.nodes.iter().map(|node| resident_mib(node.daemon.pid()));
    let daemon_mib = resident.collect::<anyhow::Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
    Ok(Figures { fabric_gbits, underlay_gbits, latency, daemon_mib, whole_after: fabric.whole_after })
}

/// Packets sent and lost.
pub fn totals(matrix: &Matrix) -> (u64, u64) {
    let reports = matrix.iter().flatten().flatten();
    reports.fold((0, 0), |(sent, lost), report| (sent + report.sent, lost + report.lost()))
}

/// `87 µs`, `1.3 ms`.
pub fn micros(time: Duration) -> String {
    match time.as_micros() {
        us if us < 1000 => format!("{us} µs"),
        us => format!("{:.1} ms", us as f64 / 1000.0),
    }
}

/// All addresses of one container as one report, with the slowest one's round trip.
fn ping_all(from: &Container, to: &Container) -> Result<PingReport, netns_harness::Error> {
    let mut sum = PingReport::default();
    for &ip in &to.ips {
        let report = from.netns.ping(ip, PINGS_PER_ADDRESS)?;
        sum.sent += report.sent;
        sum.received += report.received;
        sum.rtt_min = sum.rtt_min.max(report.rtt_min);
    }
    Ok(sum)
}

fn first(containers: &[Container]) -> anyhow::Result<&Container> {
    containers.first().filter(|container| !container.ips.is_empty()).context("a host has no container")
}

/// VmRSS of proc(5), in MiB.
fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| path.clone())?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context(path)?;
    Ok(kib / 1024.0)
}
