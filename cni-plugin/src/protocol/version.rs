use std::fmt;

use super::error::{Code, Error, Result};
use super::request::Command;

/// A version of the CNI specification: which fields a result has and which
/// commands there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    pub const NEWEST: Version = Version::V1_1_0;

    /// `cniVersion` of a config; one without it is older than the field.
    pub fn of_config(text: Option<&str>) -> Result<Version> {
        let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(Version::V0_1_0) };
        Version::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| {
            let supported = Version::ALL.map(Version::as_str).join(", ");
            Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
                .details(format!("cniVersion is {text:?}, supported are {supported}"))
        })
    }

    /// From `oldest` on.
    pub fn since(oldest: Version) -> impl Iterator<Item = Version> {
        Version::ALL.into_iter().filter(move |version| *version >= oldest)
    }

    /// That a config of this version may be used for `command` with a plugin
    /// that knows the versions from `oldest` on. DEL may always be called: it
    /// is what a runtime does after an ADD that was refused.
    pub fn supports(self, command: Command, oldest: Version) -> Result<()> {
        let first = match command {
            Command::Check => Version::V0_4_0,
            Command::Status | Command::Gc => Version::V1_1_0,
            _ => Version::V0_1_0,
        };
        if command == Command::Del || self >= first.max(oldest) {
            return Ok(());
        }
        let msg = format!("cniVersion {self} does not allow {}", command.as_str());
        let since = format!("it needs {} or newer", first.max(oldest));
        Err(Error::new(Code::IncompatibleVersion, msg).details(since))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
