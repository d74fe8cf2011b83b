//! A transaction layer over one netlink socket, of routing or of netfilter:
//! bounded batches with a result for each request, dumps that are repeated when
//! the kernel says they were interrupted, errors that name what they are about.
//!
//! It is synchronous on purpose. The kernel executes a request inside
//! `sendmsg(2)`: when that returns, the work is done and the ACK lies in the
//! receive buffer, so there is nothing to await, and the CNI plugin, which has no
//! runtime, shares the code. Routing's messages are netlink-packet-route's;
//! the daemon composes them with rtnetlink's builders, but sends them here,
//! because rtnetlink's connection neither sees `NLM_F_DUMP_INTR` nor an error
//! inside `NLMSG_DONE`, and waits for ever for an ACK that was dropped.

mod error;
mod reply;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rustix::net::sockopt;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use error::{Cause, NetlinkError, errno_name};
#[cfg(feature = "daemon")]
pub(crate) use reply::messages;
use reply::{Acks, Dump, Outcome};

/// Requests sent together. Should the kernel refuse each, what it says must fit the
/// receive buffer, whatever its size.
///
/// The 40,000 of 10,000 peers took 672 ms of CPU one by one, 193 in tens, 122 in
/// fifties, 113 in two hundreds (`benches/kernel.rs`): more gains nothing.
const CHUNK_REQUESTS: usize = 200;
/// Bytes sent together: well below the default send buffer.
const CHUNK_BYTES: usize = 64 << 10;
/// Large enough that the kernel fills its 32 KiB dump buffers.
const RECV_BYTES: usize = 64 << 10;
const SOCKET_BUFFER: usize = 4 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// A table that changes without pause is read this often before giving up.
const DUMP_TRIES: u32 = 10;

