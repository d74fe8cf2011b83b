//! What the listeners serve: health, metrics, and a status page with the JSON
//! that it shows.
//!
//! Names and addresses of the cluster are for this host only: by TCP the page and
//! its JSON answer loopback alone, and no name that someone else's DNS may have
//! pointed here.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper::body::Bytes;
use tokio::sync::Mutex;

use super::health::{self, Health};
use super::metrics::{self, Sample};
use super::status::StatusSource;

/// An answer is good for so long: any number of browsers cost one look at the
/// kernel a second.
const FRESH: Duration = Duration::from_secs(1);
const PAGE: &str = include_str!("page.html");
/// Stands in the page where the nonce of its style and script belongs.
const NONCE: &str = "NONCE";

/// A daemon as others see it, from its first moment on.
#[derive(Debug)]
pub struct Site {
    health: Arc<Health>,
    /// Set when the node has joined.
    source: OnceLock<StatusSource>,
    answer: Mutex<Option<(Instant, Bytes)>>,
}

impl Site {
    pub fn new(health: Arc<Health>) -> Arc<Site> {
        Arc::new(Site { health, source: OnceLock::new(), answer: Mutex::new(None) })
    }

    /// There is something to tell now. Called once.
    pub fn joined(&self, source: StatusSource) {
        let _ = self.source.set(source);
    }

    fn source(&self) -> anyhow::Result<&StatusSource> {
        let why = || self.health.status().unready.unwrap_or_else(|| "not joined yet".to_owned());
        self.source.get().with_context(why)
    }

    async fn fresh(&self) -> anyhow::Result<Bytes> {
        let status = self.source()?.status().await?;
        Ok(serde_json::to_vec(&status)?.into())
    }

    /// One asks the kernel, whoever comes meanwhile waits for that answer.
    async fn recent(&self) -> anyhow::Result<Bytes> {
        let mut answer = self.answer.lock().await;
        if let Some((at, body)) = &*answer
            && at.elapsed() < FRESH
        {
            return Ok(body.clone());
        }
        let body = self.fresh().await?;
        *answer = Some((Instant::now(), body.clone()));
        Ok(body)
    }
}

/// For the admin socket.
pub fn router(site: Arc<Site>) -> Router {
    for_all(site.clone()).merge(for_this_host(site))
}

/// For a TCP listener, which tells who asks (`ConnectInfo`).
pub fn on_tcp(site: Arc<Site>) -> Router {
    for_all(site.clone()).merge(for_this_host(site).layer(from_fn(only_loopback)))
}

fn for_all(site: Arc<Site>) -> Router {
    let health = Router::new()
        .route("/healthz", any(health::healthz))
        .route("/readyz", any(health::readyz))
        .with_state(site.health.clone());
    Router::new().route("/metrics", get(metrics)).with_state(site).merge(health)
}

fn for_this_host(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/status.json", get(recent_status))
        .with_state(site)
}

async fn metrics(State(site): State<Arc<Site>>) -> Response {
    let health = site.health.status();
    let sample =
        Sample { ready: health.unready.is_none(), live: health.late.is_empty(), joined: site.source.get() };
    match metrics::text(&sample) {
        Ok(text) => ([(CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn status(State(site): State<Arc<Site>>) -> Response {
    json(site.fresh().await)
}

async fn recent_status(State(site): State<Arc<Site>>) -> Response {
    json(site.recent().await)
}

fn json(body: anyhow::Result<Bytes>) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    match body {
        Ok(body) => (headers, body).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")).into_response(),
    }
}

/// Its script makes text nodes only, and the policy leaves nothing else to run
/// or to load.
async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, "no-store".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, PAGE.replace(NONCE, &nonce)).into_response()
}

async fn only_loopback(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    if !peer.is_some_and(|ip| ip.to_canonical().is_loopback()) || !names_an_address(request.headers()) {
        let text = "the status is for this host: ask on it, by 127.0.0.1, or by `weft status`\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

fn names_an_address(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return true };
    let is_ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    is_ip(host) || is_ip(name) || name == "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_name_is_not_answered() {
        let named = |host: &str| names_an_address(&HeaderMap::from_iter([(HOST, host.parse().unwrap())]));
        for host in ["127.0.0.1:8471", "[::1]:8471", "[::1]", "localhost", "localhost:8471"] {
            assert!(named(host), "{host}");
        }
        for host in ["rebound.example", "rebound.example:8471", "127.0.0.1.example:8471", ""] {
            assert!(!named(host), "{host}");
        }
    }
}
