//! What the daemon is told: flags, each with flannel's environment variable.
//! Parsed once, never changed after.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::{ArgAction, Args, ValueEnum};
use ipnetwork::IpNetwork;
use thiserror::Error;

use crate::subnet::store::{Credentials, EtcdConfig, TlsFiles};

/// Run the fabric on this node
///
/// Lease a subnet, join it to all others, and keep the kernel so until told to
/// stop. Stopping leaves forwarding in place.
#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    /// Interface to reach other nodes by: a name or an address. May be given
    /// several times; the first that exists is taken. Default: the interface
    /// of the default route.
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP", help_heading = "Interface")]
    pub iface: Vec<String>,

    /// Take the interface by which this address is reached.
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP", help_heading = "Interface")]
    pub iface_can_reach: Option<std::net::IpAddr>,

    /// IPv4 address that other nodes reach this one at. Default: the
    /// interface's own.
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IPV4", help_heading = "Interface")]
    pub public_ip: Option<Ipv4Addr>,

    /// IPv6 address that other nodes reach this one at.
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", value_name = "IPV6", help_heading = "Interface")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// File that tells the CNI plugin and Docker what this node has.
    #[arg(
        long,
        env = "FLANNELD_SUBNET_FILE",
        default_value = "/run/flannel/subnet.env",
        value_name = "FILE"
    )]
    pub subnet_file: PathBuf,

    /// Minutes before its end at which the lease is renewed.
    #[arg(
        long,
        env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=1439),
        value_name = "MINUTES"
    )]
    pub subnet_lease_renew_margin: u16,

    /// Socket that `weft status` asks.
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = crate::daemon::admin::SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,

    /// Seconds between audits of the kernel. Notifications drive repairs; the
    /// audit backs them up.
    #[arg(long, env = "WEFT_AUDIT_INTERVAL", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..), value_name = "SECONDS")]
    pub audit_interval: u32,

    /// Switch tx-checksum offload of the tunnel off: the cure where an
    /// underlay's driver spoils checksums of encapsulated packets.
    #[arg(long, env = "WEFT_TX_CHECKSUM_OFF", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub tx_checksum_off: bool,

    /// Write next hops into each route even where the kernel has nexthop
    /// objects.
    #[arg(long, env = "WEFT_PLAIN_ROUTES", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub plain_routes: bool,

    #[command(flatten)]
    pub etcd: EtcdArgs,

    #[command(flatten)]
    pub builtin: BuiltinArgs,

    #[command(flatten)]
    pub log: LogArgs,
}

/// Naming any of these takes etcd as the store.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "etcd")]
pub struct EtcdArgs {
    /// etcd's client URLs, comma separated.
    /// [default with etcd: http://127.0.0.1:4001,http://127.0.0.1:2379]
    #[arg(long, env = "FLANNELD_ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URLS")]
    pub etcd_endpoints: Option<Vec<String>>,

    /// Prefix of the keys. [default: /coreos.com/network]
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,

    /// Client key (PEM).
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,

    /// Client certificate (PEM).
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,

    /// Authority that etcd's certificate is signed by (PEM). Default: the
    /// system's.
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,

    /// User to log in as.
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    pub etcd_username: Option<String>,

    /// The user's password; better given by the environment variable, since
    /// everyone on the host can read a command line.
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub etcd_password: Option<String>,

    /// Kubernetes as the store.
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", hide = true, action = ArgAction::Set, num_args = 0..=1,
          default_value_t = false, default_missing_value = "true", require_equals = true, value_parser = go_bool())]
    pub kube_subnet_mgr: bool,
}

/// The store of one machine, started and found by the daemons themselves.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Built-in store (where nothing names another)")]
pub struct BuiltinArgs {
    /// Folder of the built-in store. Daemons that name the same folder share
    /// it, in whatever network namespace they run.
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "/var/lib/weft", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Network to lease from, where the store has no config yet.
    /// [default: 10.244.0.0/16]
    #[arg(long, env = "WEFT_NETWORK", value_name = "CIDR", conflicts_with = "net_config_path")]
    pub network: Option<IpNetwork>,

    /// Network config (flannel's net-conf.json), where the store has none yet.
    #[arg(long, env = "FLANNELD_NET_CONFIG_PATH", value_name = "FILE")]
    pub net_config_path: Option<PathBuf>,

    /// Take the network even if it overlaps one that this host reaches.
    #[arg(long, env = "WEFT_ALLOW_OVERLAP", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub allow_overlap: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// For people or for machines.
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Filter, as `info` or `weft=debug,h2=warn`.
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Which store, with all it takes to reach it.
#[derive(Clone, Debug)]
pub enum StoreChoice {
    Builtin,
    Etcd(EtcdConfig),
}

#[derive(Debug, Error)]
pub enum ArgsError {
    #[error(
        "--kube-subnet-mgr: Kubernetes as the store is not part of this version: name an etcd with --etcd-endpoints, or leave both out for the built-in store"
    )]
    Kubernetes,
    #[error(
        "--etcd-keyfile and --etcd-certfile: one is given without the other: give both for TLS with a client certificate, or neither"
    )]
    HalfTls,
    #[error("--etcd-username: needs --etcd-password beside it, and the other way round")]
    HalfLogin,
}

const FLANNEL_ENDPOINTS: [&str; 2] = ["http://127.0.0.1:4001", "http://127.0.0.1:2379"];
const FLANNEL_PREFIX: &str = "/coreos.com/network";

