//! Loss, round trips and throughput, as seen from inside a namespace.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::{Error, Netns};

/// How long an answer may take before its packet counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// ICMP type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
const PAYLOAD: usize = 56;

/// What became of a row of echo requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PingReport {
    pub sent: u64,
    pub received: u64,
    /// From the loss of one packet to the sending of the next that was answered:
    /// the longest outage, to the grain of the sending interval.
    pub longest_gap: Duration,
    /// Round trips; zero if nothing was received.
    pub rtt_min: Duration,
    pub rtt_avg: Duration,
    pub rtt_max: Duration,
}

impl PingReport {
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A ping in the background; dropped, it ends.
#[derive(Debug)]
pub struct Flood {
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<Vec<Answer>>>,
    shared: Arc<Shared>,
    interval: Duration,
}

impl Netns {
    /// Sends `count` echo requests 10 ms apart and waits up to a second for the
    /// last answers. Loss is a result, not an error.
    pub fn ping(&self, target: IpAddr, count: u64) -> Result<PingReport, Error> {
        Flood::start(self, target, Duration::from_millis(10), count, PATIENCE)?.finish()
    }

    /// Whether one echo request is answered within 20 ms.
    pub fn reaches(&self, target: IpAddr) -> bool {
        let one = Flood::start(self, target, Duration::ZERO, 1, Duration::from_millis(20));
        one.and_then(Flood::finish).is_ok_and(|report| report.received == 1)
    }

    /// Pings in the background, `per_second` times a second, until stopped.
    pub fn flood(&self, target: IpAddr, per_second: u32) -> Result<Flood, Error> {
        Flood::start(self, target, Duration::from_secs(1) / per_second.max(1), u64::MAX, PATIENCE)
    }
}

impl Flood {
    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Relaxed)
    }

    /// Answers so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Relaxed)
    }

    /// Sends no more, waits up to a second for answers under way, and counts.
    pub fn stop(self) -> Result<PingReport, Error> {
        self.shared.stop.store(true, Relaxed);
        self.finish()
    }

    fn start(
        netns: &Netns,
        target: IpAddr,
        interval: Duration,
        count: u64,
        patience: Duration,
    ) -> Result<Flood, Error> {
        let what = || format!("ping {target} from {}", netns.name());
        let socket = Arc::new(netns.enter(|| icmp_socket(target))?.map_err(Error::io(what()))?);
        let shared = Arc::new(Shared::default());
        let start = Instant::now();
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let receiver = spawn("ping-receiver")
            .spawn({
                let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
                move || receive(&socket, &shared, start, patience)
            })
            .map_err(Error::io(what()))?;
        let mut flood =
            Flood { sender: None, receiver: Some(receiver), shared: Arc::clone(&shared), interval };
        let request = if target.is_ipv4() { 8 } else { 128 };
        let sender =
            spawn("ping-sender").spawn(move || send(&socket, &shared, request, start, interval, count));
        flood.sender = Some(sender.map_err(Error::io(what()))?);
        Ok(flood)
    }

    fn finish(mut self) -> Result<PingReport, Error> {
        let ended = || Error::io("ping")(io::Error::other("its thread panicked"));
        if let Some(sender) = self.sender.take() {
            sender.join().map_err(|_| ended())?;
        }
        let answers = match self.receiver.take() {
            Some(receiver) => receiver.join().map_err(|_| ended())?,
            None => Vec::new(),
        };
        Ok(report(self.sent(), answers, self.interval))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.abandoned.store(true, Relaxed);
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    /// Nothing more will be sent.
    finished: AtomicBool,
    /// Nobody waits for late answers any more.
    abandoned: AtomicBool,
    received: AtomicU64,
}

/// Number of the packet and its round trip.
type Answer = (u64, Duration);

