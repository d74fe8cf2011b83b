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
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::{StreamExt, stream};
use tokio::sync::Mutex;

use super::health::{self, Health};
use super::memory;
use super::metrics::{self, Sample};
use super::status::{self, StatusSource, Survey};

/// A survey is good for so long: any number of browsers cost one a second.
const FRESH: Duration = Duration::from_secs(1);
/// Peers in one answer to a browser, at the most.
const MAX_PAGE: usize = 500;
/// Peers that are written at a time where all are asked for.
const PART: usize = 250;
const PAGE: &str = include_str!("page.html");
/// Stands in the page where the nonce of its style and script belongs.
const NONCE: &str = "NONCE";

/// A daemon as others see it, from its first moment on.
#[derive(Debug)]
pub struct Site {
    health: Arc<Health>,
    /// Set when the node has joined.
    source: OnceLock<StatusSource>,
    recent: Mutex<Option<(Instant, Arc<Survey>)>>,
}

impl Site {
    pub fn new(health: Arc<Health>) -> Arc<Site> {
        Arc::new(Site { health, source: OnceLock::new(), recent: Mutex::new(None) })
    }

    /// There is something to tell now. Called once.
    pub fn joined(&self, source: StatusSource) {
        let _ = self.source.set(source);
    }

    fn source(&self) -> anyhow::Result<&StatusSource> {
        let why = || self.health.status().unready.unwrap_or_else(|| "not joined yet".to_owned());
        self.source.get().with_context(why)
    }

    async fn fresh(&self) -> anyhow::Result<Arc<Survey>> {
        let survey = self.source()?.survey(true).await?;
        // For a moment there were two pictures of the kernel.
        memory::give_back();
        Ok(Arc::new(survey))
    }

    /// By what the reconciler knows. One asks it, whoever comes meanwhile waits for
    /// that answer.
    async fn recent(&self) -> anyhow::Result<Arc<Survey>> {
        let mut recent = self.recent.lock().await;
        if let Some((at, survey)) = &*recent
            && at.elapsed() < FRESH
        {
            return Ok(survey.clone());
        }
        let survey = Arc::new(self.source()?.survey(false).await?);
        *recent = Some((Instant::now(), survey.clone()));
        Ok(survey)
    }

    /// The status as JSON. All peers are written as they are read, so that none of
    /// it ever lies in memory whole.
    fn answer(&self, survey: Arc<Survey>, query: &status::Query) -> anyhow::Result<Body> {
        let mut status = self.source()?.status(&survey);
        if let Some(take) = query.take {
            (status.peers, status.peer_count.found) = survey.page(query, take.min(MAX_PAGE));
            status.peer_count.map = survey.map();
            return Ok(serde_json::to_vec(&status)?.into());
        }
        let total = status.peer_count.total;
        status.peer_count.found = total;
        let json = serde_json::to_string(&status)?;
        let head = json.strip_suffix("]}").context("peers are not what a status ends with")?.to_owned();
        let parts = (0..total).step_by(PART).map(move |from| {
            let peers = survey.part(from..from + PART);
            let peers: Vec<_> = peers.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
            let comma = if from == 0 { "" } else { "," };
            Ok(format!("{comma}{}", peers.join(",")))
        });
        let ends = |text: String| stream::iter([Ok::<_, serde_json::Error>(text)]);
        Ok(Body::from_stream(ends(head).chain(stream::iter(parts)).chain(ends("]}".to_owned()))))
    }
}

/// For the admin socket, which alone has `/status`: its looks at the kernel are
/// root's to ask for.
pub fn router(site: Arc<Site>) -> Router {
    let afresh = Router::new().route("/status", get(status)).with_state(site.clone());
    for_all(site.clone()).merge(for_this_host(site)).merge(afresh)
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
    Router::new().route("/", get(page)).route("/status.json", get(recent_status)).with_state(site)
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

async fn status(State(site): State<Arc<Site>>, Query(query): Query<status::Query>) -> Response {
    json(site.fresh().await.and_then(|survey| site.answer(survey, &query)))
}

async fn recent_status(State(site): State<Arc<Site>>, Query(query): Query<status::Query>) -> Response {
    json(site.recent().await.and_then(|survey| site.answer(survey, &query)))
}

fn json(body: anyhow::Result<Body>) -> Response {
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
