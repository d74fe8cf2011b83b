//! What touches the kernel. The netlink transaction layer is synchronous and
//! shared with the CNI plugin; the rest is the daemon's.

pub mod netlink;
