//! `weft doctor`: looks at everything a node needs, the daemon running or not,
//! and says of each fault why it matters and what to do.

mod clock;
mod facts;
mod files;
mod firewall;
mod kernel;
mod links;
mod peers;
mod probe;
mod store;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::daemon::config::DaemonArgs;
use facts::Facts;

/// Find out what is wrong with this node
///
/// Looks at the kernel, its settings, MTUs, overlapping networks, firewalls, ports,
/// the clock, the store, the files that containers need, and sends a probe through
/// the tunnel to every peer. Takes the daemon's options, from wherever it takes
/// them. Changes nothing. Exits with 1 where it finds a problem.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,

    /// Folder of the CNI configs.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,

    /// Folder of the CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    cni_bin_dir: PathBuf,

    #[command(flatten)]
    daemon: DaemonArgs,
}

/// What one look has found.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    /// What is well, in words.
    seen: String,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    what: String,
    why: String,
    cure: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// Something does not work, or will not.
    Problem,
    /// It may be meant so.
    Warning,
}

pub async fn run(args: DoctorArgs) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("doctor: probes and the firewall are root's to see: run it as root");
    }
    let facts = Facts::gather(&args.daemon).await;
    let checks = vec![
        kernel::features(&facts).await,
        kernel::sysctls(&facts),
        facts.daemon(),
        store::reach(&facts),
        store::leases(&facts),
        clock::skew(&facts).await,
        files::subnet_env(&facts),
        files::cni(&facts, &args.cni_conf_dir, &args.cni_bin_dir),
        links::bridge(&facts),
        links::overlap(&facts),
        links::mtu(&facts),
        firewall::ports(&facts),
        peers::reach(&facts).await,
    ];
    let checks = firewall::then_drops(&facts, checks).await;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&checks)?),
        false => checks.iter().for_each(|check| print!("{}", text(check))),
    }
    let is_problem = |finding: &&Finding| finding.level == Level::Problem;
    match checks.iter().flat_map(|check| &check.findings).filter(is_problem).count() {
        0 => Ok(()),
        1 => anyhow::bail!("doctor: 1 problem"),
        n => anyhow::bail!("doctor: {n} problems"),
    }
}

fn text(check: &Check) -> String {
    let Check { name, seen, findings } = check;
    if findings.is_empty() {
        return format!("ok       {name}: {}\n", super::printable(seen));
    }
    let finding = |finding: &Finding| {
        let level = match finding.level {
            Level::Problem => "PROBLEM",
            Level::Warning => "warning",
        };
        let [what, why, cure] =
            [&finding.what, &finding.why, &finding.cure].map(|text| super::printable(text));
        format!("{level}  {name}: {what}\n           why: {why}\n           do:  {cure}\n")
    };
    findings.iter().map(finding).collect()
}

impl Check {
    fn new(name: &'static str, seen: impl Into<String>) -> Check {
        Check { name, seen: seen.into(), findings: Vec::new() }
    }

    fn problem(&mut self, what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) {
        self.find(Level::Problem, what, why, cure);
    }

    fn warning(&mut self, what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) {
        self.find(Level::Warning, what, why, cure);
    }

    fn find(
        &mut self,
        level: Level,
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.findings.push(Finding { level, what: what.into(), why: why.into(), cure: cure.into() });
    }
}
