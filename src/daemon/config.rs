//! What the daemon is told. Parsed once, never changed after.
//!
//! An option with an `env` may be given by variable and by file too: as
//! `WEFT_<NAME>`, as `FLANNELD_<NAME>` where the `env` is that, and as `<name>` in
//! the file (`cli::sources`).

mod etcd;
mod go;
mod unused;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use ipnetwork::IpNetwork;

pub use self::etcd::{ArgsError, EtcdArgs, StoreChoice};
pub use self::go::{double_dashes, go_bool};
pub use self::unused::{UNUSED, Unused};
use super::traffic::TrafficArgs;

#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    /// Interface to reach other nodes by: a name or an address. May be given
    /// several times; the first that exists is taken. Default: the interface
    /// of the default route.
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP", help_heading = "Interface")]
    pub iface: Vec<String>,

    /// Interface whose address, or else whose name, matches a regular
    /// expression (dual stack: addresses of both families). May be given
    /// several times; comes after --iface.
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX", help_heading = "Interface")]
    pub iface_regex: Vec<regex::Regex>,

    /// Take the interface by which this address is reached, and the address
    /// that it is reached from; comes after --iface and --iface-regex.
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP", help_heading = "Interface")]
    pub iface_can_reach: Option<IpAddr>,

    /// IPv4 address that other nodes reach this one at. Default: the
    /// interface's own.
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IPV4", help_heading = "Interface")]
    pub public_ip: Option<Ipv4Addr>,

    /// IPv6 address that other nodes reach this one at.
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", value_name = "IPV6", help_heading = "Interface")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// File that tells the CNI plugin and Docker what this node has.
    #[arg(
        help_heading = "Lease",
        long,
        env = "FLANNELD_SUBNET_FILE",
        default_value = "/run/flannel/subnet.env",
        value_name = "FILE"
    )]
    pub subnet_file: PathBuf,

    /// Minutes before its end at which the lease is renewed.
    #[arg(help_heading = "Lease", 
        long,
        env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=1439),
        value_name = "MINUTES"
    )]
    pub subnet_lease_renew_margin: u16,

    /// Socket that `weft status` asks.
    #[arg(help_heading = "Health", long, env = "WEFT_ADMIN_SOCKET", default_value = crate::daemon::admin::SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,

    /// Seconds between audits of the kernel. Notifications drive repairs; the
    /// audit backs them up.
    #[arg(help_heading = "Kernel", long, env = "WEFT_AUDIT_INTERVAL", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..), value_name = "SECONDS")]
    pub audit_interval: u32,

    /// Switch tx-checksum offload of the tunnel off: the cure where an
    /// underlay's driver spoils checksums of encapsulated packets.
    #[arg(help_heading = "Kernel", long, env = "WEFT_TX_CHECKSUM_OFF", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub tx_checksum_off: bool,

    /// Write next hops into each route even where the kernel has nexthop
    /// objects.
    #[arg(help_heading = "Kernel", long, env = "WEFT_PLAIN_ROUTES", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub plain_routes: bool,

    /// Print the version to standard error.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, hide_default_value = true,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub version: bool,

    /// File with options: one `name = value` a line, as TOML.
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE", default_value = OPTION_FILE)]
    pub config: PathBuf,

    #[command(flatten)]
    pub health: HealthArgs,

    #[command(flatten)]
    pub traffic: TrafficArgs,

    #[command(flatten)]
    pub etcd: EtcdArgs,

    #[command(flatten)]
    pub builtin: BuiltinArgs,

    #[command(flatten)]
    pub log: LogArgs,

    #[command(flatten)]
    pub unused: Unused,
}

/// `/healthz` and `/readyz`, by HTTP.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health")]
pub struct HealthArgs {
    /// Address of /healthz and /readyz.
    /// [default: 127.0.0.1; called as flanneld: 0.0.0.0]
    #[arg(long, env = "FLANNELD_HEALTHZ_IP", value_name = "IP")]
    pub healthz_ip: Option<IpAddr>,

    /// Their port; 0 is off.
    #[arg(long, env = "FLANNELD_HEALTHZ_PORT", default_value_t = 0, value_name = "PORT")]
    pub healthz_port: u16,
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

    /// Filter, as `info` or `weft=debug,h2=warn`. [default: info]
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// klog's verbosity, where --log is not given: debug from 4, trace from 6.
    #[arg(long = "v", short = 'v', env = "FLANNELD_V", default_value_t = 0, value_name = "LEVEL")]
    pub verbosity: u32,
}

impl LogArgs {
    pub fn filter(&self) -> &str {
        match (&self.log, self.verbosity) {
            (Some(filter), _) => filter,
            (None, 0..4) => "info",
            (None, 4..6) => "info,weft=debug",
            (None, 6..) => "info,weft=trace",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where options are read from unless told otherwise.
pub const OPTION_FILE: &str = "/etc/weft/weft.toml";

impl DaemonArgs {
    /// `as_flanneld`: called by that name, flannel's defaults hold.
    pub fn store(&self, as_flanneld: bool) -> Result<StoreChoice, ArgsError> {
        self.etcd.choice(as_flanneld)
    }

    /// Where to tell of our health, if at all.
    pub fn health_address(&self, as_flanneld: bool) -> Option<SocketAddr> {
        let address = SocketAddr::new(self.health_ip(as_flanneld), self.health.healthz_port);
        (address.port() != 0).then_some(address)
    }

    /// The values, as text, of an option that is not given and whose default
    /// hangs on others.
    pub fn derived(&self, name: &str) -> Vec<String> {
        match name {
            "healthz-ip" => vec![self.health_ip(false).to_string()],
            "log" => vec![self.log.filter().to_owned()],
            "etcd-prefix" => vec![self.etcd.prefix()],
            "etcd-endpoints" if self.etcd.is_named() => self.etcd.endpoints(),
            _ => Vec::new(),
        }
    }

    fn health_ip(&self, as_flanneld: bool) -> IpAddr {
        let default = if as_flanneld { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        self.health.healthz_ip.unwrap_or(default.into())
    }

    pub fn audit_interval(&self) -> Duration {
        Duration::from_secs(self.audit_interval.into())
    }

    pub fn renew_margin(&self) -> Duration {
        Duration::from_secs(u64::from(self.subnet_lease_renew_margin) * 60)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_version_flag = true)]
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
    fn health_is_told_where_flannel_tells_it_only_under_its_name() {
        let address = |args: &[&str], as_flanneld| parse(args).health_address(as_flanneld);
        assert_eq!(address(&[], true), None);
        assert_eq!(address(&["-healthz-port=8471"], false), Some(([127, 0, 0, 1], 8471).into()));
        assert_eq!(address(&["-healthz-port=8471"], true), Some(([0, 0, 0, 0], 8471).into()));
        let given = address(&["-healthz-ip=::1", "-healthz-port", "1"], true);
        assert_eq!(given, Some("[::1]:1".parse().unwrap()));
    }

    #[test]
    fn klog_verbosity_becomes_a_filter_unless_one_is_given() {
        for (args, filter) in [
            (vec![], "info"),
            (vec!["-v", "2"], "info"),
            (vec!["-v=4"], "info,weft=debug"),
            (vec!["--v=10"], "info,weft=trace"),
            (vec!["-v=10", "-log=warn"], "warn"),
        ] {
            assert_eq!(parse(&args).log.filter(), filter, "{args:?}");
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
