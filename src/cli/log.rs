use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::daemon::config::{LogArgs, LogFormat};

/// Logs go to standard error. Where systemd made that the journal, text goes
/// there directly, so that levels become its priorities.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(args.filter()).with_context(|| {
        format!("--log {:?}: a filter reads as `info` or `weft=debug,h2=warn`", args.filter())
    })?;
    let in_journal = args.log_format == LogFormat::Text && std::env::var_os("JOURNAL_STREAM").is_some();
    if let Some(journal) = in_journal.then(tracing_journald::layer).and_then(Result::ok) {
        tracing_subscriber::registry().with(filter).with(journal).init();
        return Ok(());
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
    Ok(())
}
