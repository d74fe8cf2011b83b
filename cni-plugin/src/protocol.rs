use std::io::Read;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::request::{Command, Request};
use crate::version::Version;
use crate::{attach, check};

/// More than any config with its `prevResult`.
const CONFIG_LIMIT: u64 = 4 << 20;

/// What goes to standard output, and how the process ends.
#[derive(Debug)]
pub struct Reply {
    pub output: String,
    pub exit: ExitCode,
}

/// Carry out what the environment (`var`) and the config (`stdin`) ask for.
pub fn serve(stdin: impl Read, var: impl Fn(&str) -> Option<String>) -> Reply {
    let mut version = Version::NEWEST;
    match run(stdin, var, &mut version) {
        Ok(output) => {
            Reply { output: output.map(|v| v.to_string()).unwrap_or_default(), exit: ExitCode::SUCCESS }
        }
        Err(e) => Reply { output: e.render(version).to_string(), exit: ExitCode::FAILURE },
    }
}

fn run(
    stdin: impl Read,
    var: impl Fn(&str) -> Option<String>,
    version: &mut Version,
) -> Result<Option<Value>> {
    let Some(command) = var("CNI_COMMAND").filter(|c| !c.is_empty()) else {
        eprintln!("weft-cni {}: a CNI plugin, to be run by a container runtime", env!("CARGO_PKG_VERSION"));
        return Err(Error::new(Code::Environment, "required env variables [CNI_COMMAND] missing"));
    };
    let command = Command::parse(&command)?;
    if command == Command::Version {
        let supported = Version::ALL.map(Version::as_str);
        return Ok(Some(json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": supported })));
    }
    let config = Config::parse(&read(stdin)?)?;
    *version = config.version;
    match command {
        Command::Status | Command::Gc if config.version < Version::V1_1_0 => {
            let msg = format!("cniVersion {} does not allow {}", config.version, command.as_str());
            Err(Error::new(Code::IncompatibleVersion, msg))
        }
        Command::Status => attach::status(&config).map(|()| None),
        // What DEL does leaves nothing to collect; flannel's plugin answers the same.
        Command::Gc | Command::Version => Ok(None),
        Command::Add | Command::Del | Command::Check => {
            let request = Request::from_env(command, var)?;
            match command {
                Command::Add => attach::add(&config, &request).map(Some),
                Command::Del => attach::del(&config, &request).map(|()| None),
                _ => check::check(&config, &request).map(|()| None),
            }
        }
    }
}

fn read(stdin: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stdin
        .take(CONFIG_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new(Code::Io, format!("read standard input: {e}")))?;
    Ok(bytes)
}
