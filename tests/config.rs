//! `weft config show` and what the daemon says of its command line, by the binary.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::{Value, json};

#[test]
fn what_is_in_force_is_shown_with_its_source_and_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weft.toml");
    std::fs::write(&file, "audit-interval = 30\n# two of them\niface = ['eth0', 'eth1']\n").unwrap();
    let weft = |args: &[&str]| {
        let mut command = weft("weft", args);
        command.env("WEFT_CONFIG", &file).env("FLANNELD_ETCD_PASSWORD", "geheim");
        command
            .env("FLANNELD_ETCD_USERNAME", "")
            .env("WEFT_ETCD_ENDPOINTS", "http://u:geheim@a:1,http://b:2");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("geheim"), "{said}");
        said
    };

    let shown: Value = serde_json::from_str(&weft(&["config", "show", "--json", "-plain-routes"])).unwrap();
    for (name, value, source) in [
        ("audit-interval", json!("30"), json!({"kind": "file", "path": file, "line": 1})),
        ("iface", json!(["eth0", "eth1"]), json!({"kind": "file", "path": file, "line": 3})),
        ("plain-routes", json!("true"), json!({"kind": "flag"})),
        ("healthz-ip", json!("127.0.0.1"), json!({"kind": "default"})),
        ("log", json!("info"), json!({"kind": "default"})),
        ("etcd-prefix", json!("/coreos.com/network"), json!({"kind": "default"})),
        ("etcd-username", json!(null), json!({"kind": "default"})),
        (
            "etcd-password",
            json!("(not shown)"),
            json!({"kind": "variable", "name": "FLANNELD_ETCD_PASSWORD"}),
        ),
        (
            "etcd-endpoints",
            json!(["http://(not shown)@a:1", "http://b:2"]),
            json!({"kind": "variable", "name": "WEFT_ETCD_ENDPOINTS"}),
        ),
    ] {
        assert_eq!(shown[name], json!({"value": value, "source": source}), "{name}");
    }

    let etcd = weft(&["config", "show", "--json", "-etcd-endpoints=", "-etcd-prefix", "/p"]);
    let shown: Value = serde_json::from_str(&etcd).unwrap();
    let defaults = json!(["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(shown["etcd-endpoints"]["value"], defaults, "empty is none");

    let table = weft(&["config", "show"]);
    let row = table.lines().find(|line| line.contains("audit-interval")).unwrap();
    assert!(row.contains("30") && row.contains("weft.toml line 1"), "{row}");
}

#[test]
fn a_mistake_in_the_file_ends_the_daemon_with_line_and_nearest_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weft.toml");
    std::fs::write(&file, "\netcd-endpoint = 'http://a:1'\n").unwrap();
    let output = weft("weft", &["daemon"]).env("WEFT_CONFIG", &file).output().unwrap();
    assert!(!output.status.success());
    let expected = format!(
        "weft: {} line 2: no option \"etcd-endpoint\": did you mean \"etcd-endpoints\"?\n",
        file.display()
    );
    assert_eq!(stderr(&output), expected);
}

#[test]
fn called_as_flanneld_it_takes_every_flag_of_flannel() {
    for version in ["-version", "--version", "-version=true", "--version=T"] {
        let output = weft("flanneld", &[version]).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(stderr(&output).starts_with("weft "), "{output:?}");
    }
    // Refused for one reason: each flag before the last is understood.
    let output = weft(
        "flanneld",
        &[
            "-etcd-endpoints=http://127.0.0.1:1",
            "--etcd-prefix",
            "/p",
            "-etcd-keyfile=",
            "-etcd-certfile=",
            "-etcd-cafile=",
            "-etcd-username=",
            "-etcd-password=",
            "-iface=a",
            "-iface",
            "b",
            "-iface-regex=^c",
            "-iface-regex=^d",
            "-iface-can-reach=",
            "-subnet-file=/tmp/e",
            "-public-ip=1.2.3.4",
            "--public-ipv6=fd00::1",
            "-subnet-lease-renew-margin=60",
            "-kube-api-url=http://k",
            "-kube-annotation-prefix=flannel.alpha.coreos.com",
            "-kubeconfig-file=",
            "-healthz-port=0",
            "-ip-masq",
            "-ip-masq-fully-random-disable=F",
            "-iptables-resync=5",
            "-iptables-forward-rules=false",
            "-ip-blackhole-route=0",
            "-net-config-path=/etc/kube-flannel/net-conf.json",
            "-set-node-network-unavailable=false",
            "-v=2",
            "-vmodule=main=4",
            "-log_backtrace_at=main.go:1",
            "-logtostderr",
            "-kube-subnet-mgr=1",
        ],
    )
    .env("FLANNELD_HEALTHZ_IP", "nonsense")
    .env("FLANNELD_PUBLIC_IP", "")
    .output()
    .unwrap();
    let said = stderr(&output);
    assert!(said.contains("--kube-subnet-mgr: Kubernetes as the store is not part of"), "{said}");
    assert!(said.contains("--vmodule (flag) has no effect: --log takes a level for each module"), "{said}");
    assert!(said.contains("FLANNELD_HEALTHZ_IP: invalid value 'nonsense'"), "{said}");
    assert!(!said.contains("--kubeconfig-file"), "an empty one is none: {said}");
}

/// Called by `name`, with no option from the environment or a file.
fn weft(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg0(name).args(args).env_clear();
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
