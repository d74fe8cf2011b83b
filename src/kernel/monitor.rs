//! What the kernel tells of its own accord.

use std::io;
use std::os::fd::BorrowedFd;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;
use tokio::io::unix::AsyncFd;

use super::entry::event;
use super::netlink::{Cause, NetlinkError, in_netns, messages, raise_buffers};
use super::{Events, KernelEvent};

const ADDRESSES: &[MulticastGroup] =
    &[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
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

    /// For links and their addresses alone, in the namespace of the calling
    /// thread.
    pub fn of_addresses() -> Result<Monitor, NetlinkError> {
        Monitor::register(open_socket(ADDRESSES))
    }

    fn register(socket: io::Result<Socket>) -> Result<Monitor, NetlinkError> {
        let registered = socket.and_then(|socket| {
            // SAFETY: the socket owns its descriptor, gives out the same one at
            // every call, and closes it only when dropped.
            unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
        });
        let socket = registered.map_err(|e| Cause::from(e).of("netlink multicast socket"))?;
        Ok(Monitor { socket, buffer: vec![0; RECV_BYTES] })
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

impl Events for Monitor {
    async fn ready(&mut self) -> Result<(), NetlinkError> {
        loop {
            let guard = self.socket.readable().await;
            let mut guard = guard.map_err(|e| Cause::from(e).of("netlink multicast socket"))?;
            // `drain` reads behind the runtime's back, so ask the socket itself.
            let peeked = guard.get_inner().recv(&mut [0_u8; 1].as_mut_slice(), libc::MSG_PEEK);
            match peeked {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                _ => return Ok(()),
            }
        }
    }

    fn drain(&mut self) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        for _ in 0..DRAIN {
            match self.receive() {
                Ok(length) if length > self.buffer.len() => {
                    events.push(KernelEvent::Resync(format!("a notification of {length} bytes was cut off")));
                }
                Ok(length) => {
                    events.extend(messages(&self.buffer[..length]).filter_map(|(h, p)| event(&h, p)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: they came faster than they were read.
                Err(e) => {
                    events.push(KernelEvent::Resync(format!("notifications were lost: {}", Cause::from(e))));
                    break;
                }
            }
        }
        events
    }
}
