//! `weft store`: serve the built-in store to others than this machine's daemons.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::daemon::config::LogArgs;
use crate::subnet::store::builtin::{DEFAULT_DATA_DIR, ServeOptions, TcpListen, TlsFiles, serve};

/// Serve the built-in store
///
/// It speaks the part of etcd's v3 API that weft and etcdctl need, and keeps
/// everything in one SQLite file. It is one machine's store: when that machine is
/// away, no lease is taken or renewed. For high availability, use etcd.
///
/// Daemons on one machine start it by themselves, step back for this command and
/// take over when it ends; it is for serving the store to other machines.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreArgs {
    /// Directory of store.db, store.lock and store.sock
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Where to listen besides <DIR>/store.sock: unix:///path, https://address:port,
    /// or http://address:port on a loopback address
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = listen_url)]
    pub listen_client_urls: Vec<ListenUrl>,

    /// Certificate of https:// addresses, PEM
    #[arg(long, value_name = "FILE")]
    pub cert_file: Option<PathBuf>,

    /// Key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// CA that clients' certificates must be signed by, PEM
    #[arg(long, value_name = "FILE")]
    pub trusted_ca_file: Option<PathBuf>,

    /// Serve http:// on any address: whoever reaches it owns the fabric
    #[arg(long)]
    pub insecure_plain_tcp: bool,

    #[command(flatten)]
    pub log: LogArgs,
}

/// Where a store listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenUrl {
    Unix(PathBuf),
    Http(SocketAddr),
    Https(SocketAddr),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where the store does not open, an address is taken or TLS files are missing.
pub async fn run(args: StoreArgs) -> anyhow::Result<()> {
    let options = options(args)?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let serving = serve(options, shutdown.clone());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return Ok(result?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
    Ok(serving.await?)
}

fn options(args: StoreArgs) -> anyhow::Result<ServeOptions> {
    let (mut unix, mut tcp) = (Vec::new(), Vec::new());
    let tls = match (args.cert_file, args.key_file, args.trusted_ca_file) {
        (Some(cert), Some(key), Some(client_ca)) => Some(TlsFiles { cert, key, client_ca }),
        (None, None, None) => None,
        _ => bail!(
            "--cert-file, --key-file and --trusted-ca-file go together: clients are let in by certificate"
        ),
    };
    for url in args.listen_client_urls {
        match url {
            ListenUrl::Unix(path) => unix.push(path),
            ListenUrl::Http(address) => {
                tcp.push(TcpListen { address, tls: None, insecure: args.insecure_plain_tcp });
            }
            ListenUrl::Https(address) if tls.is_some() => {
                tcp.push(TcpListen { address, tls: tls.clone(), insecure: false });
            }
            ListenUrl::Https(address) => {
                bail!("https://{address}: needs --cert-file, --key-file and --trusted-ca-file");
            }
        }
    }
    Ok(ServeOptions { data_dir: args.data_dir, unix, tcp })
}

fn listen_url(text: &str) -> Result<ListenUrl, String> {
    let expected = "expected unix:///path, https://address:port or http://address:port";
    let Some((scheme, rest)) = text.split_once("://") else { return Err(expected.into()) };
    let address =
        || rest.trim_end_matches('/').parse().map_err(|cause| format!("{rest}: {cause}; {expected}"));
    match scheme {
        "unix" if Path::new(rest).is_absolute() => Ok(ListenUrl::Unix(rest.into())),
        "http" => address().map(ListenUrl::Http),
        "https" => address().map(ListenUrl::Https),
        _ => Err(expected.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_urls_are_parsed_or_refused_with_what_is_accepted() {
        assert_eq!(listen_url("unix:///run/weft.sock"), Ok(ListenUrl::Unix("/run/weft.sock".into())));
        assert_eq!(listen_url("http://127.0.0.1:2379/"), Ok(ListenUrl::Http(([127, 0, 0, 1], 2379).into())));
        for bad in
            ["/run/weft.sock", "unix://relative", "http://localhost:1", "tcp://127.0.0.1:1", "https://[::1"]
        {
            assert!(listen_url(bad).unwrap_err().contains("expected unix:///path"), "{bad}");
        }
    }
}
