//! What the kernel sends back, datagram by datagram: no I/O here.

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NlasIterator, Parseable,
};

use super::Cause;

/// Answers to requests of consecutive sequence numbers. The kernel takes these in
/// turn and answers whichever it refuses, so that what it says to one tells of all
/// before that are without an answer: they are done.
pub(super) struct Acks {
    first: u32,
    results: Vec<Option<Result<(), Cause>>>,
    /// So many of the first have been decided.
    known: usize,
}

impl Acks {
    pub(super) fn new(first: u32, count: usize) -> Acks {
        Acks { first, results: vec![None; count], known: 0 }
    }

    /// Those of which nothing is known yet.
    pub(super) fn outstanding(&self) -> usize {
        self.results.len() - self.known
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
                self.known = self.known.max(index + 1);
            }
        }
    }

    /// What has come in for the first request that has an answer.
    pub(super) fn first_result(&mut self) -> Option<(usize, Result<(), Cause>)> {
        let (index, result) = self.results.iter_mut().enumerate().find(|(_, result)| result.is_some())?;
        result.take().map(|result| (index, result))
    }

    /// Give up: everything outstanding failed for `cause`.
    pub(super) fn fail(&mut self, cause: &Cause) {
        self.results[self.known..].fill(Some(Err(cause.clone())));
        self.known = self.results.len();
    }

    pub(super) fn into_results(self) -> Vec<Result<(), Cause>> {
        let silent = |at| if at < self.known { Ok(()) } else { Err(Cause::NoAnswer) };
        let results = self.results.into_iter().enumerate();
        results.map(|(at, result)| result.unwrap_or_else(|| silent(at))).collect()
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
        // The end of each, and cheaper than the error that says so.
        if rest.is_empty() {
            return None;
        }
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_MULTIPART;
    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;

    const RTM_NEWROUTE: u16 = 24;
    /// `struct rtmsg` of an IPv4 default route.
    const ROUTE: &[u8] = &[2, 0, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0];

    #[test]
    fn a_dump_is_complete_when_done_says_so() {
        let mut dump = Dump::<RouteNetlinkMessage>::new(7);

        assert_eq!(dump.take(&[route(0), route(0)].concat()), None);
        assert_eq!(dump.take(&[route(0), done(0, 0, b"")].concat()), Some(Outcome::Complete));
        assert_eq!((dump.messages.len(), dump.undecodable), (3, 0));
    }

    #[test]
    fn a_dump_during_which_the_table_changed_is_interrupted() {
        let interrupted = [
            vec![route(NLM_F_DUMP_INTR), done(0, 0, b"")],
            vec![route(0), done(NLM_F_DUMP_INTR, 0, b"")],
            vec![message(NLMSG_OVERRUN, 0, 7, b""), done(0, 0, b"")],
            vec![done(0, -libc::EINTR, b"")],
        ];
        for datagrams in interrupted {
            let outcome = Dump::<RouteNetlinkMessage>::new(7).take(&datagrams.concat());
            assert_eq!(outcome, Some(Outcome::Interrupted));
        }
    }

    #[test]
    fn an_error_inside_done_is_an_error() {
        let text = b"FIB table does not exist\0";
        let with_text = [&[text.len() as u8 + 4, 0, 1, 0], text.as_slice()].concat();
        for (flags, attributes, message) in
            [(0, &b""[..], ""), (NLM_F_ACK_TLVS, &with_text[..], "FIB table does not exist")]
        {
            let mut dump = Dump::<RouteNetlinkMessage>::new(7);
            let outcome = dump.take(&[route(0), done(flags, -libc::ENOENT, attributes)].concat());
            let cause = Cause::Errno { errno: libc::ENOENT, message: message.to_owned() };
            assert_eq!(outcome, Some(Outcome::Refused(cause)));
        }
    }

    #[test]
    fn a_message_that_cannot_be_decoded_is_left_out_and_counted() {
        let mut dump = Dump::<RouteNetlinkMessage>::new(7);
        let broken = message(RTM_NEWROUTE, NLM_F_MULTIPART, 7, &ROUTE[..5]);

        let outcome = dump.take(&[route(0), broken, route(0), done(0, 0, b"")].concat());

        assert_eq!(outcome, Some(Outcome::Complete));
        assert_eq!((dump.messages.len(), dump.undecodable), (2, 1));
    }

    #[test]
    fn what_belongs_to_an_earlier_dump_does_not_end_this_one() {
        let mut dump = Dump::<RouteNetlinkMessage>::new(8);
        assert_eq!(dump.take(&[route(NLM_F_DUMP_INTR), done(0, 0, b"")].concat()), None);
        assert!(dump.messages.is_empty());
    }

    #[test]
    fn answers_are_matched_by_number_and_speak_for_those_before() {
        let mut acks = Acks::new(u32::MAX, 5); // numbers wrap
        let refused = ack(1, -libc::EEXIST);

        acks.take(&[refused.clone(), ack(99, 0), ack(u32::MAX - 1, 0)].concat(), |_, _| {});
        assert_eq!(acks.outstanding(), 2);
        acks.take(&[refused, ack(2, 0)].concat(), |_, _| {});
        assert_eq!(acks.outstanding(), 1);
        let late = Cause::TimedOut { awaited: "1 of 5".into(), after: std::time::Duration::from_secs(1) };
        acks.fail(&late);

        let exists = Cause::Errno { errno: libc::EEXIST, message: String::new() };
        assert_eq!(acks.into_results(), [Ok(()), Ok(()), Err(exists), Ok(()), Err(late)]);
    }

    #[test]
    fn the_kernels_explanation_is_found_behind_the_echoed_request() {
        let attribute = [&[12, 0, 1, 0][..], b"no way\0\0"].concat();
        let code = (-libc::EINVAL).to_ne_bytes();
        let echoed = message(RTM_NEWROUTE, 0, 7, ROUTE);
        for (flags, request) in [(NLM_F_CAPPED, &echoed[..16]), (0, &echoed[..])] {
            let payload = [&code[..], request, &attribute].concat();
            let mut acks = Acks::new(7, 1);
            acks.take(&message(NLMSG_ERROR, flags | NLM_F_ACK_TLVS, 7, &payload), |_, _| {});
            let cause = Cause::Errno { errno: libc::EINVAL, message: "no way".into() };
            assert_eq!(acks.into_results(), [Err(cause)]);
        }
    }

    #[test]
    fn any_bytes_are_taken_without_a_panic() {
        use proptest::prelude::*;
        proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..30, flags: u16)| {
            let datagram = [bytes.clone(), message(kind, flags, 7, &bytes)].concat();
            for datagram in [&datagram[..], &datagram[bytes.len()..]] {
                Dump::<RouteNetlinkMessage>::new(7).take(datagram);
                Acks::new(7, 2).take(datagram, |_, _| {});
            }
        });
    }

    fn route(flags: u16) -> Vec<u8> {
        message(RTM_NEWROUTE, NLM_F_MULTIPART | flags, 7, ROUTE)
    }

    fn done(flags: u16, code: i32, attributes: &[u8]) -> Vec<u8> {
        message(NLMSG_DONE, NLM_F_MULTIPART | flags, 7, &[&code.to_ne_bytes(), attributes].concat())
    }

    fn ack(sequence: u32, code: i32) -> Vec<u8> {
        let echoed = message(RTM_NEWROUTE, 0, sequence, b"");
        message(NLMSG_ERROR, NLM_F_CAPPED, sequence, &[&code.to_ne_bytes()[..], &echoed].concat())
    }

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((16 + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}
