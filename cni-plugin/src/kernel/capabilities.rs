use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What the plugin does takes: links, addresses, rules and sysctls (NET_ADMIN),
/// entering a namespace (SYS_ADMIN), and opening one that is named by a process,
/// /proc/PID/ns/net (SYS_PTRACE, where that process may do more than we then).
/// Files are root's own.
const NEEDED: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::SYS_ADMIN).union(CapabilitySet::SYS_PTRACE);

/// Give the rest up for good. The bounding set stays: a plugin of others, and
/// iptables, have what root has when they are executed.
pub fn drop_needless() -> io::Result<()> {
    let now = capabilities(None)?;
    let kept = now.permitted & NEEDED;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: now.inheritable };
    set_capabilities(None, sets).map_err(io::Error::from)
}
