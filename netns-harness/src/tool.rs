//! Runs the tools a lab is made with, and says what is missing or went wrong.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::Error;

/// Runs `command` to its end and returns what it printed.
///
/// The tool has a process group of its own: an impatient second Ctrl-C must not
/// end the very commands that clean up.
pub(crate) fn run(command: &mut Command, stdin: &str) -> Result<String, Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let shown = shown(command);
    let mut child = command.spawn().map_err(|error| cannot_start(command, error))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A tool that ends early says why on stderr: its broken pipe is no news.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io(shown.clone()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Tool { command: shown, output: format!("{} {}{}", output.status, said.trim(), text.trim()) })
}

/// The error for a program that could not be started.
pub(crate) fn cannot_start(command: &Command, error: io::Error) -> Error {
    let tool = command.get_program().to_string_lossy().into_owned();
    match package(&tool) {
        Some(package) if error.kind() == io::ErrorKind::NotFound => Error::MissingTool { tool, package },
        _ => Error::Io { what: tool, source: error },
    }
}

/// The Debian package that holds a tool.
fn package(tool: &str) -> Option<&'static str> {
    Some(match tool {
        "ip" | "bridge" | "tc" | "ss" => "iproute2",
        "nft" => "nftables",
        "iperf3" => "iperf3",
        "ping" => "iputils-ping",
        "etcd" => "etcd-server",
        "etcdctl" => "etcd-client",
        _ => return None,
    })
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
