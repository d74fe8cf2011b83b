//! The programs that rules are read and written by. They are started without a
//! shell, and each has a time limit.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// More than a program takes that waits for the lock of iptables.
const TIME_LIMIT: Duration = Duration::from_secs(20);
/// Seconds to wait for that lock.
const LOCK_WAIT: &str = "--wait=10";

#[derive(Debug, Error)]
pub enum ToolError {
    #[error("{program}: {cause}: is it installed?")]
    Start { program: String, cause: io::Error },
    #[error("{program}: no answer within {} s: is the lock of iptables held?", TIME_LIMIT.as_secs())]
    TimedOut { program: String },
    #[error("{program}: {said}")]
    Failed { program: String, said: String },
}

impl ToolError {
    /// What nft says of a table that is not there.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, ToolError::Failed { said, .. } if said.contains("No such file or directory"))
    }
}

/// What the program prints.
pub(super) async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let of = || program.to_owned();
    let started = |cause| ToolError::Start { program: of(), cause };
    let mut command = Command::new(program);
    // Messages are looked into.
    command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let talk = async {
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A program that stops reading says why on its standard error.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let Ok(output) = tokio::time::timeout(TIME_LIMIT, talk).await else {
        return Err(ToolError::TimedOut { program: of() });
    };
    let output = output.map_err(started)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().collect::<Vec<_>>().join("; ");
    Err(ToolError::Failed { program: of(), said: format!("{said} ({})", output.status) })
}

pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// One of the two programs that are called iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    /// What stands between the family's word and the verb: `-nft`, `-legacy` or
    /// nothing.
    suffix: &'static str,
    pub legacy: bool,
    /// `--random-fully` and `iptables-restore --wait` came with 1.6.2.
    pub modern: bool,
}

impl Iptables {
    /// The one with that suffix, if it is installed and runs.
    pub(super) async fn find(suffix: &'static str) -> Option<Iptables> {
        let program = format!("iptables{suffix}");
        if !is_installed(&program) {
            return None;
        }
        let version = run(&program, &["--version"], "").await.ok()?;
        Some(Iptables { suffix, legacy: !version.contains("nf_tables"), modern: is_modern(&version) })
    }

    pub(super) fn serves(&self, word: &str) -> bool {
        ["save", "restore"].iter().all(|verb| is_installed(&self.program(word, verb)))
    }

    /// `word` is `ip` or `ip6`.
    pub(super) async fn save(&self, word: &str, table: &str) -> Result<String, ToolError> {
        run(&self.program(word, "save"), &["-t", table], "").await
    }

    pub(super) async fn restore(&self, word: &str, input: &str) -> Result<(), ToolError> {
        let arguments: &[&str] = if self.modern { &["--noflush", LOCK_WAIT] } else { &["--noflush"] };
        run(&self.program(word, "restore"), arguments, input).await.map(drop)
    }

    /// To read a legacy table is to make it, and with it a warning of the other
    /// variant's for good. The kernel lists those that exist.
    pub(super) fn has_table(&self, word: &str, table: &str) -> bool {
        let names =
            || std::fs::read_to_string(format!("/proc/self/net/{word}_tables_names")).unwrap_or_default();
        !self.legacy || names().lines().any(|name| name == table)
    }

    fn program(&self, word: &str, verb: &str) -> String {
        format!("{word}tables{}-{verb}", self.suffix)
    }
}

impl std::fmt::Display for Iptables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.legacy { "iptables (legacy)" } else { "iptables (nf_tables)" })
    }
}

/// `iptables v1.8.9 (nf_tables)`: whether it is 1.6.2 or later.
fn is_modern(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts.as_slice() >= [1, 6, 2].as_slice()
}

/// Whether bridged packets can pass through iptables' chains.
pub fn has_bridge_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

#[cfg(test)]
mod tests {
    use super::is_modern;

    #[test]
    fn versions_are_numbers_not_text() {
        for (version, modern) in [
            ("iptables v1.8.9 (nf_tables)", true),
            ("iptables v1.6.2", true),
            ("iptables v1.10.0 (legacy)", true),
            ("iptables v1.6.1", false),
            ("iptables v1.4.21", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_modern(version), modern, "{version}");
        }
    }
}
