//! Listeners: a Unix socket in the data directory, and TCP where asked for.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::proto::{PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer};
use futures_util::TryStreamExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::{Router, Server};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::authority::WithoutAuthority;
use super::check::MAX_MESSAGE;
use super::dir::{DataDir, Lock};
use super::engine::Engine;
use super::error::BuiltinError;
use super::keeper::take_from_keepers;
use super::server::Service;

/// Requests under way get so long when the store stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Certificate, key and the CA whose clients are let in; PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
}

/// A TCP address to serve.
#[derive(Clone, Debug)]
pub struct TcpListen {
    pub address: SocketAddr,
    /// Mutual TLS; without it only a loopback address is served.
    pub tls: Option<TlsFiles>,
    /// Serve plain TCP on any address.
    pub insecure: bool,
}

/// Where the store lives and who reaches it.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Holds `store.db`, `store.lock` and `store.sock`; made with mode 0700.
    pub data_dir: PathBuf,
    /// Socket files besides `store.sock`.
    pub unix: Vec<PathBuf>,
    pub tcp: Vec<TcpListen>,
}

/// Serves the store of `options.data_dir` until `shutdown`. A keeper that serves
/// it steps back, since only this call's options say where else to listen.
///
/// # Errors
/// [`BuiltinError::Locked`] where another call of this serves it already; else
/// what keeps it from opening the file or an address.
pub async fn serve(options: ServeOptions, shutdown: CancellationToken) -> Result<(), BuiltinError> {
    let dir = DataDir::prepare(&options.data_dir)?;
    let lock = match dir.try_lock()? {
        Some(lock) => lock,
        None => take_from_keepers(&dir, &shutdown).await?,
    };
    Owner::open(dir, lock, &options.unix, &options.tcp).await?.run(shutdown, false).await
}

/// The process that holds the lock, with its file open and its sockets bound.
pub(super) struct Owner {
    dir: DataDir,
    engine: Engine,
    thread: std::thread::JoinHandle<()>,
    unix: Vec<(PathBuf, UnixListener)>,
    tcp: Vec<(TcpListen, Option<ServerTlsConfig>, TcpListener)>,
    /// Last, so that it is let go of after everything else.
    lock: Lock,
}

impl Owner {
    pub async fn open(
        dir: DataDir,
        lock: Lock,
        unix: &[PathBuf],
        tcp: &[TcpListen],
    ) -> Result<Self, BuiltinError> {
        let tcp = bind_all(tcp).await?;
        let (engine, thread) = Engine::start(&dir.database())?;
        let sockets = std::iter::once(dir.socket()).chain(unix.iter().cloned());
        let unix = sockets
            .map(|path| bind_unix(&path).map(|listener| (path, listener)))
            .collect::<Result<_, _>>()?;
        Ok(Self { dir, engine, thread, unix, tcp, lock })
    }

    /// Serves until `shutdown`, then ends the streams, lets requests finish,
    /// closes the file and only then lets go of the lock.
    pub async fn run(self, shutdown: CancellationToken, yields: bool) -> Result<(), BuiltinError> {
        let Self { dir, engine, thread, unix, tcp, lock } = self;
        let stop = shutdown.child_token();
        let client_urls = client_urls(&unix, &tcp);
        tracing::info!(
            "store: serving {} at revision {} on {}: one machine's store; for high availability use etcd",
            engine.path.display(),
            engine.revision(),
            client_urls.join(", ")
        );
        let service = Service {
            engine: engine.clone(),
            client_urls,
            yields,
            shutdown: stop.clone(),
            tasks: TaskTracker::new(),
        };
        let mut servers = JoinSet::new();
        for (path, listener) in unix {
            let (router, stop) = (router(&service, Server::builder()), stop.clone());
            servers.spawn(async move {
                let incoming = UnixListenerStream::new(listener).map_ok(WithoutAuthority::plain);
                let served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await;
                served.map_err(|cause| BuiltinError::Serve { address: path.display().to_string(), cause })
            });
        }
        for (listen, tls, listener) in tcp {
            let address = listen.address.to_string();
            let mut server = Server::builder().http2_keepalive_interval(Some(Duration::from_secs(30)));
            let wrap = if tls.is_some() { WithoutAuthority::tls } else { WithoutAuthority::plain };
            if let Some(tls) = tls {
                let failed = |cause| BuiltinError::Tls { address: address.clone(), cause };
                server = server.tls_config(tls).map_err(failed)?;
            }
            let (router, stop) = (router(&service, server), stop.clone());
            servers.spawn(async move {
                let incoming = TcpListenerStream::new(listener).map_ok(wrap);
                let served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await;
                served.map_err(|cause| BuiltinError::Serve { address, cause })
            });
        }
        let result = wait(&mut servers, &stop).await;
        service.tasks.close();
        let drained = async {
            while servers.join_next().await.is_some() {}
            service.tasks.wait().await;
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            servers.shutdown().await;
        }
        engine.stop();
        // It ends with what is queued; a panic in it has been reported.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        let _ = std::fs::remove_file(dir.socket());
        drop(lock);
        result
    }
}

