//! Errors: etcd's own for clients (code and text as
//! `api/v3rpc/rpctypes/error.go` has them), and ours for whoever opens the store.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

/// Why the store did not open or stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    #[error("{path}: {cause}: the store needs this directory to itself and must be able to write there", path = .path.display())]
    DataDir { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}", path = .path.display())]
    Lock { path: PathBuf, cause: io::Error },
    #[error("{dir}: another process{pid} serves this store; connect to {socket} or stop that process first",
        dir = .dir.display(), socket = .socket.display())]
    Locked { dir: PathBuf, socket: PathBuf, pid: String },
    #[error("{path}: not a weft store ({cause}); it was left as it is: move it away or name another data directory",
        path = .path.display())]
    Foreign { path: PathBuf, cause: String },
    #[error("{path}: schema version {found}, this weft knows up to {known}: install a newer weft",
        path = .path.display())]
    Newer { path: PathBuf, found: i32, known: i32 },
    #[error("{path}: damaged ({cause}); it was left as it is: restore a copy or move it away",
        path = .path.display())]
    Damaged { path: PathBuf, cause: String },
    #[error("{path}: {cause}", path = .path.display())]
    Sqlite { path: PathBuf, cause: rusqlite::Error },
    #[error("listen on {address}: {cause}")]
    Listen { address: String, cause: io::Error },
    #[error(
        "listen on {0}: plain TCP would give the store to anyone who reaches this address: \
         name certificate, key and client CA, or a loopback address"
    )]
    PlainTcp(std::net::SocketAddr),
    #[error("{path}: {cause}", path = .path.display())]
    TlsFile { path: PathBuf, cause: io::Error },
    #[error("TLS on {address}: {cause}")]
    Tls { address: String, cause: tonic::transport::Error },
    #[error("serve {address}: {cause}")]
    Serve { address: String, cause: tonic::transport::Error },
    #[error("start a thread: {0}")]
    Thread(io::Error),
}

/// Why one request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: server stopped")]
    Stopped,
    /// Nothing of the transaction it stood in was written.
    #[error(transparent)]
    Storage(#[from] rusqlite::Error),
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        use RequestError as E;
        let code = match &error {
            E::EmptyKey
            | E::KeyNotFound
            | E::ValueProvided
            | E::LeaseProvided
            | E::TooManyOps
            | E::DuplicateKey
            | E::TooLarge => Code::InvalidArgument,
            E::Compacted | E::FutureRevision | E::LeaseTtlTooLarge => Code::OutOfRange,
            E::LeaseNotFound => Code::NotFound,
            E::LeaseExists => Code::FailedPrecondition,
            E::Stopped => Code::Unavailable,
            E::Storage(cause) => return storage_status(cause),
        };
        Status::new(code, error.to_string())
    }
}

pub(super) fn storage_status(cause: &rusqlite::Error) -> Status {
    match cause.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
        }
        _ => Status::unavailable(format!("weft store: {cause}")),
    }
}
