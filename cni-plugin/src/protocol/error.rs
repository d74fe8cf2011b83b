use std::fmt::Display;
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use thiserror::Error;

use super::version::Version;

/// Codes of the CNI specification (SPEC.md, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    IncompatibleVersion = 1,
    Environment = 4,
    Io = 5,
    Decoding = 6,
    NetworkConfig = 7,
    NetNs = 8,
    TryAgainLater = 11,
    NotAvailable = 50,
    Internal = 999,
}

/// What a runtime is told on standard output when a command fails. Every
/// module speaks this type, since each failure has to choose its code.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct Error {
    /// A `Code`, or what a delegated plugin chose.
    pub code: u64,
    pub msg: String,
    pub details: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(code: Code, msg: impl Into<String>) -> Error {
        Error { code: code as u64, msg: msg.into(), details: String::new() }
    }

    pub fn details(self, details: impl Into<String>) -> Error {
        Error { details: details.into(), ..self }
    }

    /// A value of the network config that is not what its field takes.
    pub fn field(at: impl Display, value: impl Display, expected: impl Display) -> Error {
        Error::new(Code::NetworkConfig, format!("{at}: {value}: expected {expected}"))
    }

    pub fn io(what: &str, path: &Path, cause: &io::Error) -> Error {
        Error::new(Code::Io, format!("{what} {}: {cause}", path.display()))
    }

    pub fn internal(msg: impl Display) -> Error {
        Error::new(Code::Internal, msg.to_string())
    }

    /// The error object of the specification.
    pub fn render(&self, version: Version) -> Value {
        let mut object = json!({ "cniVersion": version.to_string(), "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}
