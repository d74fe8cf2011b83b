use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, KvClient, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::Code;

use super::{Credentials, EtcdConfig, TlsFiles};

/// Short, since what was sent into a partition is sent again only after 1 s, 3 s,
/// 7 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For one call to one endpoint, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings while a call or a watch is open, without which a watch on a dead
/// peer would hang for ever. Not while idle: etcd hangs up on those, and on pings
/// more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer taken in: bounds what a hostile store can make us hold.
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// The endpoints of one store. A call goes to the endpoint that answered last;
/// where it fails the others are tried in turn, so that it ends within
/// `CALL_TIMEOUT` each.
#[derive(Debug)]
pub(super) struct Connection {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    tls: TlsFiles,
    credentials: Option<Credentials>,
}

struct Endpoint {
    target: Target,
    /// `None` until connected, and after a failure.
    client: Mutex<Option<Client>>,
}

#[derive(Clone, Debug)]
enum Target {
    Url(String),
    Channel(etcd_client::Channel),
}

impl Connection {
    pub(super) fn new(config: EtcdConfig) -> Result<Connection, String> {
        let EtcdConfig { endpoints, tls, credentials, .. } = config;
        if endpoints.is_empty() {
            return Err("no endpoint: give one as http://127.0.0.1:2379".into());
        }
        if tls.key.is_some() != tls.cert.is_some() {
            return Err("a TLS key needs its certificate and the other way round: give both files".into());
        }
        check(&tls)?;
        let endpoints =
            endpoints.iter().map(|e| url(e, &tls).map(Target::Url)).collect::<Result<Vec<_>, _>>()?;
        Ok(Connection::build(endpoints, tls, credentials))
    }

    pub(super) fn from_channels(channels: Vec<etcd_client::Channel>) -> Connection {
        let targets = channels.into_iter().map(Target::Channel).collect();
        Connection::build(targets, TlsFiles::default(), None)
    }

    fn build(targets: Vec<Target>, tls: TlsFiles, credentials: Option<Credentials>) -> Connection {
        let endpoints =
            targets.into_iter().map(|target| Endpoint { target, client: Mutex::new(None) }).collect();
        Connection { endpoints, current: AtomicUsize::new(0), tls, credentials }
    }

    /// Ask one endpoint after the other until one answers, be it by a refusal.
    /// `op` may so be run twice, the first time with an unknown outcome.
    pub(super) async fn call<T, F, Fut>(&self, op: F) -> Result<T, Failure>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for i in 0..self.endpoints.len() {
            let index = (first + i) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            match self.attempt(endpoint, &op).await {
                Ok(value) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(failure) if failure.is_answer() || failure.is_refusal() => return Err(failure),
                Err(failure) => failures.push(format!("{endpoint}{failure}")),
            }
        }
        Err(Failure { code: Code::Unavailable, message: failures.join("; ") })
    }

    /// Ask one endpoint. A connection from before may have died unnoticed, so
    /// that its failure says nothing: it is tried again on a new one.
    async fn attempt<T, F, Fut>(&self, endpoint: &Endpoint, op: &F) -> Result<T, Failure>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        loop {
            let old = endpoint.client.lock().await.is_some();
            let call = async { op(self.client(endpoint).await?).await };
            let failure = match timeout(CALL_TIMEOUT, call).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => Failure::new(&error),
                Err(_) => Failure::timeout(),
            };
            if failure.is_answer() {
                return Err(failure);
            }
            // A new client reads the certificates and logs in afresh.
            *endpoint.client.lock().await = None;
            if !old || failure.code == Code::DeadlineExceeded {
                return Err(failure);
            }
        }
    }

    /// Begin with another endpoint at the next call: this one broke a stream.
    pub(super) fn rotate(&self) {
        let next = (self.current.load(Ordering::Relaxed) + 1) % self.endpoints.len();
        self.current.store(next, Ordering::Relaxed);
    }

    /// Connect afresh at the next call.
    pub(super) async fn reset(&self) {
        for endpoint in &self.endpoints {
            *endpoint.client.lock().await = None;
        }
    }

    async fn client(&self, endpoint: &Endpoint) -> Result<Client, Error> {
        let mut slot = endpoint.client.lock().await;
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let client = self.connect(&endpoint.target).await?;
        Ok(slot.insert(client).clone())
    }

    async fn connect(&self, target: &Target) -> Result<Client, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(Credentials { user, password }) = &self.credentials {
            options = options.with_user(user, password);
        }
        match target {
            Target::Channel(channel) => Client::from_channel(channel.clone(), Some(options)).await,
            Target::Url(url) if url.starts_with("https://") => {
                let tls = tls_options(&self.tls).await?;
                Client::connect([url], Some(options.with_tls(tls))).await
            }
            Target::Url(url) => Client::connect([url], Some(options)).await,
        }
    }
}

