//! Lets Go's gRPC clients in. They name the server in `:authority` by what they
//! were told to dial: for a Unix socket its path, and in `etcdctl endpoint
//! status` a whole URL. Neither is an authority (RFC 3986, 3.2), and hyper's
//! HTTP/2 resets such a stream. Nothing here looks at the authority, and
//! HTTP/2 does not need one (RFC 9113, 8.3.1), so the field is renamed on its way
//! in: in HPACK (RFC 7541) its name is an index, one byte, and a name of the same
//! length keeps the dynamic table of both sides equal.
//!
//! Only an `:authority` behind the three other pseudo-header fields, where Go puts
//! it, is renamed: none of them may follow an ordinary field.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// HPACK "literal with incremental indexing" whose name is `:authority`, the
/// only form in which Go sends it, and the same for `set-cookie`, which no
/// request carries.
const AUTHORITY: u8 = 0x40 | 1;
const SET_COOKIE: u8 = 0x40 | 55;
/// `:method`, `:scheme` and `:path`.
const OTHER_PSEUDO_FIELDS: usize = 3;

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A connection whose requests come without `:authority`; one that carries TLS
/// is passed on as it is.
#[derive(Debug)]
pub(super) struct WithoutAuthority<T> {
    inner: T,
    filter: Option<Filter>,
}

impl<T> WithoutAuthority<T> {
    pub fn plain(inner: T) -> Self {
        Self { inner, filter: Some(Filter::default()) }
    }

    pub fn tls(inner: T) -> Self {
        Self { inner, filter: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WithoutAuthority<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Some(filter) = &mut self.filter {
            filter.pass(&mut buffer.filled_mut()[before..]);
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WithoutAuthority<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<T: Connected> Connected for WithoutAuthority<T> {
    type ConnectInfo = T::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

/// Follows a client's bytes through HTTP/2 frames into header blocks.
#[derive(Debug)]
struct Filter {
    frame: Frame,
    block: Block,
    /// Fields of the header block that were begun before this one.
    fields: usize,
}

/// What the next bytes are.
#[derive(Debug)]
enum Frame {
    /// So many bytes of no interest, then a frame header.
    Skip(usize),
    Header {
        bytes: [u8; FRAME_HEADER],
        have: usize,
    },
    /// The pad length of a HEADERS frame, then `priority` bytes of priority.
    Padding {
        payload: usize,
        priority: usize,
    },
    Priority {
        left: usize,
        fields: usize,
        padding: usize,
    },
    Fields {
        left: usize,
        padding: usize,
    },
}

impl Default for Filter {
    fn default() -> Self {
        Self { frame: Frame::Skip(PREFACE), block: Block::Field, fields: 0 }
    }
}

impl Filter {
    fn pass(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&mut bytes[at..]);
        }
    }

    /// Takes at least one byte off the front; returns how many.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.frame {
            Frame::Skip(left) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    self.frame = Frame::Header { bytes: [0; FRAME_HEADER], have: 0 };
                }
                taken
            }
            Frame::Header { bytes: header, have } => {
                header[*have] = bytes[0];
                *have += 1;
                if *have == FRAME_HEADER {
                    if header[3] == HEADERS {
                        (self.block, self.fields) = (Block::Field, 0);
                    }
                    self.frame = frame(header);
                }
                1
            }
            Frame::Padding { payload, priority } => {
                let padding = usize::from(bytes[0]);
                let fields = payload.saturating_sub(1 + *priority + padding);
                self.frame = after_padding(*priority, fields, padding);
                1
            }
            Frame::Priority { left, fields, padding } => {
                *left -= 1;
                if *left == 0 {
                    self.frame = after_padding(0, *fields, *padding);
                }
                1
            }
            Frame::Fields { left, padding } => {
                if matches!(self.block, Block::Field) {
                    if bytes[0] == AUTHORITY && self.fields == OTHER_PSEUDO_FIELDS {
                        bytes[0] = SET_COOKIE;
                    }
                    self.fields += usize::from(!is_table_size(bytes[0]));
                }
                self.block = self.block.after(bytes[0]);
                *left -= 1;
                if *left == 0 {
                    self.frame = skip(*padding);
                }
                1
            }
        }
    }
}

fn frame(header: &[u8; FRAME_HEADER]) -> Frame {
    let payload = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    let (kind, flags) = (header[3], header[4]);
    let priority = if flags & PRIORITY != 0 { 5 } else { 0 };
    match kind {
        _ if payload == 0 => skip(0),
        HEADERS if flags & PADDED != 0 => Frame::Padding { payload, priority },
        HEADERS => after_padding(priority, payload.saturating_sub(priority), 0),
        CONTINUATION => Frame::Fields { left: payload, padding: 0 },
        _ => Frame::Skip(payload),
    }
}