impl DaemonArgs {
    /// `as_flanneld`: called by that name, flannel's defaults hold.
    pub fn store(&self, as_flanneld: bool) -> Result<StoreChoice, ArgsError> {
        let etcd = &self.etcd;
        if etcd.kube_subnet_mgr {
            return Err(ArgsError::Kubernetes);
        }
        if !as_flanneld && !etcd.is_named() {
            return Ok(StoreChoice::Builtin);
        }
        if etcd.etcd_keyfile.is_some() != etcd.etcd_certfile.is_some() {
            return Err(ArgsError::HalfTls);
        }
        let tls = TlsFiles {
            key: etcd.etcd_keyfile.clone(),
            cert: etcd.etcd_certfile.clone(),
            ca: etcd.etcd_cafile.clone(),
        };
        let credentials = match (&etcd.etcd_username, &etcd.etcd_password) {
            (None, None) => None,
            (Some(user), Some(password)) => {
                Some(Credentials { user: user.clone(), password: password.clone() })
            }
            _ => return Err(ArgsError::HalfLogin),
        };
        let endpoints = etcd
            .etcd_endpoints
            .clone()
            .unwrap_or_else(|| FLANNEL_ENDPOINTS.iter().map(|url| (*url).to_owned()).collect());
        Ok(StoreChoice::Etcd(EtcdConfig { endpoints, prefix: self.prefix(), tls, credentials }))
    }

    pub fn prefix(&self) -> String {
        self.etcd.etcd_prefix.clone().unwrap_or_else(|| FLANNEL_PREFIX.to_owned())
    }

    pub fn renew_margin(&self) -> Duration {
        Duration::from_secs(u64::from(self.subnet_lease_renew_margin) * 60)
    }
}

impl EtcdArgs {
    fn is_named(&self) -> bool {
        self.etcd_endpoints.is_some()
            || self.etcd_prefix.is_some()
            || self.etcd_keyfile.is_some()
            || self.etcd_certfile.is_some()
            || self.etcd_cafile.is_some()
            || self.etcd_username.is_some()
            || self.etcd_password.is_some()
    }
}

/// Go's spellings of a boolean (`strconv.ParseBool`), as flannel's flags take
/// them.
pub fn go_bool() -> impl TypedValueParser<Value = bool> {
    clap::builder::NonEmptyStringValueParser::new().try_map(|text| match text.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("accepted are 1, t, T, TRUE, true, True, 0, f, F, FALSE, false, False"),
    })
}

/// Go's flags take one dash or two; clap takes two. `-iface=eth0` becomes
/// `--iface=eth0`; single letters and whatever follows `--` stay.
pub fn double_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut rest = false;
    for arg in args {
        let text = arg.to_string_lossy();
        rest = rest || text == "--";
        let mut chars = text.chars();
        let go_flag = chars.next() == Some('-')
            && chars.next().is_some_and(|c| c.is_ascii_alphabetic())
            && chars.next().is_some_and(|c| c != '=');
        if go_flag && !rest {
            out.push(format!("-{text}").into());
        } else {
            out.push(arg);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: DaemonArgs,
    }

    #[test]
    fn the_built_in_store_is_taken_where_nothing_names_another() {
        assert!(matches!(parse(&[]).store(false), Ok(StoreChoice::Builtin)));
        assert!(matches!(parse(&[]).store(true), Ok(StoreChoice::Etcd(_))));
        assert!(matches!(parse(&["--etcd-prefix=/x"]).store(false), Ok(StoreChoice::Etcd(_))));
    }

    #[test]
    fn flags_read_as_go_reads_them() {
        let args = parse(&["-iface=eth0", "--iface", "eth1", "-tx-checksum-off", "-plain-routes=F"]);
        assert_eq!(args.iface, ["eth0", "eth1"]);
        assert!(args.tx_checksum_off && !args.plain_routes);
    }

    #[test]
    fn wrong_values_say_what_is_accepted() {
        for (args, accepted) in [
            (vec!["--plain-routes=maybe"], "accepted are 1, t, T"),
            (vec!["--subnet-lease-renew-margin=1440"], "1..=1439"),
            (vec!["--public-ip=fd00::1"], "--public-ip"),
            (vec!["--network=10.0.0.0/33"], "--network"),
            (vec!["--log-format=xml"], "text, json"),
        ] {
            let error = try_parse(&args).unwrap_err().to_string();
            assert!(error.contains(accepted), "{args:?}: {error}");
        }
    }

    #[test]
    fn half_a_credential_is_refused() {
        assert!(matches!(parse(&["--etcd-keyfile=/k"]).store(false), Err(ArgsError::HalfTls)));
        assert!(matches!(parse(&["--etcd-username=u"]).store(false), Err(ArgsError::HalfLogin)));
        assert!(matches!(parse(&["--kube-subnet-mgr"]).store(false), Err(ArgsError::Kubernetes)));
    }

    fn parse(args: &[&str]) -> DaemonArgs {
        try_parse(args).unwrap()
    }

    fn try_parse(args: &[&str]) -> Result<DaemonArgs, clap::Error> {
        let args = std::iter::once("weft").chain(args.iter().copied()).map(OsString::from);
        Cli::try_parse_from(double_dashes(args)).map(|cli| cli.args)
    }
}