/// The part of a client that reads and writes keys.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_MESSAGE)
}

fn url(endpoint: &str, tls: &TlsFiles) -> Result<String, String> {
    let url = match endpoint.split_once("://") {
        Some(_) => endpoint.to_owned(),
        None if tls.cert.is_some() => format!("https://{endpoint}"),
        None => format!("http://{endpoint}"),
    };
    let uri: tonic::transport::Uri =
        url.parse().map_err(|e| format!("endpoint {endpoint:?}: {e}: give http[s]://HOST:PORT"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("an endpoint with a user in it: give user and password by their own options".into());
    }
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(url),
        _ => Err(format!("endpoint {endpoint:?}: give http[s]://HOST:PORT")),
    }
}

/// What is not there at the start is a mistake; later it may be in the midst of a
/// renewal.
fn check(files: &TlsFiles) -> Result<(), String> {
    for path in [&files.ca, &files.cert, &files.key].into_iter().flatten() {
        let name = path.display();
        let pem = std::fs::read(path).map_err(|e| format!("{name}: {e}: give a PEM file that is there"))?;
        if !String::from_utf8_lossy(&pem).contains("-----BEGIN ") {
            return Err(format!("{name}: nothing in it is PEM: give a PEM file"));
        }
    }
    Ok(())
}

async fn tls_options(files: &TlsFiles) -> Result<TlsOptions, Error> {
    let mut options = TlsOptions::new();
    options = match &files.ca {
        Some(ca) => options.ca_certificate(Certificate::from_pem(read(ca).await?)),
        None => options.with_native_roots(),
    };
    let (Some(cert), Some(key)) = (&files.cert, &files.key) else { return Ok(options) };
    Ok(options.identity(Identity::from_pem(read(cert).await?, read(key).await?)))
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    let error = |e| Error::InvalidArgs(format!("{}: {e}", Path::display(path)));
    tokio::fs::read(path).await.map_err(error)
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    message: String,
}

impl Failure {
    pub(super) fn new(error: &Error) -> Failure {
        match error {
            Error::GRpcStatus(status) => {
                // tonic says no more than "transport error"; the cause is below.
                let mut message = status.message().to_owned();
                let mut source = status.source();
                while let Some(error) = source {
                    let text = error.to_string();
                    if !message.contains(&text) {
                        message = format!("{message}: {text}");
                    }
                    source = error.source();
                }
                Failure { code: status.code(), message }
            }
            Error::LeaseKeepAliveError(message) => Failure { code: Code::NotFound, message: message.clone() },
            Error::InvalidArgs(message) => Failure { code: Code::InvalidArgument, message: message.clone() },
            Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Failure { code: Code::InvalidArgument, message: error.to_string() }
            }
            other => Failure { code: Code::Unavailable, message: other.to_string() },
        }
    }

    pub(super) fn timeout() -> Failure {
        Failure { code: Code::DeadlineExceeded, message: format!("no answer in {CALL_TIMEOUT:?}") }
    }

    pub(super) fn unavailable(message: &str) -> Failure {
        Failure { code: Code::Unavailable, message: message.to_owned() }
    }

    pub(super) fn refusal(message: String) -> Failure {
        Failure { code: Code::FailedPrecondition, message }
    }

    /// The store said no and will say so again: a person must act.
    pub(super) fn is_refusal(&self) -> bool {
        use Code::*;
        matches!(
            self.code,
            Unauthenticated | PermissionDenied | InvalidArgument | FailedPrecondition | Unimplemented
        )
    }

    /// An answer about the data asked for, not about the endpoint.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.code, Code::NotFound | Code::OutOfRange)
    }

    /// The revision asked for is gone.
    pub(super) fn is_compacted(&self) -> bool {
        self.code == Code::OutOfRange && self.message.contains("compacted")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// For messages: which of several endpoints it was.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Url(url) => write!(f, "{url}: "),
            Target::Channel(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.target, f)
    }
}
