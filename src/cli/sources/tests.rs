use clap::{FromArgMatches, Parser};

use super::*;
use crate::daemon::config::{DaemonArgs, double_dashes};

#[derive(Debug, Parser)]
enum Cli {
    #[command(disable_version_flag = true)]
    Daemon(Box<DaemonArgs>),
}

/// Command line, variables, file; then what an option's value comes from.
#[test]
fn flags_beat_variables_beat_the_file_beats_defaults() {
    let file = "iface = ['f0', 'f1']\naudit-interval = 30\nplain-routes = true\netcd-prefix = '/file'";
    for (args, variables, id, values, from) in [
        ("", "", "audit_interval", "30", "FILE line 2"),
        ("", "", "iface", "f0 f1", "FILE line 1"),
        ("", "", "subnet_file", "/run/flannel/subnet.env", "default"),
        ("", "", "public_ip", "", "default"),
        ("", "FLANNELD_IFACE=v0", "iface", "v0", "FLANNELD_IFACE"),
        ("", "FLANNELD_IFACE=v0 WEFT_IFACE=w0", "iface", "w0", "WEFT_IFACE"),
        ("", "FLANNELD_IFACE= WEFT_IFACE=", "iface", "f0 f1", "FILE line 1"),
        ("-iface=a -iface b", "WEFT_IFACE=w0", "iface", "a b", "flag"),
        ("-iface=", "WEFT_IFACE=w0", "iface", "", "flag"),
        ("--etcd-prefix=", "FLANNELD_ETCD_PREFIX=/v", "etcd_prefix", "", "flag"),
        ("-plain-routes=F", "", "plain_routes", "F", "flag"),
        ("-plain-routes", "WEFT_PLAIN_ROUTES=0", "plain_routes", "true", "flag"),
        ("", "WEFT_PLAIN_ROUTES=0", "plain_routes", "0", "WEFT_PLAIN_ROUTES"),
        ("-etcd-prefix=/a -etcd-prefix=/b", "", "etcd_prefix", "/b", "flag"),
        ("-network=10.9.0.0/16", "FLANNELD_NET_CONFIG_PATH=/x", "net_config_path", "", "default"),
        ("-v 4", "FLANNELD_V=9", "verbosity", "4", "flag"),
        ("", "FLANNELD_V=9", "verbosity", "9", "FLANNELD_V"),
        ("-vmodule=a=1", "", "vmodule", "a=1", "flag"),
        ("", "FLANNELD_AUDIT_INTERVAL=5", "audit_interval", "30", "FILE line 2"),
    ] {
        let resolved = resolve_with(args, variables, file).unwrap();
        let raw = resolved.leaf().get_raw(id).into_iter().flatten();
        let raw: Vec<_> = raw.map(|value| value.to_str().unwrap()).collect();
        let source = resolved.source(id).to_string().replace(&resolved.path(), "FILE");
        assert_eq!((raw.join(" ").as_str(), source.as_str()), (values, from), "{args} {variables} {id}");
        Cli::from_arg_matches(&resolved.matches).unwrap();
    }
}

#[test]
fn a_wrong_value_of_flannels_variable_is_passed_over_with_a_message() {
    let resolved = resolve_with("", "FLANNELD_HEALTHZ_PORT=x FLANNELD_KUBE_SUBNET_MGR=maybe", "").unwrap();
    assert_eq!(resolved.notes.len(), 2, "{:?}", resolved.notes);
    assert!(
        resolved.notes[0].starts_with("FLANNELD_HEALTHZ_PORT: invalid value 'x'"),
        "{:?}",
        resolved.notes
    );
    assert_eq!(resolved.source("healthz_port"), Source::Default);
}

#[test]
fn other_wrong_values_say_where_they_stand() {
    for (args, variables, file, says) in [
        ("", "WEFT_HEALTHZ_PORT=x", "", "WEFT_HEALTHZ_PORT: invalid value 'x' for '--healthz-port"),
        ("", "WEFT_LOG_FORMAT=xml", "", "[possible values: text, json]"),
        ("", "", "iface = 'a'\naudit-interval = 0", "line 2: audit-interval: invalid value '0'"),
        ("", "", "\npublic-ip = ['1.1.1.1', '2.2.2.2']", "line 2: public-ip: takes one value, not a list"),
        ("", "", "config = '/x'", "line 1: no option \"config\""),
        ("-iface-regexp=x", "", "", "--iface-regex"),
        ("-plain-routes yes", "", "", "unexpected argument 'yes'"),
        ("", "WEFT_NETWORK=10.0.0.0/16 WEFT_NET_CONFIG_PATH=/x", "", "cannot be used with"),
        ("-config=/nonexistent/weft.toml", "", "", "/nonexistent/weft.toml: No such file"),
    ] {
        let error = resolve_with(args, variables, file).unwrap_err().to_string();
        assert!(error.contains(says), "{args} {variables} {file}: {error}");
    }
}

impl Resolved {
    fn path(&self) -> String {
        self.leaf().get_one::<PathBuf>("config").unwrap().display().to_string()
    }
}

fn resolve_with(args: &str, variables: &str, file: &str) -> Result<Resolved, SourceError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.toml");
    std::fs::write(&path, file).unwrap();
    let variable = |name: &str| {
        let given = variables.split(' ').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name);
        let config = || (name == "WEFT_CONFIG").then(|| path.display().to_string());
        given.map(|(_, value)| value.to_owned()).or_else(config)
    };
    let args = ["weft", "daemon"].into_iter().chain(args.split_whitespace()).map(OsString::from);
    resolve(&<Cli as clap::CommandFactory>::command(), &double_dashes(args), variable)
}
