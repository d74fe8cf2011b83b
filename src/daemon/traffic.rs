//! Keeps what is done to containers' packets at the border of the fabric: the
//! masquerade and forward rules.

use std::time::Duration;

use clap::{ArgAction, Args};
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::config::go_bool;
use super::guard::GuardMode;
use crate::firewall::{Intent, Ruleset, iptables, nftables};
use crate::kernel::firewall::{Keeper, Place, Subject, Watch, choose, clear, has_bridge_netfilter};
use crate::model::{Family, NetworkConfig, SubnetKey};
use crate::reconciler::{Healing, Ledger};

/// A change comes in several messages, and often with another right behind it.
const SETTLE: Duration = Duration::from_millis(20);
/// The least time between two looks.
const REST: Duration = Duration::from_millis(100);

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traffic rules")]
pub struct TrafficArgs {
    /// Give containers' packets the host's address where they leave the
    /// fabric's network.
    #[arg(long, env = "FLANNELD_IP_MASQ", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub ip_masq: bool,

    /// Leave the choice of source ports to the kernel's default instead of
    /// drawing them fully at random.
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub ip_masq_fully_random_disable: bool,

    /// Networks that containers reach with their own source address, comma
    /// separated. Default: `nonMasqueradeCIDRs` of the network config.
    #[arg(long, env = "WEFT_NON_MASQUERADE_CIDRS", value_delimiter = ',', value_name = "CIDRS")]
    pub non_masquerade_cidrs: Option<Vec<IpNetwork>>,

    /// Accept what is forwarded to and from containers, whatever the host's
    /// policy.
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", action = ArgAction::Set, num_args = 0..=1, default_value_t = true,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub iptables_forward_rules: bool,

    /// Seconds between two looks whether rules of legacy iptables are still there;
    /// of others the kernel tells.
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "SECONDS")]
    pub iptables_resync: u32,

    /// Take encapsulated packets from leased peers' addresses alone. `auto`:
    /// where the backend encapsulates and nft is installed.
    #[arg(long, env = "WEFT_GUARD", default_value = "auto", value_name = "WHEN")]
    pub guard: GuardMode,

    /// Drop what is sent to addresses of this node's subnet that no container
    /// has.
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", action = ArgAction::Set, num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, value_parser = go_bool(), value_name = "BOOL")]
    pub ip_blackhole_route: bool,
}

/// The rules of a node, in force since `start`.
#[derive(Debug)]
pub struct Traffic {
    /// `None` where no tool is installed.
    keeper: Option<Keeper>,
    families: Vec<Family>,
    /// How often to look without a reason.
    interval: Duration,
    /// Tells of changes but to legacy iptables, which is looked at.
    watch: Option<Watch>,
    resync: Duration,
    repairs: Ledger,
    drops: Vec<String>,
    /// Why rules that are asked for are not in force.
    complaint: watch::Sender<Option<String>>,
}

impl Traffic {
    /// Puts the rules in force, and removes what stands elsewhere from another
    /// mode or daemon. What cannot be done now is told of and tried again by
    /// `run`: containers on other nodes can be reached without it.
    pub async fn start(
        args: &TrafficArgs,
        config: &NetworkConfig,
        own: &SubnetKey,
        audit: Duration,
    ) -> Traffic {
        let families: Vec<_> = config.pools.iter().map(|(family, _)| family).collect();
        let resync = Duration::from_secs(args.iptables_resync.into());
        let rulesets = rulesets(args, config, own);
        let (complaint, _) = watch::channel(None);
        let keeper = keeper(config, &families, rulesets, !args.ip_masq_fully_random_disable).await;
        let keeper = keeper.unwrap_or_else(|why| {
            warn!("{why}");
            // Forwarding works without, unless the host's policy is against it.
            complaint.send_replace(args.ip_masq.then_some(why));
            None
        });
        // Before the first look, so that no change is missed.
        let watch = keeper.as_ref().and_then(follow);
        let interval = if watch.is_some() { audit } else { resync };
        let mut traffic = Traffic {
            keeper,
            families,
            interval,
            watch,
            resync,
            repairs: Ledger::new("rules"),
            drops: vec![],
            complaint,
        };
        traffic.enforce("traffic rules are in force").await;
        traffic.clear_elsewhere().await;
        traffic.look_for_drops().await;
        traffic
    }

    /// Why rules that are asked for are not in force, while that is so.
    pub fn complaint(&self) -> watch::Receiver<Option<String>> {
        self.complaint.subscribe()
    }

    pub fn healing(&self) -> watch::Receiver<Healing> {
        self.repairs.healing()
    }

    /// Puts back what others remove, for ever.
    pub async fn run(mut self) {
        let mut next_look = tokio::time::Instant::now() + self.interval;
        loop {
            super::health::beat();
            self.repairs.forget_quiet();
            let notified = async {
                match &mut self.watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = notified => {
                    if let Err(error) = changed {
                        warn!("{error}: looking every {} s", self.resync.as_secs());
                        (self.watch, self.interval) = (None, self.resync);
                    }
                    tokio::time::sleep(SETTLE).await;
                }
                () = tokio::time::sleep_until(next_look) => {}
                () = tokio::time::sleep(super::health::BEAT) => continue,
            }
            let written = self.enforce("traffic rules were changed by others and are put back").await;
            let well = written.is_some();
            let name = |object: String| format!("rules of {object}");
            self.repairs.repaired(&written.into_iter().flatten().map(name).collect::<Vec<_>>());
            if self.watch.is_some() || !well {
                self.look_for_drops().await;
            }
            next_look = tokio::time::Instant::now() + if well { self.interval } else { self.resync };
            tokio::time::sleep(REST).await;
            if let Some(due) = self.repairs.due() {
                tokio::time::sleep_until(due).await;
            }
        }
    }

