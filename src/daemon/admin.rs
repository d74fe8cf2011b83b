//! The admin socket: what `weft status` asks. HTTP on a Unix socket that only
//! root may open, with all that `web` has.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::status::Status;
use super::web::{self, Site};

/// Where the socket is unless told otherwise.
pub const SOCKET: &str = "/run/weft/admin.sock";

/// A status of 65,000 peers stays well below this.
const MAX_ANSWER: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until `stop`. The socket is made at once, so that a failure is
/// reported at start.
pub fn serve(
    path: &Path,
    site: Arc<Site>,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let path = path.to_owned();
    let listener = listen(&path).with_context(|| format!("admin socket {}", path.display()))?;
    let router = web::router(site);
    Ok(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        remove(&path);
        served.context("admin socket")
    })
}

/// Asks the daemon behind `path`, for `peers` of the peers, those in trouble first,
/// or for all of them.
pub async fn ask(path: &Path, peers: Option<usize>) -> anyhow::Result<Status> {
    let asked = tokio::time::timeout(PATIENCE, request(path, peers)).await;
    let body =
        asked.map_err(|_| anyhow::anyhow!("no answer in {} s", PATIENCE.as_secs())).and_then(|body| body);
    let body = body.with_context(|| format!("daemon at {}", path.display()))?;
    serde_json::from_slice(&body).with_context(|| format!("answer of the daemon at {}", path.display()))
}

async fn request(path: &Path, peers: Option<usize>) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(path).await.map_err(|error| {
        anyhow::anyhow!("{error}: is `weft daemon` running, and is this its --admin-socket?")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let take = peers.map_or_else(String::new, |peers| format!("?take={peers}"));
        let request = hyper::Request::get(format!("/status{take}"));
        let request = request.header("host", "weft").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        if !status.is_success() {
            bail!("{}", String::from_utf8_lossy(&body).trim());
        }
        anyhow::Ok(body)
    };
    tokio::select! {
        answer = exchange => answer,
        closed = connection => bail!("the connection was closed: {closed:?}"),
    }
}

fn listen(path: &PathBuf) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // A daemon that was killed leaves its socket; one that lives answers.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another daemon serves it: give each its own --admin-socket");
    }
    remove(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn remove(path: &Path) {
    // Gone already is as good.
    let _ = std::fs::remove_file(path);
}
