//! The CNI specification: what comes in by environment and standard input, what
//! goes out, and the verbs between.

pub mod conf;
pub mod error;
pub mod exec;
pub mod fields;
pub mod request;
pub mod result;
pub mod version;

use std::io::Read;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::chain::{Chain, Site, VALID_ATTACHMENTS, Valid};
use crate::kind::Kind;
use conf::Conf;
use error::{Code, Error, Result};
use request::{Command, Request};
use version::Version;

/// More than any config with its `prevResult`.
const CONFIG_LIMIT: u64 = 4 << 20;

/// What goes to standard output, and how the process ends.
#[derive(Debug)]
pub struct Reply {
    pub output: String,
    pub exit: ExitCode,
}

/// Carry out what the environment (`var`) and the config (`stdin`) ask for.
pub fn serve(kind: Kind, stdin: impl Read, var: impl Fn(&str) -> Option<String>) -> Reply {
    let mut version = Version::NEWEST;
    match run(kind, stdin, var, &mut version) {
        Ok(output) => {
            Reply { output: output.map(|v| v.to_string()).unwrap_or_default(), exit: ExitCode::SUCCESS }
        }
        Err(e) => Reply { output: e.render(version).to_string(), exit: ExitCode::FAILURE },
    }
}

fn run(
    kind: Kind,
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
        let supported: Vec<_> = Version::since(kind.oldest()).map(Version::as_str).collect();
        return Ok(Some(json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": supported })));
    }
    let conf = Conf::parse(&read(stdin)?, "network config on standard input")?;
    *version = conf.version;
    conf.version.supports(command, kind.oldest())?;
    let chain = kind.chain(&conf)?;
    match command {
        Command::Status => return chain.status().map(|()| None),
        Command::Gc => return gc(&chain, &conf).map(|()| None),
        _ => {}
    }
    let request = Request::from_env(command, var)?;
    let site = Site { network: conf.network.clone(), request };
    let prev = conf.prev_result.as_ref();
    match command {
        Command::Add => return chain.add(&site, prev).map(|result| Some(result.render(conf.version))),
        Command::Check => {
            let missing = || Error::new(Code::NetworkConfig, "prevResult: missing, and CHECK needs it");
            chain.check(&site, prev.ok_or_else(missing)?)?;
        }
        _ => chain.del(&site, prev)?,
    }
    Ok(None)
}

/// Who does not say what is in use is told so, and nothing is done.
fn gc(chain: &Chain, conf: &Conf) -> Result<()> {
    let Some(valid) = Valid::of(conf)? else {
        let network = &conf.network;
        eprintln!("weft-cni: GC of {network} without {VALID_ATTACHMENTS}: nothing is known to be stale");
        return Ok(());
    };
    chain.gc(&conf.network, &valid)
}

fn read(stdin: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stdin
        .take(CONFIG_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new(Code::Io, format!("read standard input: {e}")))?;
    Ok(bytes)
}
