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
/// The lower byte of `nlmsg_type`: `NFT_MSG_*`.
const KIND_AT: usize = 4;
const NEW_CHAIN: u8 = 3;
const DEL_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const DEL_RULE: u8 = 8;
/// The end of a transaction; its first attribute is a number.
const NEW_GENERATION: u8 = 15;
const RECV_BYTES: usize = 64 << 10;

/// A socket in nftables' multicast group.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<Socket>,
    subject: Subject,
    buffer: Vec<u8>,
}

/// What a watch is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Tables of these names, of whatever family.
    pub tables: &'static [&'static str],
    /// Where it is not the whole tables: these chains of theirs.
    pub chains: Option<&'static [&'static str]>,
}

impl Subject {
    pub fn tables(tables: &'static [&'static str]) -> Subject {
        Subject { tables, chains: None }
    }

    /// Whether the message, header included, names one of them, or a whole table:
    /// nearly all have the table's name as attribute 1.
    fn is_named(&self, message: &[u8]) -> bool {
        let named = |kind, names: &[&str]| {
            attribute(message, kind).map(|name| names.iter().any(|known| known.as_bytes() == name))
        };
        let kind = message[KIND_AT];
        let chain = match kind {
            NEW_CHAIN | DEL_CHAIN => 3,
            NEW_RULE | DEL_RULE => 2,
            _ => 0,
        };
        kind != NEW_GENERATION
            && named(1, self.tables) == Some(true)
            && self.chains.is_none_or(|chains| named(chain, chains) != Some(false))
    }
}

impl Watch {
    /// Of changes to `subject`, in the namespace of the calling thread. Needs a tokio
    /// runtime.
    pub fn open(subject: Subject) -> Result<Watch, NetlinkError> {
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
        Ok(Watch { socket, subject, buffer: vec![0; RECV_BYTES] })
    }

    /// Pass over what was told so far.
    pub fn forget(&mut self) {
        // Lost notifications are as good.
        while !matches!(self.socket.get_ref().recv(&mut self.buffer.as_mut_slice(), 0), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
        {
        }
    }

    /// Until someone changed the subject, or may have: then notifications were
    /// lost. Takes all that was told so far.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let mut ours = false;
        loop {
            let guard = self.socket.readable().await;
            let mut guard = guard.map_err(|e| Cause::from(e).of("nftables multicast socket"))?;
            match guard.get_inner().recv(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC) {
                Ok(length) => {
                    ours |= length > self.buffer.len() || is_about(&self.subject, &self.buffer[..length]);
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

/// Whether one of the messages is.
fn is_about(subject: &Subject, datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some((message, tail)) = next(rest) {
        if subject.is_named(message) {
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

/// A string among the attributes.
fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(HEADER + GENERIC..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(ATTRIBUTE..length)?;
        if kind == wanted {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: Subject = Subject { tables: &["nat"], chains: Some(&["POSTROUTING"]) };

    #[test]
    fn of_others_tables_the_chains_named_are_of_concern() {
        let told = |kind, attributes: &[(u16, &str)]| is_about(&CHAINS, &message(kind, attributes));
        assert!(told(NEW_RULE, &[(1, "nat"), (2, "POSTROUTING")]));
        assert!(told(DEL_CHAIN, &[(1, "nat"), (2, "8bytes.."), (3, "POSTROUTING")]));
        assert!(told(2, &[(1, "nat")]), "a whole table");
        assert!(!told(NEW_RULE, &[(1, "nat"), (2, "KUBE-SERVICES")]));
        assert!(!told(DEL_CHAIN, &[(1, "nat"), (3, "KUBE-SERVICES")]));
        assert!(!told(NEW_RULE, &[(1, "filter"), (2, "POSTROUTING")]));
        assert!(!told(NEW_GENERATION, &[(1, "nat")]));
        let whole = Subject::tables(&["nat"]);
        assert!(is_about(&whole, &message(NEW_RULE, &[(1, "nat"), (2, "KUBE-SERVICES")])));
    }

    #[test]
    fn what_is_cut_off_names_nothing() {
        let whole = message(NEW_RULE, &[(1, "nat"), (2, "POSTROUTING")]);
        for length in 0..whole.len() {
            is_about(&CHAINS, &whole[..length]);
        }
        assert!(!is_about(&CHAINS, &whole[..HEADER + GENERIC + 3]));
    }

    fn message(kind: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, kind, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        for (kind, value) in attributes {
            bytes.extend((ATTRIBUTE as u16 + value.len() as u16 + 1).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.bytes().chain([0]));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }
}
