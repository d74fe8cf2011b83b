//! Leases in etcd v3, laid out as flannel does: `<prefix>/config` and
//! `<prefix>/subnets/<subnet>` (flannel pkg/subnet/etcd/registry.go). The
//! built-in store speaks the same API and is used through the same client.

mod acquire;
mod admin;
mod connection;
mod keyspace;
mod listing;
mod renew;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Channel, GetOptions, ResponseHeader};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::model::LeaseAttrs;

use super::{Held, Origin, Position, Renewal, Snapshot, Store, StoreError, StoreEvent, Want};
pub use admin::{BrokenRecord, TimeLeft};
use connection::{Connection, Failure};
use keyspace::Keyspace;

/// How long a lease lives without renewal (flannel: 24 hours).
const LEASE_TTL: Duration = Duration::from_secs(86_400);

/// How to reach an etcd cluster.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `http://127.0.0.1:2379`, `https://…`; tried in turn. Without a scheme:
    /// https where a client certificate is given, else http.
    pub endpoints: Vec<String>,
    /// `/coreos.com/network`.
    pub prefix: String,
    pub tls: TlsFiles,
    pub credentials: Option<Credentials>,
}

/// PEM files, read at each connect so that renewed certificates are taken up.
/// Used with `https` endpoints. The CA counts without a client certificate too
/// (flannel ignores it then); without a CA the system's roots are trusted.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    pub key: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

/// A user of the store. The password is never printed.
#[derive(Clone)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The store in etcd. Cheap to clone; connects when first used and again after
/// every failure.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    connection: Arc<Connection>,
    keys: Keyspace,
    description: Arc<str>,
    lease_ttl: Duration,
}

impl EtcdStore {
    /// Does not connect: the store may be away.
    ///
    /// Errors: no endpoint, a malformed one, a key without its certificate, a file
    /// that is not there or is not PEM.
    pub fn new(config: EtcdConfig) -> Result<EtcdStore, StoreError> {
        let endpoints = config.endpoints.iter().map(|e| e.rsplit('@').next().unwrap_or(e));
        let description = format!("etcd {} {}", endpoints.collect::<Vec<_>>().join(","), config.prefix);
        let keys = Keyspace::new(&config.prefix);
        let connection = Connection::new(config)
            .map_err(|cause| StoreError::Refused { store: description.clone(), cause })?;
        Ok(EtcdStore::build(connection, keys, description))
    }

    /// Over a channel that exists, such as a Unix socket or a service in this
    /// process. It must be lazy and reconnect by itself, as tonic's do.
    pub fn from_channel(channel: Channel, prefix: &str, description: impl Into<String>) -> EtcdStore {
        EtcdStore::from_channels(vec![channel], prefix, description)
    }

    /// One channel for each member of a store.
    pub fn from_channels(channels: Vec<Channel>, prefix: &str, description: impl Into<String>) -> EtcdStore {
        EtcdStore::build(Connection::from_channels(channels), Keyspace::new(prefix), description.into())
    }

    /// Other than 24 hours, in whole seconds. etcd raises what is below its
    /// election timeout.
    pub fn with_lease_ttl(mut self, ttl: Duration) -> EtcdStore {
        self.lease_ttl = ttl;
        self
    }

    fn build(connection: Connection, keys: Keyspace, description: String) -> EtcdStore {
        EtcdStore {
            connection: Arc::new(connection),
            keys,
            description: description.into(),
            lease_ttl: LEASE_TTL,
        }
    }

    fn error(&self, failure: &Failure) -> StoreError {
        let (store, cause) = (self.description.to_string(), failure.to_string());
        match failure.is_refusal() {
            true => StoreError::Refused { store, cause },
            false => StoreError::Unavailable { store, cause },
        }
    }
}

impl Store for EtcdStore {
    fn describe(&self) -> String {
        self.description.to_string()
    }

    fn network_config(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(async {
            let key = self.keys.config();
            let response = self
                .connection
                .call(|client| {
                    let key = key.clone();
                    async move { connection::kv(&client).get(key, None::<GetOptions>).await }
                })
                .await
                .map_err(|failure| self.error(&failure))?;
            let value = response.kvs().first().map(|kv| String::from_utf8(kv.value().to_vec()));
            value.transpose().map_err(|_| StoreError::Refused {
                store: self.description.to_string(),
                cause: format!("{key}: not UTF-8: put a JSON network config there"),
            })
        })
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        Box::pin(listing::snapshot(self))
    }

    fn acquire<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(acquire::acquire(self, snapshot, want))
    }

    fn renew<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        Box::pin(renew::renew(self, held))
    }

    fn update<'a>(
        &'a self,
        held: &'a Held,
        attrs: &'a LeaseAttrs,
    ) -> BoxFuture<'a, Result<Option<Held>, StoreError>> {
        Box::pin(renew::update(self, held, attrs))
    }

    fn watch(&self, from: Position) -> BoxStream<'static, StoreEvent> {
        watch::watch(self.clone(), from)
    }
}

/// The history that an answer is of.
fn origin(header: &ResponseHeader) -> Origin {
    Origin { cluster: header.cluster_id(), term: header.raft_term() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_endpoints_and_half_a_key_pair_are_refused() {
        let cases: [(&[&str], bool, &str); 6] = [
            (&[], false, "no endpoint"),
            (&["ftp://127.0.0.1"], false, "http[s]://HOST:PORT"),
            (&["http://"], false, "http[s]://HOST:PORT"),
            (&["http://127.0.0.1:2379", "no host"], false, "\"no host\""),
            (&["http://root:secret@127.0.0.1:2379"], false, "by their own options"),
            (&["https://127.0.0.1:2379"], true, "give both files"),
        ];
        for (endpoints, half, expected) in cases {
            let config = EtcdConfig {
                endpoints: endpoints.iter().map(|&e| e.to_owned()).collect(),
                prefix: "/coreos.com/network".into(),
                tls: TlsFiles { key: half.then(|| "key.pem".into()), ..TlsFiles::default() },
                credentials: None,
            };
            let error = EtcdStore::new(config).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let credentials = Credentials { user: "root".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
