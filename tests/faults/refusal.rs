//! A start against a store that refuses, is not found or has nothing of use is a
//! start that waits, and says for what. A plain mistake of the command line ends it.

use std::path::PathBuf;
use std::time::Duration;

use netns_harness::{Daemon, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::cluster::Cluster;
use crate::lab::{Fabric, SOON, VXLAN};

#[test]
fn a_store_that_is_not_found_or_lets_nobody_in_is_waited_for() {
    let mut fabric = Fabric::without_etcd("refusal", 4);
    let etcd = Cluster::start_all(&fabric.lab, 1);
    etcd.ctl(&["put", "/coreos.com/network/config", VXLAN]);
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let ip = fabric.lab.switch_ip4();
    let (url, nobody) = (etcd.urls(), format!("http://{ip}:2000"));
    let at = |url: &str, more: &[&str]| -> Vec<String> {
        ["--etcd-endpoints", url].iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let login = ["--etcd-username", "root", "--etcd-password", "guess"];
    let cases = [
        (at(&nobody, &[]), "refused"),
        (at("http://etcd.invalid:2379", &[]), "etcd.invalid"),
        (at(&url, &[]), "user name is empty"),
        (at(&url, &login), "authentication failed"),
    ];
    for (i, (args, _)) in cases.iter().enumerate() {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        fabric.run(i, &args, &[]);
    }
    for (i, (args, cause)) in cases.iter().enumerate() {
        await_word(&fabric.daemons[i], &["waiting for", cause], args);
    }
    std::thread::sleep(Duration::from_secs(3));
    for (daemon, (args, _)) in fabric.daemons.iter_mut().zip(&cases) {
        assert!(daemon.exited().unwrap().is_none(), "{args:?}: {}", daemon.log_tail(20));
        assert_eq!(daemon.log_tail(100).matches("waiting for").count(), 1, "{}", daemon.log_tail(100));
    }
    etcd.ctl(&["--user", "root:secret", "auth", "disable"]);
    fabric.wait_for_env(2);
}

#[test]
fn certificates_that_do_not_fit_are_waited_for_until_they_do() {
    let mut fabric = Fabric::without_etcd("certificates", 2);
    let ip = fabric.lab.switch_ip4().to_string();
    let dir = fabric.lab.dir().to_owned();
    let (ours, others) = (authority(), authority());
    let write = |name: &str, pem: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (cert, key) = certificate(&ours, &ip);
    let (cert, key) = (write("cert", &cert), write("key", &key));
    let (good, ca) = (write("good", &ours.pem()), write("ca", &others.pem()));
    let tls = format!("https://{ip}:3379");
    let plain = format!("http://{ip}:2379");
    let mut command = fabric.lab.switch().command("etcd");
    command.arg("--data-dir").arg(dir.join("tls")).arg("--cert-file").arg(&cert).arg("--key-file").arg(&key);
    command.args(["--listen-client-urls", &format!("{tls},{plain}"), "--advertise-client-urls", &tls]);
    let _etcd = fabric.lab.switch().spawn("etcd", &mut command).unwrap();

    let ca_arg = ca.to_str().unwrap().to_owned();
    fabric.run(0, &["--etcd-endpoints", &tls, "--etcd-cafile", &ca_arg], &[]);
    // Nothing speaks TLS there.
    let deaf = format!("https://{ip}:2379");
    fabric.run(1, &["--etcd-endpoints", &deaf, "--etcd-cafile", good.to_str().unwrap()], &[]);
    await_word(&fabric.daemons[0], &["waiting for the store", "certificate"], &tls);
    await_word(&fabric.daemons[1], &["waiting for the store", "transport error"], &deaf);
    std::thread::sleep(Duration::from_secs(2));
    for daemon in &mut fabric.daemons {
        assert!(daemon.exited().unwrap().is_none(), "{}", daemon.log_tail(20));
    }
    // It is read at each try.
    std::fs::copy(&good, &ca).unwrap();
    await_word(&fabric.daemons[0], &["has none yet"], "the right authority");
}

#[test]
fn a_config_that_is_of_no_use_is_waited_for_until_it_is() {
    let mut fabric = Fabric::without_etcd("no-config", 1);
    let etcd = Cluster::start_all(&fabric.lab, 1);
    fabric.run(0, &["--etcd-endpoints", &etcd.urls()], &[]);
    await_word(&fabric.daemons[0], &["has none yet"], "no config");
    for (value, cause) in [
        ("{", "not JSON"),
        (r#"{"Network":"10.42.0.0/16","Backend":{"Type":"warp"}}"#, "expected vxlan or host-gw"),
        (r#"{"Network":"10.42.0.0/33"}"#, "10.42.0.0/33"),
    ] {
        etcd.ctl(&["put", "/coreos.com/network/config", value]);
        await_word(&fabric.daemons[0], &["waiting for a network config", cause], value);
    }
    let printf = format!(
        "printf '\\377' | ETCDCTL_API=3 etcdctl --endpoints {} put /coreos.com/network/config",
        etcd.urls()
    );
    fabric.lab.switch().run("sh", ["-c", &printf]).unwrap();
    await_word(&fabric.daemons[0], &["not UTF-8"], "bytes");
    etcd.ctl(&["put", "/coreos.com/network/config", VXLAN]);
    fabric.wait_for_env(0);
    assert!(fabric.daemons[0].exited().unwrap().is_none());
}

#[test]
fn a_mistake_of_the_command_line_ends_it_and_is_named() {
    let fabric = Fabric::without_etcd("mistake", 1);
    let host = &fabric.hosts[0];
    let garbage = host.dir().join("garbage");
    std::fs::write(&garbage, "no PEM").unwrap();
    let garbage = garbage.to_str().unwrap();
    let nobody = "http://127.0.0.1:2379";
    for (args, said) in [
        (vec!["--etcd-endpoints", "http://"], "http[s]://HOST:PORT"),
        (vec!["--etcd-endpoints", "ftp://127.0.0.1"], "http[s]://HOST:PORT"),
        (vec!["--etcd-endpoints", nobody, "--etcd-cafile", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (vec!["--etcd-endpoints", nobody, "--etcd-cafile", garbage], "is PEM"),
        (vec!["--etcd-endpoints", nobody, "--etcd-keyfile", garbage], "give both"),
        (vec!["--etcd-endpoints", nobody, "--etcd-username", "root"], "--etcd-password"),
    ] {
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command.arg("daemon").arg("--subnet-file").arg(host.dir().join("subnet.env"));
        let output = command.arg("--admin-socket").arg(host.dir().join("admin.sock")).args(&args).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() != Some(0) && text.contains(said), "{args:?}: {text}");
    }
}

/// In one line.
fn await_word(daemon: &Daemon, words: &[&str], what: impl std::fmt::Debug) {
    let says = || daemon.log_tail(200).lines().any(|line| words.iter().all(|word| line.contains(word)));
    let said = wait_until(SOON, "a word on it", says);
    said.unwrap_or_else(|e| panic!("{what:?}: {e}: {words:?} in {}", daemon.log_tail(50)));
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key, PEM.
fn certificate(ca: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}
