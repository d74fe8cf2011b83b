//! What a person types.

mod demo;
mod docker_opts;
mod log;
mod status;
mod store;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::daemon::config::{DaemonArgs, double_dashes};

/// An overlay network fabric: each node leases a subnet from a store and joins it
/// to all others, by VXLAN or plain routes
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the fabric on this node
    ///
    /// Lease a subnet, join it to all others, and keep the kernel so until told to
    /// stop. Stopping leaves forwarding in place.
    #[command(disable_version_flag = true)]
    Daemon(Box<DaemonArgs>),
    Status(status::StatusArgs),
    Store(store::StoreArgs),
    DockerOpts(docker_opts::DockerOptsArgs),
    Demo(demo::DemoArgs),
}

/// Runs what `args` say; `args[0]` is the name it was called by.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().map(OsString::as_os_str).and_then(base_name).unwrap_or("weft").to_owned();
    let cli = Cli::parse_from(as_subcommand(&called, args));
    match run(cli.command, called == "flanneld") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, causes after colons, as the log has them.
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, as_flanneld: bool) -> anyhow::Result<()> {
    match command {
        // Where flanneld prints it.
        Command::Daemon(args) if args.version => {
            eprintln!("weft {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::Daemon(args) => {
            log::init(&args.log)?;
            runtime()?.block_on(crate::daemon::run(*args, as_flanneld))
        }
        Command::Status(args) => runtime()?.block_on(status::run(args)),
        Command::Store(args) => {
            log::init(&args.log)?;
            runtime()?.block_on(store::run(args))
        }
        Command::DockerOpts(args) => docker_opts::run(&args),
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
    }
}

/// Two threads serve a node: one may wait for the kernel while the other
/// answers.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// `flanneld …` and `weftd …` are `weft daemon …`, with Go's flag spellings.
fn as_subcommand(called: &str, args: Vec<OsString>) -> Vec<OsString> {
    let daemon = matches!(called, "flanneld" | "weftd") || args.get(1).is_some_and(|arg| arg == "daemon");
    if !daemon {
        return args;
    }
    let skip = if matches!(called, "flanneld" | "weftd") { 1 } else { 2 };
    let head = ["weft", "daemon"].map(OsString::from);
    head.into_iter().chain(double_dashes(args.into_iter().skip(skip))).collect()
}

fn base_name(path: &OsStr) -> Option<&str> {
    Path::new(path).file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flanneld_is_the_daemon() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            as_subcommand("flanneld", args("/opt/bin/flanneld -iface=eth0")),
            args("weft daemon --iface=eth0")
        );
        assert_eq!(as_subcommand("weft", args("weft daemon -iface eth0")), args("weft daemon --iface eth0"));
        assert_eq!(as_subcommand("weft", args("weft status -h")), args("weft status -h"));
    }
}
