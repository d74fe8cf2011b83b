//! What the kernel tells of its own accord.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use netlink_packet_core::NetlinkHeader;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;
use tokio::io::unix::AsyncFd;

use super::entry::event;
use super::filter::Filter;
use super::netlink::{Cause, NetlinkError, in_netns, messages, raise_buffers};
use super::{Events, KernelEvent, News, Rtnl};

/// What decides which uplink to take.
const UPLINK: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];
const ROUTES: &[MulticastGroup] = &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
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
/// Notifications passed over in one call, so that a flood does not keep the caller
/// from work.
const MAX_PASSED_OVER: usize = 100_000;

/// A socket in the multicast groups of links, addresses, neighbours, FDB
/// entries, routes, nexthops and the settings of links.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    /// What was read and is still to be told.
    told: VecDeque<KernelEvent>,
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
        Monitor::filtered(UPLINK, Filter::DefaultRoutes)
    }

    /// For routes that drop packets, in the namespace of the calling thread.
    pub fn of_blackholes() -> Result<Monitor, NetlinkError> {
        Monitor::filtered(ROUTES, Filter::Blackholes)
    }

    fn filtered(groups: &[MulticastGroup], filter: Filter) -> Result<Monitor, NetlinkError> {
        Monitor::register(open_socket(groups).and_then(|socket| {
            filter.attach(&socket)?;
            Ok(socket)
        }))
    }

    /// Be told no more of what `kernel` does: whoever does it knows.
    pub fn without_echo_of(self, kernel: &Rtnl) -> Result<Monitor, NetlinkError> {
        let attached = kernel.port().and_then(|port| Filter::Others(port).attach(self.socket.get_ref()));
        attached.map_err(of_socket)?;
        Ok(self)
    }

    fn register(socket: io::Result<Socket>) -> Result<Monitor, NetlinkError> {
        let registered = socket.and_then(|socket| {
            // SAFETY: the socket owns its descriptor, gives out the same one at
            // every call, and closes it only when dropped.
            unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
        });
        let socket = registered.map_err(of_socket)?;
        Ok(Monitor { socket, buffer: vec![0; RECV_BYTES], told: VecDeque::new() })
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
        while self.told.is_empty() {
            let guard = self.socket.readable().await;
            let mut guard = guard.map_err(of_socket)?;
            // `next` reads behind the runtime's back, so ask the socket itself.
            let peeked = guard.get_inner().recv(&mut [0_u8; 1].as_mut_slice(), libc::MSG_PEEK);
            match peeked {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Ok(_) => return Ok(()),
                // The kernel says so once, to whoever reads first.
                Err(e) => self.told.push_back(overrun(e)),
            }
        }
        Ok(())
    }

    fn next(&mut self, news: News) -> Option<KernelEvent> {
        for _ in 0..MAX_PASSED_OVER {
            if let Some(event) = self.told.pop_front() {
                return Some(event);
            }
            match self.receive() {
                Ok(length) if length > self.buffer.len() => {
                    let why = format!("a notification of {length} bytes was cut off");
                    return Some(KernelEvent::Resync(why));
                }
                Ok(length) => {
                    let asked_for = messages(&self.buffer[..length])
                        .filter(|(header, _)| news == News::All || is_of_links(header));
                    self.told.extend(asked_for.filter_map(|(header, payload)| event(&header, payload)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Some(overrun(e)),
            }
        }
        None
    }
}

fn is_of_links(header: &NetlinkHeader) -> bool {
    matches!(header.message_type, libc::RTM_NEWLINK | libc::RTM_DELLINK)
}

/// ENOBUFS: they came faster than they were read.
fn overrun(error: io::Error) -> KernelEvent {
    KernelEvent::Resync(format!("notifications were lost: {}", Cause::from(error)))
}

fn of_socket(error: io::Error) -> NetlinkError {
    Cause::from(error).of("netlink multicast socket")
}
