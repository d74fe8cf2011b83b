use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::daemon::config::{LogArgs, LogFormat};

/// Logs go to standard error; under systemd the journal stamps the time itself.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(args.filter()).with_context(|| {
        format!("--log {:?}: a filter reads as `info` or `weft=debug,h2=warn`", args.filter())
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text if in_journal => builder.without_time().init(),
        LogFormat::Text => builder.init(),
    }
    Ok(())
}
