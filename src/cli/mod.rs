//! What a person types.

mod cleanup;
mod config;
mod demo;
mod docker_opts;
mod doctor;
mod leases;
mod log;
mod option_file;
mod sources;
mod status;
mod store;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::{info, warn};

use self::sources::{Resolved, SourceError};
use crate::daemon::config::{DaemonArgs, UNUSED, double_dashes};
use crate::daemon::memory;

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

const PRECEDENCE: &str = "\
Each option is also read from WEFT_<NAME>, from FLANNELD_<NAME> where flannel has it, and from the
option file, in this order; the command line beats them all. One dash or two, as with Go's flags.
`weft config show` prints what is in force, and where it came from.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the fabric on this node
    ///
    /// Lease a subnet, join it to all others, and keep the kernel so until told to
    /// stop. Stopping leaves forwarding in place.
    #[command(disable_version_flag = true, after_help = PRECEDENCE)]
    Daemon(Box<DaemonArgs>),
    /// Show the options that are in force
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Status(status::StatusArgs),
    #[command(disable_version_flag = true)]
    Doctor(Box<doctor::DoctorArgs>),
    Store(store::StoreArgs),
    #[command(subcommand)]
    Leases(leases::LeasesCommand),
    DockerOpts(docker_opts::DockerOptsArgs),
    Cleanup(cleanup::CleanupArgs),
    Demo(demo::DemoArgs),
}

/// Runs what `args` say; `args[0]` is the name it was called by.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().map(OsString::as_os_str).and_then(base_name).unwrap_or("weft").to_owned();
    match run(&as_subcommand(&called, args), called == "flanneld") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, causes after colons, as the log has them.
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[OsString], as_flanneld: bool) -> anyhow::Result<()> {
    let resolved = match sources::resolve(&Cli::command(), args, |name| std::env::var(name).ok()) {
        Err(SourceError::CommandLine(error)) => error.exit(),
        resolved => resolved?,
    };
    let cli = Cli::from_arg_matches(&resolved.matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        // Where flanneld prints it.
        Command::Daemon(args) if args.version => {
            eprintln!("weft {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::Daemon(args) => {
            log::init(&args.log)?;
            remark(&resolved);
            runtime()?.block_on(crate::daemon::run(*args, as_flanneld))
        }
        Command::Config(config::ConfigCommand::Show(args)) => config::show(&args, &resolved),
        Command::Status(args) => runtime()?.block_on(status::run(args)),
        Command::Doctor(args) => runtime()?.block_on(doctor::run(*args)),
        Command::Store(args) => {
            log::init(&args.log)?;
            runtime()?.block_on(store::run(args))
        }
        Command::Cleanup(args) => runtime()?.block_on(cleanup::run(args)),
        Command::Leases(command) => runtime()?.block_on(leases::run(command)),
        Command::DockerOpts(args) => docker_opts::run(&args),
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
    }
}

/// Says which options were passed over or have no effect.
fn remark(resolved: &Resolved) {
    for note in &resolved.notes {
        warn!("{note}");
    }
    for flag in UNUSED {
        if resolved.leaf().value_source(flag.name).is_some() {
            let source = resolved.source(flag.name);
            info!("--{} ({source}) has no effect: {}", flag.name, flag.why);
        }
    }
}

/// What comes from other nodes may hold a terminal's control sequences.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Two threads serve a node: one may wait for the kernel while the other
/// answers.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    memory::share_one_arena();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// `flanneld …` and `weftd …` are `weft daemon …`, with Go's flag spellings.
fn as_subcommand(called: &str, args: Vec<OsString>) -> Vec<OsString> {
    let is_daemon = matches!(called, "flanneld" | "weftd");
    if !is_daemon && !args.get(1).is_some_and(|arg| arg == "daemon" || arg == "config" || arg == "doctor") {
        return args;
    }
    let head: &[&str] = if is_daemon { &["weft", "daemon"] } else { &["weft"] };
    head.iter().map(OsString::from).chain(double_dashes(args.into_iter().skip(1))).collect()
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

    /// Short enough to skim: a group for each concern, a line or two for each
    /// option.
    #[test]
    fn the_daemons_help_groups_its_options() {
        let mut cli = Cli::command();
        let daemon = cli.find_subcommand_mut("daemon").unwrap();
        let help = daemon.clone().term_width(100).render_help().to_string();
        let is_heading = |line: &&str| line.ends_with(':') && !line.starts_with(' ');
        for heading in ["Interface:", "Lease:", "Kernel:", "Health:", "etcd:", "Log:"] {
            assert!(help.lines().any(|line| line == heading), "{heading} in {help}");
        }
        let plain: Vec<_> = help.lines().skip_while(|line| *line != "Options:").skip(1).collect();
        let plain = plain.iter().take_while(|line| !is_heading(line)).filter(|line| line.contains("--"));
        assert_eq!(plain.count(), 3, "config, version and help alone stand outside a group: {help}");
        let options = daemon.get_arguments().filter(|arg| !arg.is_hide_set()).count();
        assert!(help.lines().count() < 4 * options, "{help}");
        assert!(help.contains("WEFT_<NAME>"), "{help}");
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

    #[test]
    fn a_peers_words_do_not_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\nc\u{9b}d é"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d é");
    }
}
