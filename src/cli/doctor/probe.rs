//! Echo requests (RFC 792, RFC 4443) to many addresses at once, of a chosen size
//! and never fragmented.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::model::Family;

/// So many wait for their answer at once.
const AT_ONCE: usize = 256;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 2;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
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
        let of_family: Vec<usize> =
            (0..probes.len()).filter(|i| Family::of(probes[*i].target) == family).collect();
        if of_family.is_empty() {
            continue;
        }
        let socket = open(family)?;
        for lot in of_family.chunks(AT_ONCE) {
            for _ in 0..TRIES {
                let open: Vec<usize> = lot.iter().copied().filter(|i| !answered[*i]).collect();
                exchange(&socket, family, probes, &open, &mut answered)?;
            }
        }
    }
    Ok(answered)
}

fn exchange(
    socket: &UdpSocket,
    family: Family,
    probes: &[Probe],
    lot: &[usize],
    answered: &mut [bool],
) -> io::Result<()> {
    let id = std::process::id() as u16;
    let mut waiting = 0;
    for (sequence, i) in lot.iter().enumerate() {
        let probe = probes[*i];
        // What cannot be sent, is not answered: no route, or larger than the link.
        let packet = request(family, id, sequence as u16, probe.size as usize);
        waiting += usize::from(socket.send_to(&packet, SocketAddr::new(probe.target, 0)).is_ok());
    }
    let (deadline, mut buffer) = (Instant::now() + PATIENCE, vec![0; 65536]);
    while waiting > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let answer = reply(family, id, &buffer[..length]).and_then(|sequence| lot.get(usize::from(sequence)));
        if let Some(i) = answer.filter(|i| probes[**i].target == from.ip() && !answered[**i]) {
            answered[*i] = true;
            waiting -= 1;
        }
    }
    Ok(())
}

fn open(family: Family) -> io::Result<UdpSocket> {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::INET, ipproto::ICMP),
        Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = UdpSocket::from(socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?);
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

fn request(family: Family, id: u16, sequence: u16, size: usize) -> Vec<u8> {
    let (kind, header) = match family {
        Family::V4 => (8, IPV4_HEADER),
        Family::V6 => (128, IPV6_HEADER),
    };
    let mut packet = vec![0; size.saturating_sub(header).max(HEADER)];
    packet[0] = kind;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    // The kernel fills in that of ICMPv6, which covers addresses.
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The sequence number of an answer to us. IPv4 gives its header, too.
fn reply(family: Family, id: u16, packet: &[u8]) -> Option<u16> {
    let (kind, start) = match family {
        Family::V4 => (0, usize::from(packet.first()? & 0x0f) * 4),
        Family::V6 => (129, 0),
    };
    let message = packet.get(start..)?.get(..HEADER)?;
    let is_ours = message[0] == kind && message[4..6] == id.to_be_bytes();
    is_ours.then(|| u16::from_be_bytes([message[6], message[7]]))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