/// Until `stop`, or until one listener fails, which stops the others.
async fn wait(
    servers: &mut JoinSet<Result<(), BuiltinError>>,
    stop: &CancellationToken,
) -> Result<(), BuiltinError> {
    let ended = tokio::select! {
        () = stop.cancelled() => None,
        ended = servers.join_next() => ended,
    };
    stop.cancel();
    match ended {
        Some(Ok(result)) => result,
        _ => Ok(()),
    }
}

fn router(service: &Service, server: Server) -> Router {
    let mut server = server.max_concurrent_streams(Some(4096));
    server
        .add_service(PbKvServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(PbWatchServer::new(service.clone()))
        .add_service(PbLeaseServer::new(service.clone()))
        .add_service(PbClusterServer::new(service.clone()))
        .add_service(PbMaintenanceServer::new(service.clone()))
}

fn client_urls(
    unix: &[(PathBuf, UnixListener)],
    tcp: &[(TcpListen, Option<ServerTlsConfig>, TcpListener)],
) -> Vec<String> {
    let unix = unix.iter().map(|(path, _)| format!("unix://{}", path.display()));
    let tcp = tcp.iter().map(|(listen, tls, listener)| {
        let scheme = if tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", listener.local_addr().unwrap_or(listen.address))
    });
    unix.chain(tcp).collect()
}

/// Binds beside the path and renames over it: a stale file is replaced in one
/// step, and no client sees a socket that does not listen or others may use.
/// The caller's lock says that no live store listens there.
fn bind_unix(path: &Path) -> Result<UnixListener, BuiltinError> {
    let beside = path.with_extension(format!("sock.{}", std::process::id()));
    let bind = || {
        let _ = std::fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&beside, path)?;
        Ok(listener)
    };
    bind().map_err(|cause| BuiltinError::Listen { address: format!("unix://{}", path.display()), cause })
}

async fn bind_all(
    tcp: &[TcpListen],
) -> Result<Vec<(TcpListen, Option<ServerTlsConfig>, TcpListener)>, BuiltinError> {
    let mut bound = Vec::new();
    for listen in tcp {
        if listen.tls.is_none() && !listen.insecure && !listen.address.ip().is_loopback() {
            return Err(BuiltinError::PlainTcp(listen.address));
        }
        let tls = listen.tls.as_ref().map(server_tls).transpose()?;
        let failed = |cause| BuiltinError::Listen { address: listen.address.to_string(), cause };
        let listener = TcpListener::bind(listen.address).await.map_err(failed)?;
        bound.push((listen.clone(), tls, listener));
    }
    Ok(bound)
}

fn server_tls(files: &TlsFiles) -> Result<ServerTlsConfig, BuiltinError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|cause| BuiltinError::TlsFile { path: path.into(), cause });
    Ok(ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?))
        .client_ca_root(Certificate::from_pem(read(&files.client_ca)?)))
}