/// The kernel's ping socket: it fills in identifier and checksum and passes on
/// only the answers to this socket.
fn icmp_socket(target: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket =
        UdpSocket::from(socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))?);
    socket.connect(SocketAddr::new(target, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Keeps to the schedule: what a busy machine delays is caught up with.
fn send(socket: &UdpSocket, shared: &Shared, request: u8, start: Instant, interval: Duration, count: u64) {
    let mut packet = [0u8; HEADER + PAYLOAD];
    packet[0] = request;
    let mut due = start;
    for number in 0..count {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if shared.stop.load(Relaxed) {
            break;
        }
        let sequence = (number & 0xffff) as u16;
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        packet[8..16].copy_from_slice(&number.to_be_bytes());
        packet[16..24].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_be_bytes());
        shared.sent.store(number + 1, Relaxed);
        // A packet the system will not send (no route, a pending ICMP error) is
        // a packet lost.
        let _ = socket.send(&packet);
        due += interval;
    }
    shared.finished.store(true, Relaxed);
}

fn receive(socket: &UdpSocket, shared: &Shared, start: Instant, patience: Duration) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut deadline: Option<Instant> = None;
    let mut packet = [0u8; 256];
    loop {
        // A timeout or an ICMP error reported on the socket: either way, go on.
        if let Ok(length) = socket.recv(&mut packet)
            && length >= 24
        {
            let at = start.elapsed();
            let sent_at = Duration::from_nanos(u64_at(&packet, 16));
            answers.push((u64_at(&packet, 8), at.saturating_sub(sent_at)));
            shared.received.store(answers.len() as u64, Relaxed);
        }
        if shared.finished.load(Relaxed) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
            let all = answers.len() as u64 >= shared.sent.load(Relaxed);
            if all || shared.abandoned.load(Relaxed) || Instant::now() >= deadline {
                return answers;
            }
        }
    }
}

fn u64_at(packet: &[u8], at: usize) -> u64 {
    packet[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn report(sent: u64, mut answers: Vec<Answer>, interval: Duration) -> PingReport {
    answers.sort_unstable();
    answers.dedup_by_key(|(number, _)| *number);
    let received = answers.len() as u64;
    let edges = std::iter::once(None)
        .chain(answers.iter().map(|&(number, _)| Some(number)))
        .chain(std::iter::once(Some(sent)));
    let mut gap = 0;
    let mut next = 0;
    for number in edges.flatten() {
        gap = gap.max(number - next);
        next = number + 1;
    }
    let rtts = || answers.iter().map(|&(_, rtt)| rtt);
    let total: Duration = rtts().sum();
    PingReport {
        sent,
        received,
        longest_gap: interval * u32::try_from(gap).unwrap_or(u32::MAX),
        rtt_min: rtts().min().unwrap_or_default(),
        rtt_avg: total / u32::try_from(received.max(1)).unwrap_or(u32::MAX),
        rtt_max: rtts().max().unwrap_or_default(),
    }
}

/// TCP throughput in Gbit/s from `client` to `server` at `address`, by iperf3.
pub fn iperf3(client: &Netns, server: &Netns, address: IpAddr, duration: Duration) -> Result<f64, Error> {
    const PORT: u16 = 5201;
    let bind = address.to_string();
    let log = format!("iperf3-{}", server.name());
    let mut listener =
        server.spawn(&log, server.command("iperf3").args(["--server", "--one-off", "--bind", &bind]))?;
    wait_until(Duration::from_secs(5), "iperf3 server", || {
        listens(listener.pid(), PORT) || !matches!(listener.exited(), Ok(None))
    })?;
    let seconds = duration.as_secs().max(1).to_string();
    let text = client.run("iperf3", ["--client", &bind, "--json", "--time", &seconds])?;
    let result: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Error::io("iperf3 --json")(error.into()))?;
    match result["end"]["sum_received"]["bits_per_second"].as_f64() {
        Some(bits) => Ok(bits / 1e9),
        None => Err(Error::Tool { command: "iperf3".to_owned(), output: result["error"].to_string() }),
    }
}

/// Whether anything in the network namespace of `pid` listens on a TCP port
/// (proc(5), `/proc/PID/net/tcp`: local address, remote address, state 0A).
fn listens(pid: u32, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&suffix)) && words.nth(1) == Some("0A")
        })
    })
}

/// Looks every 2 ms until `reached` says so; returns how long that took. `what`
/// names what is waited for in the error.
pub fn wait_until(limit: Duration, what: &str, mut reached: impl FnMut() -> bool) -> Result<Duration, Error> {
    let start = Instant::now();
    loop {
        if reached() {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            return Err(Error::Timeout { what: what.to_owned(), limit });
        }
        thread::sleep(Duration::from_millis(2));
    }
}