fn after_padding(priority: usize, fields: usize, padding: usize) -> Frame {
    match (priority, fields) {
        (0, 0) => skip(padding),
        (0, _) => Frame::Fields { left: fields, padding },
        _ => Frame::Priority { left: priority, fields, padding },
    }
}

fn skip(count: usize) -> Frame {
    if count == 0 { Frame::Header { bytes: [0; FRAME_HEADER], have: 0 } } else { Frame::Skip(count) }
}

/// Where in a header block the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Block {
    /// The first byte of a field or of a table size.
    Field,
    /// More of an integer, then so many strings.
    Integer { strings: u8 },
    /// The first byte of a string's length; this one and so many more strings.
    Length { more: u8 },
    /// More of a string's length, found so far and by how much to shift.
    LengthMore { length: usize, shift: u32, more: u8 },
    /// So many bytes of a string.
    Text { left: usize, more: u8 },
}

impl Block {
    fn after(self, byte: u8) -> Self {
        match self {
            Block::Field => field(byte),
            Block::Integer { strings } if byte & 0x80 == 0 => strings_left(strings),
            Block::Integer { strings } => Block::Integer { strings },
            Block::Length { more } => match usize::from(byte & 0x7f) {
                0x7f => Block::LengthMore { length: 0x7f, shift: 0, more },
                length => text(length, more),
            },
            Block::LengthMore { length, shift, more } => {
                // hyper refuses what would overflow here.
                let length = length.saturating_add(usize::from(byte & 0x7f) << shift.min(28));
                match byte & 0x80 {
                    0 => text(length, more),
                    _ => Block::LengthMore { length, shift: shift.saturating_add(7), more },
                }
            }
            Block::Text { left, more } => text(left - 1, more),
        }
    }
}

fn is_table_size(byte: u8) -> bool {
    byte & 0xe0 == 0x20
}

fn field(byte: u8) -> Block {
    let (prefix, literal) = match byte {
        0x80.. => (0x7f, false),
        0x40.. => (0x3f, true),
        0x20.. => (0x1f, false),
        _ => (0x0f, true),
    };
    let index = byte & prefix;
    let strings = match (literal, index) {
        (false, _) => 0,
        (true, 0) => 2,
        (true, _) => 1,
    };
    if index == prefix { Block::Integer { strings } } else { strings_left(strings) }
}

fn strings_left(strings: u8) -> Block {
    match strings {
        0 => Block::Field,
        strings => Block::Length { more: strings - 1 },
    }
}

fn text(left: usize, more: u8) -> Block {
    if left == 0 { strings_left(more) } else { Block::Text { left, more } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The preface, SETTINGS, and a HEADERS frame whose fields are `:method`,
    /// `:scheme`, a literal `:path` that holds the byte in question, and more.
    fn request(flags: u8, before: &[u8], fields: &[u8], after: &[u8]) -> Vec<u8> {
        let payload = [before, fields, after].concat();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0, u8::try_from(payload.len()).unwrap(), HEADERS, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes.extend([0, 0, 1, 0, 1, 0, 0, 0, 1, AUTHORITY]);
        bytes
    }

    const PATH_LAST: &[u8] = &[0x83, 0x86, AUTHORITY, 3, b'a', b'A', b'b', 0x44, 2, b'/', AUTHORITY];
    const AUTHORITY_LAST: &[u8] =
        &[0x20, 0x83, 0x86, 0x44, 2, b'/', AUTHORITY, AUTHORITY, 3, b'/', b'A', b's', 0x40, 1, b'x', 1, b'A'];

    proptest! {
        #[test]
        fn only_a_last_authority_is_renamed_however_the_bytes_arrive(
            cuts in prop::collection::vec(0usize..120, 0..8),
            (flags, before, after) in prop::sample::select(vec![
                (0, &[][..], &[][..]),
                (PADDED, &[2][..], &[AUTHORITY, AUTHORITY][..]),
                (PRIORITY, &[0, 0, 0, 0, AUTHORITY][..], &[][..]),
                (PADDED | PRIORITY, &[1, 0, 0, 0, 0, AUTHORITY][..], &[AUTHORITY][..]),
            ]),
        ) {
            let renamed: Vec<u8> = AUTHORITY_LAST.iter().enumerate()
                .map(|(at, byte)| if at == 7 { SET_COOKIE } else { *byte }).collect();
            for (fields, expected) in [(PATH_LAST, PATH_LAST), (AUTHORITY_LAST, &renamed)] {
                let mut bytes = request(flags, before, fields, after);
                let mut filter = Filter::default();
                let mut cuts = cuts.clone();
                cuts.retain(|cut| *cut < bytes.len());
                cuts.sort_unstable();
                let mut start = 0;
                for end in cuts.into_iter().chain([bytes.len()]) {
                    filter.pass(&mut bytes[start..end]);
                    start = end;
                }
                prop_assert_eq!(bytes, request(flags, before, expected, after));
            }
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            Filter { frame: skip(0), ..Filter::default() }.pass(&mut bytes);
        }
    }
}
