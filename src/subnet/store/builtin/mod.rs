//! The built-in store: one machine's store, for high availability there is etcd.
//!
//! It serves the part of etcd's v3 API that weft and `etcdctl` need, with etcd's
//! answers and errors, over SQLite; every answer is durable before it is given.
//! So there is one client path, [`super::etcd`], for both stores.
//!
//! - History: the last 10,000 revisions are kept, older ones are compacted away
//!   about every thousand, so that the file does not grow for ever.
//! - Leases: a restart or a takeover gives each its whole time to live again, as
//!   a change of leader does in etcd.
//! - A watch from exactly the compacted revision sees that revision's deletions
//!   too, as in etcd since 3.5.17.

mod authority;
mod check;
mod cluster;
mod dir;
mod engine;
mod error;
mod keeper;
mod serve;
mod server;
mod watch;

pub use dir::{DEFAULT_DATA_DIR, SOCKET};
pub use error::BuiltinError;
pub use keeper::{Keeper, KeeperHandle, Role, connect};
pub use serve::{ServeOptions, TcpListen, TlsFiles, serve};

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};

/// What an empty built-in store starts with unless told otherwise.
pub const DEFAULT_NETWORK_CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Puts `<prefix>/config` where there is none. True if it was put.
///
/// # Errors
/// Those of the client.
pub async fn seed_config(
    client: &mut Client,
    prefix: &str,
    config_json: &str,
) -> Result<bool, etcd_client::Error> {
    let key = format!("{}/config", prefix.trim_end_matches('/'));
    let absent = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
    let put = TxnOp::put(key, config_json, None);
    Ok(client.txn(Txn::new().when([absent]).and_then([put])).await?.succeeded())
}
