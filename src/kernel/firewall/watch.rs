//! What nftables tells of its own accord (linux/netfilter/nf_tables.h).

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::unix::AsyncFd;

use crate::kernel::netlink::{Cause, NetlinkError};

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
const HEADER: usize = 16;
/// `struct nfgenmsg`, before the attributes.
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;
/// `NFT_MSG_NEWGEN`: the end of a transaction; its first attribute is a number.
const NEW_GENERATION: u8 = 15;
const RECV_BYTES: usize = 64 << 10;

/// A socket in nftables' multicast group.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<Socket>,
    tables: &'static [&'static str],
    buffer: Vec<u8>,
}

impl Watch {
    /// Of changes to tables of these names, in the namespace of the calling thread.
    /// Needs a tokio runtime.
    pub fn open(tables: &'static [&'static str]) -> Result<Watch, NetlinkError> {
        let open = || -> io::Result<AsyncFd<Socket>> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.set_non_blocking(true)?;
            socket.bind_auto()?;
            socket.add_membership(GROUP)?;
            // SAFETY: the socket owns its descriptor, gives out the same one at
            // every call, and closes it only when dropped.
            Ok(unsafe { AsyncFd::register(socket) }?)
        };
        let socket = open().map_err(|e| Cause::from(e).of("nftables multicast socket"))?;
        Ok(Watch { socket, tables, buffer: vec![0; RECV_BYTES] })
    }

    /// Pass over what was told so far.
    pub fn forget(&mut self) {
        // Lost notifications are as good.
        while !matches!(self.socket.get_ref().recv(&mut self.buffer.as_mut_slice(), 0), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
        {
        }
    }

    /// Until someone changed our tables, or may have: then notifications were
    /// lost. Takes all that was told so far.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let mut ours = false;
        loop {
            let guard = self.socket.readable().await;
            let mut guard = guard.map_err(|e| Cause::from(e).of("nftables multicast socket"))?;
            match guard.get_inner().recv(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC) {
                Ok(length) => {
                    ours |= length > self.buffer.len() || is_about(self.tables, &self.buffer[..length]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                    if ours {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: they came faster than they were read.
                Err(_) => ours = true,
            }
        }
    }
}

/// Whether one of the messages names one of the tables: nearly all have the
/// table's name as attribute 1.
fn is_about(tables: &[&str], datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some((message, tail)) = next(rest) {
        if message[4] != NEW_GENERATION
            && table_of(message).is_some_and(|name| tables.iter().any(|table| table.as_bytes() == name))
        {
            return true;
        }
        rest = tail;
    }
    false
}

/// The first message, header included, and what follows it.
fn next(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn table_of(message: &[u8]) -> Option<&[u8]> {
    let attribute = message.get(HEADER + GENERIC..)?;
    let length = usize::from(u16::from_ne_bytes(attribute.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(attribute.get(2..4)?.try_into().ok()?);
    let value = attribute.get(ATTRIBUTE..length).filter(|_| kind == 1)?;
    Some(value.strip_suffix(&[0]).unwrap_or(value))
}
