//! weft's CNI plugin: in one process what flannel, bridge and host-local are in
//! three. A list of plugins with flannel's fields works as it stands. Under the
//! name of one of the classic plugins it does that plugin's part alone.

mod bandwidth;
mod bridge;
mod chain;
mod files;
mod firewall;
mod flannel;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod identity;
mod ipam;
mod iptables;
mod kernel;
mod kind;
mod loopback;
mod names;
mod nfnetlink;
mod nft;
mod portmap;
mod protocol;
mod records;
mod tuning;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use kind::Kind;

/// What the process does: the environment and standard input in, standard
/// output and the exit status out.
pub fn main() -> ExitCode {
    if let Err(e) = kernel::capabilities::drop_needless() {
        eprintln!("weft-cni: capabilities that are not needed could not be dropped: {e}");
    }
    let kind = Kind::of_program(&env::args_os().next().unwrap_or_default());
    let reply = protocol::serve(kind, io::stdin().lock(), |name| env::var(name).ok());
    if io::stdout().write_all(reply.output.as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    reply.exit
}
