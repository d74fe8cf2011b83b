use std::io;
use std::time::Duration;

/// What can go wrong in a lab: the object, the cause and the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network namespaces need root: run it with sudo")]
    NotRoot,
    #[error("{tool} is not installed: apt-get install {package}")]
    MissingTool { tool: String, package: &'static str },
    #[error("{command}: {output}")]
    Tool { command: String, output: String },
    #[error("{name:?}: a name is 1 to 15 of a-z, 0-9 and '-'")]
    Name { name: String },
    #[error("{what}: segments are numbered 0 to 9 and hold 200 hosts each")]
    Full { what: String },
    #[error("namespace {name}: it is gone")]
    Gone { name: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{what}: not within {}", seconds(.limit))]
    Timeout { what: String, limit: Duration },
}

impl Error {
    /// For `map_err`: names what was being done when the system refused.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

fn seconds(limit: &Duration) -> String {
    format!("{:.1} s", limit.as_secs_f64())
}
