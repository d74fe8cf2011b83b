//! Executing another plugin (SPEC.md, "Section 4: Plugin Delegation"): it
//! inherits the environment, gets a config on standard input and answers on
//! standard output.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::{self, Stdio};

use serde_json::Value;

use super::error::{Code, Error, Result};
use super::request::Command;

/// A plugin found in `CNI_PATH`.
#[derive(Clone, Debug)]
pub struct Program(PathBuf);

impl Program {
    /// `name` has no path separators: the config's parser refuses them. A folder
    /// that is empty or relative would be one of the caller's working directory.
    pub fn find(name: &str) -> Result<Program> {
        let path = env::var_os("CNI_PATH").unwrap_or_default();
        let folders = env::split_paths(&path).filter(|dir| dir.is_absolute());
        let found = folders.map(|dir| dir.join(name)).find(|file| file.is_file());
        found.map(Program).ok_or_else(|| {
            let msg = format!("plugin {name:?} is not in CNI_PATH {:?}", path.to_string_lossy());
            Error::new(Code::NetworkConfig, msg)
        })
    }

    pub fn name(&self) -> &str {
        self.0.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }

    /// What it printed. Its error is passed on as it stands.
    pub fn run(&self, command: Command, stdin: &[u8]) -> Result<Vec<u8>> {
        let failed = |e| Error::io("execute", &self.0, &e);
        let mut child = process::Command::new(&self.0)
            .env("CNI_COMMAND", command.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut pipe) = child.stdin.take() {
            // A plugin that does not read its config says so itself.
            let _ = pipe.write_all(stdin);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.error(&output))
    }

    fn error(&self, output: &process::Output) -> Error {
        let said = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        let text = |key| said.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(code) = said.get("code").and_then(Value::as_u64) else {
            let msg = format!("plugin {}: {} without an error object", self.0.display(), output.status);
            return Error::new(Code::Internal, msg).details(String::from_utf8_lossy(&output.stdout));
        };
        Error { code, msg: format!("{}: {}", self.name(), text("msg")), details: text("details") }
    }
}

/// The result a plugin printed.
pub fn json(output: &[u8], plugin: &Program) -> Result<Value> {
    serde_json::from_slice(output)
        .map_err(|e| Error::new(Code::Decoding, format!("result of plugin {}: {e}", plugin.name())))
}
