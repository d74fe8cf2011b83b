//! `weft status --watch`.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use super::super::printable;
use super::{PEERS, facts, peers};
use crate::daemon::admin;
use crate::daemon::status::{PeerCount, Status};

/// Until Ctrl-C, or until nobody reads it any more. A daemon that does not answer
/// is told of and waited for.
pub async fn run(socket: &Path, interval: Duration, json: bool) -> anyhow::Result<()> {
    let mut screen = Screen { terminal: io::stdout().is_terminal() && !json, last: String::new() };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            _ = &mut interrupt => return Ok(()),
            _ = ticks.tick() => {}
        }
        let take = if json { None } else { Some(screen.rows().unwrap_or(PEERS)) };
        let shown = match admin::ask(socket, take).await {
            Ok(status) if json => screen.always(&serde_json::to_string(&status)?),
            Ok(status) if screen.terminal => screen.redraw(&screen.text(&status)),
            Ok(status) => screen.line(&summary(&status)),
            Err(error) if json => {
                screen.always(&serde_json::json!({"error": format!("{error:#}")}).to_string())
            }
            Err(error) if screen.terminal => screen.redraw(&format!("{error:#}\n")),
            Err(error) => screen.line(&format!("{error:#}")),
        };
        match shown {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            shown => shown?,
        }
    }
}

struct Screen {
    terminal: bool,
    last: String,
}

impl Screen {
    fn always(&mut self, line: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        if self.last == line {
            return Ok(());
        }
        line.clone_into(&mut self.last);
        self.always(line)
    }

    /// As much of the peers as there is room for.
    fn text(&self, status: &Status) -> String {
        let facts = facts(status);
        // An empty line, the count, a header, what is left out, and the cursor.
        let taken = facts.lines().count() + 5;
        facts + &peers(status, self.rows().unwrap_or(PEERS).saturating_sub(taken))
    }

    fn rows(&self) -> Option<usize> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|_| self.terminal)?;
        Some(usize::from(size.ws_row.max(2)))
    }

    /// In one write and without clearing first, so that nothing flickers: home,
    /// each line and the rest of the old one away, then what is below.
    fn redraw(&mut self, text: &str) -> io::Result<()> {
        let rows = self.rows().unwrap_or(24);
        let lines: String = text.lines().take(rows - 1).map(|line| format!("{line}\x1b[K\n")).collect();
        let mut out = io::stdout().lock();
        out.write_all(format!("\x1b[H{lines}\x1b[J").as_bytes())?;
        out.flush()
    }
}

/// What a person would want to be told of when it changes.
fn summary(status: &Status) -> String {
    let PeerCount { total, missing, left_out, .. } = status.peer_count;
    let mood = status.trouble().map_or_else(|| "healthy".to_owned(), |trouble| printable(&trouble));
    format!(
        "{} | {total} peers, {missing} missing in the kernel, {left_out} left out | {} repairs | {mood}",
        status.lease.subnets.join(", "),
        status.kernel.repairs,
    )
}
