//! `weft docker-opts`: what Docker must be told to hand out this node's subnet.
//! Options and output are those of flannel's dist/mk-docker-opts.sh, byte for
//! byte.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::kernel::host;

/// Write Docker's options from subnet.env
///
/// Writes DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ and DOCKER_OPT_MTU, and all of them
/// together as DOCKER_OPTS, for an EnvironmentFile of docker.service. Takes the
/// options of flannel's mk-docker-opts.sh. What stands in the environment as
/// DOCKER_OPTS goes in front; DOCKER_OPT_* variables are taken along.
///
/// Exits with 1 where a route to the subnet by way of another host exists:
/// Docker's bridge would take the subnet away from it.
#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct DockerOptsArgs {
    /// What the daemon wrote.
    #[arg(short = 'f', long, default_value = "/run/flannel/subnet.env", value_name = "FILE")]
    subnet_file: PathBuf,

    /// File to write.
    #[arg(short = 'd', long, default_value = "/run/docker_opts.env", value_name = "FILE")]
    docker_env: PathBuf,

    /// Write each option as a variable of its own. Without -i and -c, both.
    #[arg(short, long)]
    individual: bool,

    /// Write one variable with all options.
    #[arg(short, long)]
    combined: bool,

    /// Name of that variable.
    #[arg(short, long, default_value = "DOCKER_OPTS", value_name = "NAME", value_parser = variable_name)]
    key: String,

    /// Leave --ip-masq out, for a Docker that does not know it.
    #[arg(short = 'm', long)]
    no_ip_masq: bool,
}

pub fn run(args: &DockerOptsArgs) -> anyhow::Result<()> {
    let mut variables = of_environment();
    match read(&args.subnet_file)? {
        Some(text) => variables.extend(assignments(&text)),
        None => eprintln!("weft: {} is not there: has the daemon started?", args.subnet_file.display()),
    }
    let node = Node::of(&variables).with_context(|| args.subnet_file.display().to_string())?;
    let output = render(args, &node, &variables);
    fs::write(&args.docker_env, output).with_context(|| args.docker_env.display().to_string())?;
    node.subnet.map_or(Ok(()), refuse_routed)
}

/// What subnet.env says of this node, as far as it says it.
struct Node<'a> {
    /// As it stands in the file: the bridge's address.
    bip: Option<&'a str>,
    subnet: Option<Ipv4Network>,
    mtu: Option<&'a str>,
    ip_masq: Option<bool>,
}

impl<'a> Node<'a> {
    fn of(variables: &'a BTreeMap<String, String>) -> anyhow::Result<Node<'a>> {
        let get = |key: &str| variables.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let bip = get("FLANNEL_SUBNET");
        let subnet = bip.map(|text| {
            text.parse().with_context(|| format!("FLANNEL_SUBNET: {text:?}: expected a form as 10.5.41.1/24"))
        });
        let mtu = get("FLANNEL_MTU");
        if let Some(text) = mtu.filter(|text| text.parse::<u32>().is_err()) {
            bail!("FLANNEL_MTU: {text:?}: expected a number of bytes");
        }
        let ip_masq = match get("FLANNEL_IPMASQ") {
            None => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(other) => bail!("FLANNEL_IPMASQ: {other:?}: expected true or false"),
        };
        Ok(Node { bip, subnet: subnet.transpose()?, mtu, ip_masq })
    }
}

fn render(args: &DockerOptsArgs, node: &Node<'_>, variables: &BTreeMap<String, String>) -> String {
    let mut options: BTreeMap<&str, String> = variables
        .iter()
        .filter(|(name, _)| name.starts_with("DOCKER_OPT_"))
        .map(|(name, value)| (name.as_str(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    if let Some(bip) = node.bip {
        options.insert("DOCKER_OPT_BIP", format!("--bip={bip}"));
    }
    if let Some(mtu) = node.mtu {
        options.insert("DOCKER_OPT_MTU", format!("--mtu={mtu}"));
    }
    // One of the two masquerades: what the fabric does Docker must not.
    if let Some(ip_masq) = node.ip_masq.filter(|_| !args.no_ip_masq) {
        options.insert("DOCKER_OPT_IPMASQ", format!("--ip-masq={}", !ip_masq));
    }
    let all = !args.individual && !args.combined;
    let mut out = String::new();
    if args.individual || all {
        out.extend(options.iter().map(|(name, value)| format!("{name}=\"{value}\"\n")));
    }
    if args.combined || all {
        let mut together = variables.get(&args.key).cloned().unwrap_or_default();
        if !together.is_empty() {
            together.push(' ');
        }
        for value in options.values() {
            together.push(' ');
            together.push_str(value);
        }
        out.push_str(&format!("{}=\"{together}\"\n", args.key));
    }
    out
}

fn refuse_routed(subnet: Ipv4Network) -> anyhow::Result<()> {
    let host = host::read()?;
    let dst: IpNetwork = IpNetwork::V4(subnet);
    let routed = host.routes.iter().find(|route| {
        route.via.is_some() && route.dst.ip() == dst.network() && route.dst.prefix() == dst.prefix()
    });
    let Some((route, via)) = routed.and_then(|route| Some((route, route.via?))) else { return Ok(()) };
    let dev = host.links.iter().find(|link| link.index == route.link);
    let dev = dev.map(|link| format!(" dev {}", link.name)).unwrap_or_default();
    bail!("Your routing table already contains the subnet: {} via {via}{dev}", route.dst)
}

fn of_environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// The assignments of a file that a shell could source; nothing in it is run.
fn assignments(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let quoted = ['"', '\''].iter().find_map(|&q| value.strip_prefix(q)?.strip_suffix(q));
        Some((variable_name(name).ok()?, quoted.unwrap_or(value).to_owned()))
    })
}

fn variable_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit()) || !text.chars().all(fits) {
        return Err("expected a variable's name: letters, digits and _".to_owned());
    }
    Ok(text.to_owned())
}
