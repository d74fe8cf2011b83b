//! The checksum offload of a link, by ethtool's ioctl: `ethtool -K … tx`.
//! What is off here is computed before the packet reaches the tunnel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::model::IfName;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Whether the link computes the checksums of what is sent. `socket` says in
/// which network namespace to look; any kind of socket does, netlink's too.
pub(super) fn tx_checksum(socket: BorrowedFd<'_>, link: IfName) -> io::Result<bool> {
    ethtool(socket, link, ETHTOOL_GTXCSUM, false)
}

pub(super) fn set_tx_checksum(socket: BorrowedFd<'_>, link: IfName, on: bool) -> io::Result<()> {
    ethtool(socket, link, ETHTOOL_STXCSUM, on).map(drop)
}

fn ethtool(socket: BorrowedFd<'_>, link: IfName, cmd: u32, on: bool) -> io::Result<bool> {
    let mut value = EthtoolValue { cmd, data: on.into() };
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A name is at most 15 bytes, so the 16th stays 0.
    for (to, from) in request.ifr_name.iter_mut().zip(link.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value it points to live until the call returns,
    // and both commands read and write an ethtool_value and no more.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data != 0) }
}