    /// What had to be written for all to be as it should be; `None` where it is not.
    async fn enforce(&mut self, done: &str) -> Option<Vec<String>> {
        let Some(keeper) = &mut self.keeper else { return Some(Vec::new()) };
        let enforced = keeper.enforce().await;
        if let Ok(written) = &enforced
            && !written.is_empty()
        {
            info!(place = %keeper.place(), "{done}: {}", written.join(", "));
        }
        let complaint = enforced.as_ref().err().map(|error| format!("traffic rules: {error}"));
        let before = self.complaint.send_replace(complaint.clone());
        if let Some(new) = complaint.filter(|new| before.as_ref() != Some(new)) {
            error!("{new}: trying again every {} s", self.resync.as_secs());
        }
        enforced.ok()
    }

    /// After the rules are in force, so that no packet goes without.
    async fn clear_elsewhere(&self) {
        for place in Place::all().await {
            let used = self.keeper.as_ref().is_some_and(|keeper| keeper.place().is_same(&place));
            let families = Family::BOTH.into_iter().filter(|family| !used || !self.families.contains(family));
            for family in families {
                for removed in clear(&place, family).await {
                    info!("removed {removed}: traffic rules do not stand there any more");
                }
            }
        }
    }

    async fn look_for_drops(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        let drops = keeper.place().foreign_drops(&self.families).await;
        for drop in drops.iter().filter(|drop| !self.drops.contains(drop)) {
            warn!(
                "chain {drop} drops what it does not know, and no rule of {} can outvote it: accept the fabric's network there if containers are cut off",
                keeper.place()
            );
        }
        self.drops = drops;
    }
}

fn rulesets(args: &TrafficArgs, config: &NetworkConfig, own: &SubnetKey) -> Vec<Ruleset> {
    let mut plain = Vec::new();
    for net in args.non_masquerade_cidrs.as_ref().unwrap_or(&config.non_masquerade) {
        let net = IpNetwork::new(net.network(), net.prefix()).unwrap_or(*net);
        if !plain.contains(&net) {
            plain.push(net);
        }
    }
    let intent = Intent { masquerade: args.ip_masq, forward: args.iptables_forward_rules, plain };
    config.pools.iter().map(|(family, _)| Ruleset::of(family, &intent, config, own)).collect()
}

/// `None` where there are no rules to keep; an error where no tool is installed.
async fn keeper(
    config: &NetworkConfig,
    families: &[Family],
    rulesets: Vec<Ruleset>,
    random_fully: bool,
) -> Result<Option<Keeper>, String> {
    if rulesets.iter().all(Ruleset::is_empty) {
        return Ok(None);
    }
    let Some((place, why)) = choose(config.enable_nftables, families).await else {
        return Err("traffic rules: neither nft nor iptables is installed: install either, or switch --ip-masq and --iptables-forward-rules off".to_owned());
    };
    match why {
        Some(why) => warn!("traffic rules go to {place}: {why}"),
        None => debug!("traffic rules go to {place}"),
    }
    if place != Place::Nftables && !has_bridge_netfilter() {
        info!(
            "br_netfilter is not loaded: packets between containers of one bridge pass by iptables, which matters to Kubernetes services only"
        );
    }
    Ok(Some(Keeper::new(place, random_fully, rulesets).await))
}

fn follow(keeper: &Keeper) -> Option<Watch> {
    let subject = match keeper.place() {
        Place::Nftables => Subject::tables(nftables::TABLES),
        // Others may change thousands of rules beside ours.
        Place::Iptables(tables) if !tables.legacy => {
            Subject { tables: iptables::TABLES, chains: Some(iptables::CHAINS) }
        }
        Place::Iptables(_) => return None,
    };
    Watch::open(subject).inspect_err(|error| warn!("{error}: looking at the rules now and then instead")).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::firewall::{Side, Verdict};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: TrafficArgs,
    }

    #[test]
    fn the_flag_goes_before_the_config() {
        let config =
            NetworkConfig::parse(r#"{"Network":"10.244.0.0/16","nonMasqueradeCIDRs":["192.168.0.0/16"]}"#)
                .unwrap();
        let plain = |args: &[&str]| {
            let args = std::iter::once("weft").chain(args.iter().copied());
            let args = Cli::try_parse_from(args).unwrap().args;
            let rules = rulesets(&args, &config, &"10.244.7.0-24".parse().unwrap()).remove(0).masquerade;
            let returns = rules.unwrap().into_iter().filter(|rule| rule.verdict == Verdict::Return).skip(4);
            returns.map(|rule| rule.destination.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(plain(&["--ip-masq"]), [Side::In("192.168.0.0/16".parse().unwrap())]);
        assert_eq!(
            plain(&["--ip-masq=T", "--non-masquerade-cidrs=172.16.9.9/12,fd00::/8,172.16.0.0/12"]),
            [Side::In("172.16.0.0/12".parse().unwrap())]
        );
        assert!(Cli::try_parse_from(["weft", "--iptables-resync=0"]).is_err());
    }
}
