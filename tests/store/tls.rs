//! Other machines come in over TCP, by certificate only.

use std::net::SocketAddr;
use std::path::Path;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft::subnet::store::builtin::{BuiltinError, ServeOptions, TcpListen, TlsFiles, serve};

use crate::peers::{free_address, runtime};

#[test]
fn a_client_is_let_in_by_a_certificate_of_the_ca_and_not_otherwise() {
    let dir = TempDir::new().unwrap();
    let ca = authority();
    let (cert, key) = certificate(&ca);
    for (file, pem) in [("cert", &cert), ("key", &key), ("ca", &ca.pem())] {
        std::fs::write(dir.path().join(file), pem).unwrap();
    }
    let tls = TlsFiles {
        cert: dir.path().join("cert"),
        key: dir.path().join("key"),
        client_ca: dir.path().join("ca"),
    };
    let address = free_address();
    let stop = CancellationToken::new();
    let listen = TcpListen { address, tls: Some(tls), insecure: false };
    let serving = serve(options(&dir.path().join("weft"), listen), stop.clone());
    let asking = async {
        let trusting =
            || TlsOptions::new().ca_certificate(Certificate::from_pem(ca.pem())).domain_name("localhost");
        let (stranger_cert, stranger_key) = certificate(&authority());
        let known = trusting().identity(Identity::from_pem(&cert, &key));
        let stranger = trusting().identity(Identity::from_pem(stranger_cert, stranger_key));
        put("https", address, Some(known)).await.expect("a client with a certificate is let in");
        put("https", address, Some(trusting())).await.expect_err("a client without a certificate is not");
        put("https", address, Some(stranger)).await.expect_err("a client of another CA is not");
        put("http", address, None).await.expect_err("nor is one without TLS");
        stop.cancel();
    };
    let (served, ()) = runtime().block_on(async { tokio::join!(serving, asking) });
    served.unwrap();
}

#[test]
fn plain_tcp_is_for_loopback_unless_insisted_on() {
    let dir = TempDir::new().unwrap();
    let address = SocketAddr::new([0, 0, 0, 0].into(), free_address().port());
    let stop = CancellationToken::new();
    let listen = |insecure| TcpListen { address, tls: None, insecure };
    runtime().block_on(async {
        let refused = serve(options(dir.path(), listen(false)), stop.clone()).await;
        assert!(matches!(refused, Err(BuiltinError::PlainTcp(refused)) if refused == address));
        stop.cancel();
        serve(options(dir.path(), listen(true)), stop).await.unwrap();
    });
}

fn options(dir: &Path, listen: TcpListen) -> ServeOptions {
    ServeOptions { data_dir: dir.into(), unix: vec![], tcp: vec![listen] }
}

async fn put(scheme: &str, address: SocketAddr, tls: Option<TlsOptions>) -> Result<(), etcd_client::Error> {
    let options = tls.map(|tls| ConnectOptions::new().with_tls(tls));
    let mut client = Client::connect([format!("{scheme}://{address}")], options).await?;
    client.put("k", "v", None).await.map(drop)
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key, PEM.
fn certificate(ca: &CertifiedIssuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}