/// An encoded request: one change, one question or one dump.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// With the `NLM_F_*` flags given, `NLM_F_REQUEST` added.
    pub fn new(message: impl NetlinkSerializable, flags: u16) -> Request {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        Request(bytes)
    }

    /// Make something; `EEXIST` where it is there.
    pub fn create(message: impl NetlinkSerializable) -> Request {
        Request::new(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Make something or overwrite what is there.
    pub fn replace(message: impl NetlinkSerializable) -> Request {
        Request::new(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Add one more beside what is there (FDB destinations).
    pub fn append(message: impl NetlinkSerializable) -> Request {
        Request::new(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Change or remove something; the message's type says which.
    pub fn change(message: impl NetlinkSerializable) -> Request {
        Request::new(message, NLM_F_ACK)
    }

    /// Ask for one thing.
    pub fn get(message: impl NetlinkSerializable) -> Request {
        Request::new(message, NLM_F_ACK)
    }

    /// Ask for all things that match the message's header and attributes.
    pub fn dump(message: impl NetlinkSerializable) -> Request {
        Request::new(message, NLM_F_DUMP)
    }

    fn set_sequence(&mut self, sequence: u32) {
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }

    /// Be answered only where it is refused.
    fn be_silent(&mut self) {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) & !NLM_F_ACK;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// A socket to the routing or the netfilter subsystem of one network namespace.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    sequence: u32,
    time_limit: Duration,
    undecodable: u64,
    /// Never filled with zeros, which would make the kernel hand out all its pages:
    /// most sockets of the plugin hear a few hundred bytes.
    buffer: Vec<u8>,
}

impl Connection {
    /// Talk to the namespace of the calling thread. The socket stays in that
    /// namespace, wherever the thread goes.
    pub fn open() -> Result<Connection, NetlinkError> {
        Connection::of(NETLINK_ROUTE)
    }

    /// As `open`, to nf_tables and conntrack.
    pub fn open_netfilter() -> Result<Connection, NetlinkError> {
        Connection::of(NETLINK_NETFILTER)
    }

    fn of(protocol: isize) -> Result<Connection, NetlinkError> {
        open_socket(protocol)
            .map(|socket| Connection {
                socket,
                sequence: 0,
                time_limit: TIME_LIMIT,
                undecodable: 0,
                buffer: Vec::with_capacity(RECV_BYTES),
            })
            .map_err(|e| Cause::from(e).of("netlink socket"))
    }

    /// Talk to another namespace, open as `/var/run/netns/<name>` or
    /// `/proc/<pid>/ns/net`.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Connection, NetlinkError> {
        in_netns(netns, Connection::open).map_err(|e| Cause::from(e).of("network namespace"))?
    }

    /// How long to wait for an answer before it counts as lost; 10 s at first.
    pub fn set_time_limit(&mut self, limit: Duration) -> Result<(), NetlinkError> {
        self.time_limit = limit;
        set_recv_timeout(&self.socket, limit).map_err(|e| Cause::from(e).of("netlink socket"))
    }

    /// The number that the kernel knows the socket by.
    pub fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Messages of dumps that could not be decoded, since the socket was
    /// opened. They are left out of the dumps.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }

    /// One change, done when this returns. `Cause::of` names the object:
    /// `conn.request(r).map_err(|cause| cause.of(format!("route {dst}")))`.
    pub fn request(&mut self, request: Request) -> Result<(), Cause> {
        self.batch(vec![request]).pop().unwrap_or(Ok(()))
    }

    /// Many changes, in order, one result for each. A refused one does not keep
    /// the rest from being done.
    pub fn batch(&mut self, mut requests: Vec<Request>) -> Vec<Result<(), Cause>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests.as_mut_slice();
        while !rest.is_empty() {
            let (chunk, tail) = rest.split_at_mut(chunk_len(rest));
            results.extend(self.chunk(chunk));
            rest = tail;
        }
        results
    }

    /// Changes of which the kernel makes all or none, as it does between the
    /// messages that begin and end a batch of nfnetlink. The first answer
    /// decides, an error with the index of the request at fault; so ask for the
    /// ACK of the last change alone, which stands for all.
    pub fn transaction(&mut self, requests: &mut [Request]) -> Result<(), (usize, Cause)> {
        let first = self.sequence.wrapping_add(1);
        let bytes = self.numbered(requests);
        self.send(&bytes).map_err(|cause| (0, cause))?;
        let mut acks = Acks::new(first, requests.len());
        loop {
            let datagram = self.receive(|| "the answer to a batch".to_owned()).map_err(|cause| (0, cause))?;
            acks.take(datagram, |_, _| {});
            if let Some((index, result)) = acks.first_result() {
                return result.map_err(|cause| (index, cause));
            }
        }
    }

    /// Ask for one thing: the kernel's answer.
    pub fn get<M: NetlinkDeserializable>(&mut self, mut request: Request) -> Result<M, Cause> {
        let sequence = self.next_sequence();
        request.set_sequence(sequence);
        self.send(&request.0)?;
        let mut acks = Acks::new(sequence, 1);
        let mut answer = None;
        while acks.outstanding() > 0 {
            let datagram = self.receive(|| "an answer".to_owned())?;
            acks.take(datagram, |header, payload| answer = M::deserialize(header, payload).ok());
        }
        acks.into_results().pop().unwrap_or(Ok(()))?;
        answer.ok_or(Cause::NoAnswer)
    }

    /// Ask for many things. A dump during which the table changed is repeated,
    /// so that what is returned was true at one moment.
    pub fn dump<M: NetlinkDeserializable>(&mut self, request: Request) -> Result<Vec<M>, Cause> {
        self.dump_each(request, Some)
    }

    /// As `dump`, but of each message only what `keep` makes of it is held: a
    /// decoded message takes many times the room of what matters in it.
    pub fn dump_each<M: NetlinkDeserializable, T>(
        &mut self,
        mut request: Request,
        mut keep: impl FnMut(M) -> Option<T>,
    ) -> Result<Vec<T>, Cause> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.next_sequence();
            request.set_sequence(sequence);
            self.send(&request.0)?;
            let (mut dump, mut kept) = (Dump::new(sequence), Vec::new());
            let outcome = loop {
                let datagram = self.receive(|| "the end of a dump".to_owned())?;
                let outcome = dump.take(datagram);
                kept.extend(dump.messages.drain(..).filter_map(&mut keep));
                if let Some(outcome) = outcome {
                    break outcome;
                }
            };
            self.undecodable += dump.undecodable;
            match outcome {
                Outcome::Complete => return Ok(kept),
                Outcome::Interrupted => {}
                Outcome::Refused(cause) => return Err(cause),
            }
        }
        Err(Cause::Interrupted { tries: DUMP_TRIES })
    }

    fn chunk(&mut self, requests: &mut [Request]) -> Vec<Result<(), Cause>> {
        // The last one's ACK says that all were taken; each of the others would cost
        // the kernel a message and us a call. Where the kernel has to drop an error,
        // the socket says so (ENOBUFS).
        if let Some((_, others)) = requests.split_last_mut() {
            others.iter_mut().for_each(Request::be_silent);
        }
        let first = self.sequence.wrapping_add(1);
        let bytes = self.numbered(requests);
        let mut acks = Acks::new(first, requests.len());
        if let Err(cause) = self.send(&bytes) {
            acks.fail(&cause);
            return acks.into_results();
        }
        while acks.outstanding() > 0 {
            let outstanding = acks.outstanding();
            let awaited = || format!("the answer to the last {outstanding} of {} requests", requests.len());
            match self.receive(awaited) {
                Ok(datagram) => acks.take(datagram, |_, _| {}),
                Err(cause) => acks.fail(&cause),
            }
        }
        acks.into_results()
    }

    /// One after another in one message, each with the next number.
    fn numbered(&mut self, requests: &mut [Request]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(requests.iter().map(|r| r.0.len()).sum());
        for request in requests {
            request.set_sequence(self.next_sequence());
            bytes.extend_from_slice(&request.0);
        }
        bytes
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Cause> {
        retry_on_signal(|| self.socket.send(bytes, 0))?;
        Ok(())
    }

    /// The next datagram of the kernel's. `awaited` says what is missing when
    /// none comes in time.
    fn receive(&mut self, awaited: impl FnOnce() -> String) -> Result<&[u8], Cause> {
        loop {
            self.buffer.clear();
            let received = retry_on_signal(|| self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC));
            let (length, sender) = match received {
                Ok(received) => received,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Cause::TimedOut { awaited: awaited(), after: self.time_limit });
                }
                Err(e) => return Err(e.into()),
            };
            if length > self.buffer.len() {
                return Err(Cause::Truncated { length });
            }
            // Any process may send to our port; only the kernel has number 0.
            if sender.port_number() == 0 {
                return Ok(&self.buffer[..length]);
            }
        }
    }
}

