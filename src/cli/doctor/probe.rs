//! Echo requests (RFC 792, RFC 4443) to many addresses, of a chosen size and never
//! fragmented: thousands a second, so that ten thousand peers take seconds.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::model::Family;

/// Probes a second, which no network minds …
const PACE: f64 = 5000.0;
/// … or more, so that all are sent within this.
const LONGEST: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at what is to be sent.
const TICK: Duration = Duration::from_millis(2);
const TRIES: usize = 2;
/// Bytes, as the kernel counts them, for the answers that come while this process
/// does not run.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Which probe it is stands after the header.
const NUMBER: usize = 4;
const IPV6_HEADER: usize = 40;
const IPV4_HEADER: usize = 20;

/// One echo request in a packet of `size` bytes, IP header included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub target: IpAddr,
    pub size: u32,
}

/// The smallest that says anything.
pub(super) const SMALL: u32 = 64;

/// Whether each was answered. In the namespace of the calling thread.
pub(super) fn answered(probes: &[Probe]) -> io::Result<Vec<bool>> {
    let mut answered = vec![false; probes.len()];
    for family in Family::BOTH {
        let mut open: Vec<usize> =
            (0..probes.len()).filter(|i| Family::of(probes[*i].target) == family).collect();
        if open.is_empty() {
            continue;
        }
        let socket = open_socket(family)?;
        for _ in 0..TRIES {
            exchange(&socket, family, probes, &open, &mut answered)?;
            open.retain(|i| !answered[*i]);
        }
    }
    Ok(answered)
}

/// Sends those of `lot` at an even pace, and takes in the answers meanwhile.
fn exchange(
    socket: &UdpSocket,
    family: Family,
    probes: &[Probe],
    lot: &[usize],
    answered: &mut [bool],
) -> io::Result<()> {
    let id = std::process::id() as u16;
    let pace = PACE.max(lot.len() as f64 / LONGEST.as_secs_f64());
    let (begun, mut last, mut buffer) = (Instant::now(), Instant::now(), vec![0; 65536]);
    let (mut queue, mut sent, mut waiting) = (lot.iter(), 0.0, 0_usize);
    loop {
        while sent <= begun.elapsed().as_secs_f64() * pace
            && let Some(i) = queue.next()
        {
            let Probe { target, size } = probes[*i];
            // What cannot be sent, is not answered: no route, or larger than the link.
            let packet = request(family, id, *i as u32, size as usize);
            waiting += usize::from(socket.send_to(&packet, SocketAddr::new(target, 0)).is_ok());
            (sent, last) = (sent + 1.0, Instant::now());
        }
        let left = match queue.len() {
            0 if waiting == 0 => return Ok(()),
            0 => PATIENCE.saturating_sub(last.elapsed()),
            _ => TICK,
        };
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left.clamp(Duration::from_millis(1), TICK)))?;
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let reply = reply(family, id, &buffer[..length]);
            let fits = |(i, size): &(usize, usize)| {
                let asked = |probe: &Probe| probe.target == from.ip() && *size >= probe.size as usize;
                probes.get(*i).is_some_and(asked) && !answered[*i]
            };
            if let Some((i, _)) = reply.filter(fits) {
                answered[i] = true;
                waiting = waiting.saturating_sub(1);
            }
            if queue.len() > 0 && sent <= begun.elapsed().as_secs_f64() * pace {
                break;
            }
        }
    }
}

fn open_socket(family: Family) -> io::Result<UdpSocket> {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::INET, ipproto::ICMP),
        Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = UdpSocket::from(socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?);
    // A smaller one will do, where root is not quite root.
    let _ = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    let (level, option, probe) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    // SAFETY: the descriptor is open, and the pointer is to an int of that size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const probe).cast(),
            size_of_val(&probe) as u32,
        )
    };
    if set == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

fn request(family: Family, id: u16, number: u32, size: usize) -> Vec<u8> {
    let (kind, header) = match family {
        Family::V4 => (8, IPV4_HEADER),
        Family::V6 => (128, IPV6_HEADER),
    };
    let mut packet = vec![0; size.saturating_sub(header).max(HEADER + NUMBER)];
    packet[0] = kind;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[HEADER..HEADER + NUMBER].copy_from_slice(&number.to_be_bytes());
    // The kernel fills in that of ICMPv6, which covers addresses.
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number of the probe that this answers, and the packet's size. A raw socket
/// gives IPv4's header, too, and not IPv6's.
fn reply(family: Family, id: u16, packet: &[u8]) -> Option<(usize, usize)> {
    let (kind, start, size) = match family {
        Family::V4 => (0, usize::from(packet.first()? & 0x0f) * 4, packet.len()),
        Family::V6 => (129, 0, packet.len() + IPV6_HEADER),
    };
    let (message, number) = packet.get(start..)?.get(..HEADER + NUMBER)?.split_at(HEADER);
    let is_ours = message[0] == kind && message[4..6] == id.to_be_bytes();
    let number = number.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    is_ours.then_some((number, size))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
