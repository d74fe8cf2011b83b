//! This host's clock beside the store's.

use std::time::{Duration, SystemTime};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::DATE;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tower::Service;

use super::Check;
use super::facts::Facts;
use crate::subnet::store::TlsFiles;

/// More than the answer takes on any network, and less than certificates mind.
const TOLERATED: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn skew(facts: &Facts<'_>) -> Check {
    let Some(config) = facts.endpoints() else {
        return Check::new("clock", "the store is on this host's own clock");
    };
    let mut told = Vec::new();
    for url in &config.endpoints {
        if let Ok(Some(theirs)) = tokio::time::timeout(PATIENCE, date(url, &config.tls)).await {
            told.push((url, theirs, SystemTime::now()));
        }
    }
    if told.is_empty() {
        return Check::new("clock", "not compared: the store does not tell the time");
    }
    let mut check = Check::new("clock", format!("within {} s of the store's", TOLERATED.as_secs()));
    for (url, theirs, ours) in told {
        let (skew, word) = match ours.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        if skew > TOLERATED {
            check.problem(
                format!("this host's clock is {} s {word} {url}'s", skew.as_secs()),
                "certificates and logins are refused when clocks differ, and logs of nodes cannot be laid side by side; leases themselves count by durations",
                "let both follow one time server (timedatectl set-ntp true, or chrony)",
            );
        }
    }
    check
}

/// What an HTTP server says the time is, to the second. etcd says so in its plain
/// answers, and over TLS, as `weft store` does, in each.
async fn date(url: &str, tls: &TlsFiles) -> Option<SystemTime> {
    if let Some(authority) = url.strip_prefix("http://")
        && let Some(date) = plain(authority.trim_end_matches('/')).await
    {
        return Some(date);
    }
    let mut endpoint = Endpoint::from_shared(url.to_owned()).ok()?;
    if url.starts_with("https://") {
        let mut config = ClientTlsConfig::new().with_native_roots();
        if let Some(ca) = &tls.ca {
            config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca).ok()?));
        }
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            config = config.identity(Identity::from_pem(std::fs::read(cert).ok()?, std::fs::read(key).ok()?));
        }
        endpoint = endpoint.tls_config(config).ok()?;
    }
    let mut channel = endpoint.connect().await.ok()?;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.ok()?;
    let request = hyper::Request::get("/version").body(tonic::body::Body::empty()).ok()?;
    parse(channel.call(request).await.ok()?.headers())
}

async fn plain(authority: &str) -> Option<SystemTime> {
    let stream = TcpStream::connect(authority).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request =
        hyper::Request::get("/version").header("host", authority).body(Empty::<Bytes>::new()).ok()?;
    // The connection ends with its sender.
    let answer = async move { sender.send_request(request).await };
    let (answer, _) = futures_util::future::join(answer, connection).await;
    parse(answer.ok()?.headers())
}

fn parse(headers: &hyper::HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}
