//! weft's CNI plugin: in one process what flannel, bridge and host-local are in
//! three. A list of plugins with flannel's fields works as it stands.

mod attach;
mod bridge;
mod cache;
mod check;
mod config;
mod error;
mod exec;
mod fields;
mod ipam;
mod kernel;
mod masq;
mod netns;
mod protocol;
mod request;
mod result;
mod version;

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let reply = protocol::serve(io::stdin().lock(), |name| std::env::var(name).ok());
    if io::stdout().write_all(reply.output.as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    reply.exit
}