/// Run `f` on a thread of its own inside another network namespace, so that the
/// calling thread never leaves its own.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            io::Result::Ok(f())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn open_socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    raise_buffers(&socket);
    set_recv_timeout(&socket, TIME_LIMIT)?;
    // Each is a convenience that an old kernel may not know.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    let _ = socket.set_netlink_get_strict_chk(true);
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// As large as we may: `SO_RCVBUFFORCE` is not bound by `net.core.rmem_max` but
/// needs CAP_NET_ADMIN. Less is no error, since chunks are bounded.
pub(crate) fn raise_buffers(socket: &Socket) {
    let fd = borrow(socket);
    if sockopt::set_socket_recv_buffer_size_force(fd, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(fd, SOCKET_BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(fd, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(fd, SOCKET_BUFFER);
    }
}

fn set_recv_timeout(socket: &Socket, limit: Duration) -> io::Result<()> {
    Ok(sockopt::set_socket_timeout(borrow(socket), sockopt::Timeout::Recv, Some(limit))?)
}

pub(crate) fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.socket)
    }
}

/// How many of `requests`, at least one, go into one chunk.
fn chunk_len(requests: &[Request]) -> usize {
    let mut bytes = 0;
    requests
        .iter()
        .take(CHUNK_REQUESTS)
        .take_while(|request| {
            bytes += request.0.len();
            bytes <= CHUNK_BYTES
        })
        .count()
        .max(1)
}

fn retry_on_signal<T>(mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match f() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
