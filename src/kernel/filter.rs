//! What the kernel keeps from a notification socket, so that a flood of what is of
//! no concern wakes nobody (`SO_ATTACH_FILTER`, linux/filter.h).

use std::io;
use std::os::fd::AsRawFd;

use libc::sock_filter;
use netlink_sys::Socket;

/// What passes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Filter {
    /// Of routes, default routes alone: ten thousand of ours come and go.
    DefaultRoutes,
    /// Routes that drop packets (`RTN_BLACKHOLE`).
    Blackholes,
    /// All but the echo of changes made through the socket with this port number.
    /// Links pass always: a change of them takes more along than was asked for.
    Others(u32),
}

const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const PASS: u32 = u32::MAX;
const DROP: u32 = 0;
/// `nlmsg_type` and `nlmsg_pid` (linux/netlink.h); `rtm_dst_len` and `rtm_type`
/// behind that header.
const TYPE_AT: u32 = 4;
const PORT_AT: u32 = 12;
const PREFIX_LENGTH_AT: u32 = 16 + 1;
const ROUTE_TYPE_AT: u32 = 16 + 7;

impl Filter {
    pub(super) fn attach(self, socket: &Socket) -> io::Result<()> {
        let mut steps = self.steps();
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
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

    /// Loads are in network order, what netlink has is in the host's.
    fn steps(self) -> Vec<sock_filter> {
        let kind = |kind: u16| u32::from(kind.to_be());
        match self {
            Filter::DefaultRoutes => vec![
                step(LOAD_HALF, TYPE_AT, 0, 0),
                step(IF_EQUAL, kind(libc::RTM_NEWROUTE), 1, 0),
                step(IF_EQUAL, kind(libc::RTM_DELROUTE), 0, 2),
                step(LOAD_BYTE, PREFIX_LENGTH_AT, 0, 0),
                step(IF_EQUAL, 0, 0, 1),
                step(RETURN, PASS, 0, 0),
                step(RETURN, DROP, 0, 0),
            ],
            Filter::Blackholes => vec![
                step(LOAD_BYTE, ROUTE_TYPE_AT, 0, 0),
                step(IF_EQUAL, libc::RTN_BLACKHOLE.into(), 0, 1),
                step(RETURN, PASS, 0, 0),
                step(RETURN, DROP, 0, 0),
            ],
            Filter::Others(port) => vec![
                step(LOAD_HALF, TYPE_AT, 0, 0),
                step(IF_EQUAL, kind(libc::RTM_NEWLINK), 3, 0),
                step(IF_EQUAL, kind(libc::RTM_DELLINK), 2, 0),
                step(LOAD_WORD, PORT_AT, 0, 0),
                step(IF_EQUAL, port.to_be(), 1, 0),
                step(RETURN, PASS, 0, 0),
                step(RETURN, DROP, 0, 0),
            ],
        }
    }
}

/// `jt` and `jf` are the steps passed over where a comparison holds or does not.
fn step(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
