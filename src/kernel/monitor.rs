//! What the kernel tells of its own accord.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;
use tokio::io::unix::AsyncFd;

use super::entry::event;
use super::netlink::{Cause, NetlinkError, in_netns, messages, raise_buffers};
use super::{Events, KernelEvent};

/// What decides which uplink to take.
const UPLINK: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];
const ALL: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nexthop,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
];
const RECV_BYTES: usize = 64 << 10;
/// Datagrams taken at once, so that a flood does not keep the caller from work.
const DRAIN: usize = 8192;

/// A socket in the multicast groups of links, addresses, neighbours, FDB
/// entries, routes, nexthops and the settings of links.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    /// Why notifications were lost, where `drain` has not told of it.
    lost: Option<String>,
}

impl Monitor {
    /// In the namespace of the calling thread, or in `netns`. Needs a tokio
    /// runtime.
    pub fn open(netns: Option<BorrowedFd<'_>>) -> Result<Monitor, NetlinkError> {
        Monitor::register(match netns {
            Some(netns) => in_netns(netns, || open_socket(ALL)).flatten(),
            None => open_socket(ALL),
        })
    }

    /// For links, their addresses and default routes alone, in the namespace of
    /// the calling thread.
    pub fn of_uplinks() -> Result<Monitor, NetlinkError> {
        Monitor::register(open_socket(UPLINK).and_then(|socket| {
            pass_default_routes_alone(&socket)?;
            Ok(socket)
        }))
    }

    fn register(socket: io::Result<Socket>) -> Result<Monitor, NetlinkError> {
        let registered = socket.and_then(|socket| {
            // SAFETY: the socket owns its descriptor, gives out the same one at
            // every call, and closes it only when dropped.
            unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
        });
        let socket = registered.map_err(|e| Cause::from(e).of("netlink multicast socket"))?;
        Ok(Monitor { socket, buffer: vec![0; RECV_BYTES], lost: None })
    }

    fn receive(&mut self) -> io::Result<usize> {
        let (length, _) =
            self.socket.get_ref().recv_from(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC)?;
        Ok(length)
    }
}

fn open_socket(groups: &[MulticastGroup]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    raise_buffers(&socket);
    socket.bind_auto()?;
    for &group in groups {
        match socket.add_membership(group as u32) {
            // A kernel without nexthop objects has no such group.
            Err(_) if group == MulticastGroup::Nexthop => {}
            joined => joined?,
        }
    }
    Ok(socket)
}

/// Ten thousand routes of ours come and go: the kernel itself drops the word on
/// each that is not a default route (`SO_ATTACH_FILTER`, linux/filter.h).
fn pass_default_routes_alone(socket: &Socket) -> io::Result<()> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// `nlmsg_type`, and `rtm_dst_len` behind the header.
    const TYPE_AT: u32 = 4;
    const PREFIX_LENGTH_AT: u32 = 16 + 1;
    // The filter loads in network order what netlink has in the host's.
    let kind = |kind: u16| u32::from(kind.to_be());
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD_HALF, TYPE_AT, 0, 0),
        step(IF_EQUAL, kind(libc::RTM_NEWROUTE), 1, 0),
        step(IF_EQUAL, kind(libc::RTM_DELROUTE), 0, 2),
        step(LOAD_BYTE, PREFIX_LENGTH_AT, 0, 0),
        step(IF_EQUAL, 0, 0, 1),
        step(RETURN, u32::MAX, 0, 0),
        step(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and what it points to live until the call returns, which
    // copies both.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Events for Monitor {
    async fn ready(&mut self) -> Result<(), NetlinkError> {
        loop {
            let guard = self.socket.readable().await;
            let mut guard = guard.map_err(|e| Cause::from(e).of("netlink multicast socket"))?;
            // `drain` reads behind the runtime's back, so ask the socket itself.
            let peeked = guard.get_inner().recv(&mut [0_u8; 1].as_mut_slice(), libc::MSG_PEEK);
            match peeked {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Ok(_) => return Ok(()),
                // The kernel says so once, to whoever reads first.
                Err(e) => {
                    self.lost = Some(overrun(e));
                    return Ok(());
                }
            }
        }
    }

    fn drain(&mut self) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        let mut lost = self.lost.take();
        for _ in 0..DRAIN {
            match self.receive() {
                Ok(length) if length > self.buffer.len() => {
                    lost = Some(format!("a notification of {length} bytes was cut off"));
                }
                // Older than the look that will follow.
                Ok(_) if lost.is_some() => {}
                Ok(length) => {
                    events.extend(messages(&self.buffer[..length]).filter_map(|(h, p)| event(&h, p)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return or_resync(events, lost),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => lost = Some(overrun(e)),
            }
        }
        // What is left in the socket may be older than that look, too.
        self.lost.clone_from(&lost);
        or_resync(events, lost)
    }
}

/// ENOBUFS: they came faster than they were read.
fn overrun(error: io::Error) -> String {
    format!("notifications were lost: {}", Cause::from(error))
}

fn or_resync(events: Vec<KernelEvent>, lost: Option<String>) -> Vec<KernelEvent> {
    match lost {
        Some(why) => vec![KernelEvent::Resync(why)],
        None => events,
    }
}
