use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;

/// A request failed: what it was about, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{object}: {cause}")]
pub struct NetlinkError {
    /// What the request was about: `route 10.1.2.0/24 via 10.1.2.0 dev flannel.1`.
    pub object: String,
    pub cause: Cause,
}

impl NetlinkError {
    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        self.cause.errno()
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The kernel refused. `message` is its own explanation (extended ACK),
    /// empty where it gives none.
    Errno { errno: i32, message: String },
    /// No answer came. What was asked for may or may not have been done.
    TimedOut { awaited: String, after: Duration },
    /// The kernel acknowledged a question without answering it.
    NoAnswer,
    /// A datagram longer than the receive buffer.
    Truncated { length: usize },
    /// The table changed during every try to read it.
    Interrupted { tries: u32 },
}

impl Cause {
    /// The error of an object that failed for this cause.
    pub fn of(self, object: impl fmt::Display) -> NetlinkError {
        NetlinkError { object: object.to_string(), cause: self }
    }

    pub fn errno(&self) -> Option<i32> {
        match self {
            Cause::Errno { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Cause {
        Cause::Errno { errno: error.raw_os_error().unwrap_or(libc::EIO), message: String::new() }
    }
}

impl std::error::Error for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Errno { errno, message } => {
                match errno_name(*errno) {
                    Some(name) => f.write_str(name)?,
                    None => write!(f, "{}", io::Error::from_raw_os_error(*errno))?,
                }
                if !message.is_empty() {
                    write!(f, ": {message}")?;
                }
                match way_out(*errno) {
                    Some(way_out) => write!(f, ": {way_out}"),
                    None => Ok(()),
                }
            }
            Cause::TimedOut { awaited, after } => {
                write!(f, "waited {} s for {awaited}: is the system overloaded?", after.as_secs_f32())
            }
            Cause::NoAnswer => f.write_str("the kernel gave no answer that can be decoded"),
            Cause::Truncated { length } => {
                write!(f, "the kernel sent a datagram of {length} bytes, more than the receive buffer holds")
            }
            Cause::Interrupted { tries } => {
                write!(
                    f,
                    "changed during each of {tries} tries to read it: does something rewrite it without pause?"
                )
            }
        }
    }
}

/// `EPERM` for 1, and so on, for the numbers that rtnetlink answers with.
pub fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EINVAL => "EINVAL",
        libc::EMFILE => "EMFILE",
        libc::ENFILE => "ENFILE",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::ERANGE => "ERANGE",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ENOBUFS => "ENOBUFS",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EALREADY => "EALREADY",
        _ => return None,
    })
}

/// What a person can do about it.
fn way_out(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM | libc::EACCES => "run as root or with CAP_NET_ADMIN",
        libc::EROFS => "mount /proc/sys read-write (in a container: privileged)",
        libc::EOPNOTSUPP | libc::EPROTONOSUPPORT => "the kernel lacks it: load its module",
        libc::EAFNOSUPPORT => "the kernel has this address family switched off",
        libc::ENODEV | libc::ENXIO => "the link is gone",
        libc::ENETDOWN => "set the link up",
        libc::ENETUNREACH | libc::EHOSTUNREACH => {
            "the gateway is not on that link: is it up, with an address?"
        }
        libc::ENOBUFS | libc::ENOMEM => "free memory, or raise the limit of the table",
        _ => return None,
    })
}
