//! What the kernel sends back, datagram by datagram: no I/O here.

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NlasIterator, Parseable,
};

use super::Cause;

/// Acknowledgements of consecutive sequence numbers.
pub(super) struct Acks {
    first: u32,
    results: Vec<Option<Result<(), Cause>>>,
    outstanding: usize,
}

impl Acks {
    pub(super) fn new(first: u32, count: usize) -> Acks {
        Acks { first, results: vec![None; count], outstanding: count }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Count what a datagram acknowledges. Answers that are no acknowledgement
    /// go to `answer`; what belongs to an earlier request is left.
    pub(super) fn take(&mut self, datagram: &[u8], mut answer: impl FnMut(&NetlinkHeader, &[u8])) {
        for (header, payload) in messages(datagram) {
            let index = header.sequence_number.wrapping_sub(self.first) as usize;
            let Some(result) = self.results.get_mut(index) else { continue };
            if header.message_type != NLMSG_ERROR {
                answer(&header, payload);
                continue;
            }
            if result.is_none() {
                *result = Some(acknowledged(&header, payload));
                self.outstanding -= 1;
            }
        }
    }

    /// Give up: everything outstanding failed for `cause`.
    pub(super) fn fail(&mut self, cause: &Cause) {
        for result in &mut self.results {
            result.get_or_insert_with(|| Err(cause.clone()));
        }
        self.outstanding = 0;
    }

    pub(super) fn into_results(self) -> Vec<Result<(), Cause>> {
        self.results.into_iter().map(|result| result.unwrap_or(Err(Cause::NoAnswer))).collect()
    }
}

/// A dump as it comes in.
pub(super) struct Dump<M> {
    sequence: u32,
    interrupted: bool,
    pub(super) messages: Vec<M>,
    pub(super) undecodable: u64,
}

/// How a dump ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete,
    /// The table changed while it was read: entries may be missing or double.
    Interrupted,
    Refused(Cause),
}

impl<M: NetlinkDeserializable> Dump<M> {
    pub(super) fn new(sequence: u32) -> Dump<M> {
        Dump { sequence, interrupted: false, messages: Vec::new(), undecodable: 0 }
    }

    /// Take a datagram; `Some` where it ends the dump.
    pub(super) fn take(&mut self, datagram: &[u8]) -> Option<Outcome> {
        for (header, payload) in messages(datagram) {
            if header.sequence_number != self.sequence {
                continue;
            }
            self.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            match header.message_type {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => self.interrupted = true,
                NLMSG_DONE | NLMSG_ERROR => return Some(self.end(&header, payload)),
                _ => match M::deserialize(&header, payload) {
                    Ok(message) => self.messages.push(message),
                    Err(_) => self.undecodable += 1,
                },
            }
        }
        None
    }

    /// `NLMSG_DONE` carries an error number just as `NLMSG_ERROR` does.
    fn end(&self, header: &NetlinkHeader, payload: &[u8]) -> Outcome {
        match acknowledged(header, payload) {
            Err(Cause::Errno { errno: libc::EINTR, .. }) => Outcome::Interrupted,
            Err(cause) => Outcome::Refused(cause),
            Ok(()) if self.interrupted => Outcome::Interrupted,
            Ok(()) => Outcome::Complete,
        }
    }
}

/// The messages of a datagram, up to the first broken one.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (NetlinkHeader, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let header = NetlinkHeader::parse(&buffer).ok()?;
        let payload = buffer.payload();
        let length = buffer.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    })
}

/// What `NLMSG_ERROR` or `NLMSG_DONE` says: `int error`, for an error message
/// the request's header (and, where not capped, its payload), then attributes.
fn acknowledged(header: &NetlinkHeader, payload: &[u8]) -> Result<(), Cause> {
    let Some((code, rest)) = payload.split_first_chunk::<4>() else {
        return match header.message_type {
            NLMSG_DONE => Ok(()),
            _ => Err(Cause::NoAnswer),
        };
    };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(());
    }
    let attributes = match header.message_type {
        NLMSG_DONE => rest,
        _ => rest.get(echoed_len(header, rest)..).unwrap_or_default(),
    };
    let has_attributes = header.flags & NLM_F_ACK_TLVS != 0;
    let message = if has_attributes { explanation(attributes) } else { String::new() };
    Err(Cause::Errno { errno: -code, message })
}

/// How much of the request the kernel sends back before the attributes.
fn echoed_len(header: &NetlinkHeader, echoed: &[u8]) -> usize {
    const HEADER_LEN: usize = 16;
    if header.flags & NLM_F_CAPPED != 0 {
        return HEADER_LEN;
    }
    let length = echoed.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
    length.max(HEADER_LEN).next_multiple_of(4)
}

fn explanation(attributes: &[u8]) -> String {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .map(|nla| String::from_utf8_lossy(nla.value()).trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}
