//! iptables by its own programs: the one interface that its variants, nf_tables
//! and legacy, have in common.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::nft::{self, Nft};
use crate::protocol::error::{Code, Error, Result};

/// The programs of one address family.
#[derive(Debug)]
pub struct Tools {
    command: &'static str,
    restore: &'static str,
    /// Where the nf_tables variant keeps its tables.
    family: nft::Family,
    /// Names the tables that the legacy variant has made.
    legacy_tables: &'static str,
}

const TOOLS: [Tools; 2] = [
    Tools {
        command: "iptables",
        restore: "iptables-restore",
        family: nft::Family::Ip,
        legacy_tables: "/proc/thread-self/net/ip_tables_names",
    },
    Tools {
        command: "ip6tables",
        restore: "ip6tables-restore",
        family: nft::Family::Ip6,
        legacy_tables: "/proc/thread-self/net/ip6_tables_names",
    },
];

impl Tools {
    pub fn of(v4: bool) -> &'static Tools {
        &TOOLS[usize::from(!v4)]
    }

    pub fn both() -> impl Iterator<Item = &'static Tools> {
        TOOLS.iter()
    }

    pub fn is_installed(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(self.restore).is_file())
    }

    /// Whether a chain can exist, without running anything: false is certain.
    /// The legacy variant does not tell chains, only tables.
    pub fn may_have(&self, nft: &mut Nft, table: &str, chain: &str) -> Result<bool> {
        let legacy = match fs::read_to_string(self.legacy_tables) {
            Ok(names) => names.lines().any(|name| name == table),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        };
        Ok(legacy || nft.has_chain(nft::Chain { family: self.family, table, name: chain })?)
    }

    /// The lines that `--list-rules` prints of a table; none where the table
    /// cannot be read, and so nothing was put into it.
    pub fn rules(&self, table: &str) -> Vec<String> {
        let listing = run(self.command, &["--wait", "--table", table, "--list-rules"], "");
        listing.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Carry out the lines for a table, all or none, beside what is there.
    pub fn restore(&self, table: &str, lines: &[String]) -> Result<()> {
        let script = format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"));
        run(self.restore, &["--noflush", "--wait"], &script).map(drop)
    }

    /// Remove, of `rules`, the jumps to a chain that are `ours`, and the chain
    /// where no others are left.
    pub fn remove_chain(
        &self,
        table: &str,
        rules: &[String],
        chain: &str,
        ours: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if !rules.iter().any(|rule| rule.strip_prefix("-N ") == Some(chain)) {
            return Ok(());
        }
        let jump = format!(" -j {chain}");
        let jumps =
            rules.iter().filter(|rule| rule.ends_with(&jump)).filter_map(|rule| rule.strip_prefix("-A "));
        let (ours, others): (Vec<_>, Vec<_>) = jumps.partition(|jump| ours(jump));
        let mut lines: Vec<_> = ours.iter().map(|rule| format!("-D {rule}")).collect();
        if others.is_empty() {
            lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
        }
        self.restore(table, &lines)
    }
}

/// A word as `iptables-restore` reads it, whatever is in it but the end of the
/// line, which no quoting hides.
pub fn quoted(word: &str) -> String {
    let mut quoted = String::from("\"");
    for c in word.chars().filter(|c| !matches!(c, '\n' | '\r' | '\0')) {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted + "\""
}

/// What the program prints, without a shell in between.
pub fn run(program: &str, arguments: &[&str], stdin: &str) -> Result<String> {
    let failed = |e: io::Error| Error::new(Code::Io, format!("{program}: {e}: is it installed?"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that stops reading says why on its standard error.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::new(Code::Internal, format!("{program}: {}", output.status)).details(said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
