//! Reads and writes the rules of `crate::firewall`, by `nft` or by either
//! `iptables`.

mod guard;
mod tools;
mod watch;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use tracing::warn;

use crate::firewall::iptables::{self, Chain};
use crate::firewall::{Ruleset, nftables};
use crate::model::Family;

pub use guard::{GuardKeeper, guard_stands, remove_guard};
pub use tools::{Iptables, ToolError, has_bridge_netfilter};
pub use watch::{Subject, Watch};

/// Writes in a row that another hand spoils at once; then it waits for the next
/// look.
const MAX_WRITES: usize = 3;

/// Where rules can stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Tables of our own.
    Nftables,
    Iptables(Iptables),
}

/// What would make one table as it should be.
#[derive(Clone, Debug)]
pub struct Change {
    place: Place,
    word: &'static str,
    /// Where in the place: a table or a chain.
    pub object: String,
    /// For `nft -f -` or for `iptables-restore --noflush`.
    pub script: String,
    /// What is there now, as the tool says it.
    now: String,
}

impl Place {
    /// Where rules of ours may stand on this host, whoever put them there.
    pub async fn all() -> Vec<Place> {
        let nft = tools::is_installed("nft").then_some(Place::Nftables);
        nft.into_iter().chain(variants().await.into_iter().map(Place::Iptables)).collect()
    }

    /// What to do for the family's rules to be `want` here and nothing else.
    /// Reads only.
    pub async fn plan(&self, want: &Ruleset, random_fully: bool) -> Result<Vec<Change>, ToolError> {
        let word = word(want.family);
        let change = |object: String, script, now| Change { place: self.clone(), word, object, script, now };
        let tables = match self {
            Place::Nftables => {
                let (family, name) = nftables::table(want.family);
                let listed = list(&["list", "table", family, name]).await?;
                let plan = nftables::plan(want, random_fully, listed.as_ref());
                let now = listed.as_ref().map(nftables::extract).unwrap_or_default();
                return Ok(plan
                    .map(|script| change(format!("{family} {name}"), script, now))
                    .into_iter()
                    .collect());
            }
            Place::Iptables(tables) if !tables.serves(word) => return Ok(Vec::new()),
            Place::Iptables(tables) => tables,
        };
        let mut changes = Vec::new();
        for (chain, rules) in iptables::chains(want) {
            if rules.is_none() && !tables.has_table(word, chain.table) {
                continue;
            }
            let saved = tables.save(word, chain.table).await?;
            let object = |chain: Chain| format!("{word}tables {} {}", chain.table, chain.name);
            let random_fully = random_fully && tables.modern;
            if let Some(script) = iptables::plan(chain, rules, random_fully, &saved) {
                changes.push(change(object(chain), script, iptables::extract(chain, &saved)));
            }
            if chain == iptables::MASQUERADE
                && let Some(script) = iptables::plan_astray(&saved)
            {
                changes.push(change(object(iptables::FORWARD), script, String::new()));
            }
        }
        Ok(changes)
    }

    /// Whether rules here are rules there: a variant may have several names.
    pub fn is_same(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Iptables(a), Place::Iptables(b)) => a.legacy == b.legacy,
            _ => self == other,
        }
    }

    /// Chains of others that drop what passes through this host and is not known
    /// to them, as far as rules in this place cannot outvote them.
    pub async fn foreign_drops(&self, families: &[Family]) -> Vec<String> {
        let mut drops = self.legacy_drops(families).await;
        if !tools::is_installed("nft") {
            return drops;
        }
        let on_nf_tables = matches!(self, Place::Iptables(tables) if !tables.legacy);
        match list(&["list", "chains"]).await {
            Ok(listed) => {
                drops.extend(nftables::foreign_drops(&listed.unwrap_or_default(), families, on_nf_tables));
            }
            Err(error) => warn!("looking for chains that drop: {error}"),
        }
        drops
    }

    async fn legacy_drops(&self, families: &[Family]) -> Vec<String> {
        let mut drops = Vec::new();
        for tables in variants().await.into_iter().filter(|tables| tables.legacy) {
            if self.is_same(&Place::Iptables(tables.clone())) {
                continue;
            }
            for word in families.iter().map(|family| word(*family)) {
                if tables.serves(word)
                    && tables.has_table(word, "filter")
                    && tables.save(word, "filter").await.is_ok_and(|saved| iptables::drops_by_policy(&saved))
                {
                    drops.push(format!("{word}tables filter FORWARD (legacy)"));
                }
            }
        }
        drops
    }
}

impl Change {
    pub async fn apply(&self) -> Result<(), ToolError> {
        match &self.place {
            Place::Nftables => tools::run("nft", &["-f", "-"], &self.script).await.map(drop),
            Place::Iptables(tables) => tables.restore(self.word, &self.script).await,
        }
    }
}

/// Holds rules in one place.
#[derive(Debug)]
pub struct Keeper {
    place: Place,
    random_fully: bool,
    rulesets: Vec<Ruleset>,
    /// How a tool lists our rules right after it took them, by object, where that
    /// is not what we know: another version may have words of its own, and must
    /// not make us write the same for ever.
    accents: BTreeMap<String, String>,
}

impl Keeper {
    pub async fn new(place: Place, random_fully: bool, rulesets: Vec<Ruleset>) -> Keeper {
        let can = match &place {
            Place::Nftables => probe_random_fully().await,
            Place::Iptables(tables) => tables.modern,
        };
        Keeper { place, random_fully: random_fully && can, rulesets, accents: BTreeMap::new() }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Make the rules so. What was written, by name: nothing where all was well.
    /// One family's failure does not keep the other from its rules.
    pub async fn enforce(&mut self) -> Result<Vec<String>, ToolError> {
        let mut written = Vec::new();
        let mut failed = None;
        for want in self.rulesets.clone() {
            match self.enforce_one(&want).await {
                Ok(objects) => written.extend(objects),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(written), Err)
    }

    async fn enforce_one(&mut self, want: &Ruleset) -> Result<Vec<String>, ToolError> {
        let mut changes = self.differences(want).await?;
        let written = changes.iter().map(|change| change.object.clone()).collect();
        // Someone else may write at the same moment: only what is listed after
        // both of two writes is an accent.
        let mut before = None;
        for _ in 0..MAX_WRITES {
            if changes.is_empty() {
                break;
            }
            for change in &changes {
                change.apply().await?;
            }
            changes = self.differences(want).await?;
            let now: Vec<_> =
                changes.iter().map(|change| (change.object.clone(), change.now.clone())).collect();
            if before.as_ref() == Some(&now) {
                self.learn_accents(now);
                break;
            }
            before = Some(now);
        }
        Ok(written)
    }

    /// But for those that are a matter of words.
    async fn differences(&self, want: &Ruleset) -> Result<Vec<Change>, ToolError> {
        let mut changes = self.place.plan(want, self.random_fully).await?;
        changes.retain(|change| self.accents.get(&change.object) != Some(&change.now));
        Ok(changes)
    }

    fn learn_accents(&mut self, listed: Vec<(String, String)>) {
        for (object, now) in listed.into_iter().filter(|(_, now)| !now.is_empty()) {
            warn!("{object}: {} lists our rules in words of its own", self.place);
            self.accents.insert(object, now);
        }
    }
}

/// Remove all rules of ours of one family from a place. What was removed, by
/// name; what cannot be is told of.
pub async fn clear(place: &Place, family: Family) -> Vec<String> {
    let changes = place.plan(&Ruleset::none(family), false).await.unwrap_or_else(|error| {
        warn!("looking for old {family} rules in {place}: {error}");
        Vec::new()
    });
    let mut removed = Vec::new();
    for change in changes {
        match change.apply().await {
            Ok(()) => removed.push(format!("{} ({place})", change.object)),
            Err(error) => warn!("removing {} from {place}: {error}", change.object),
        }
    }
    removed
}

/// Where rules for `families` go, and why if that needs saying. `None` where no
/// tool is installed.
pub async fn choose(nftables: bool, families: &[Family]) -> Option<(Place, Option<String>)> {
    let nft = tools::is_installed("nft");
    if nftables && nft {
        return Some((Place::Nftables, None));
    }
    let mut usable = variants().await;
    usable.retain(|tables| families.iter().all(|family| tables.serves(word(*family))));
    match choose_variant(usable).await {
        Some((tables, why)) if !nftables => Some((Place::Iptables(tables), why)),
        Some((tables, _)) => {
            Some((Place::Iptables(tables), Some("EnableNFTables is set but nft is not installed".to_owned())))
        }
        None if nft => {
            let why = "no iptables is installed that serves all families: going on with nft";
            Some((Place::Nftables, Some(why.to_owned())))
        }
        None => None,
    }
}

/// The host's `iptables` decides, unless only the other variant is in use by
/// someone: rules of both kinds are seen by every packet, and mixing them is
/// what people search for in vain.
async fn choose_variant(mut usable: Vec<Iptables>) -> Option<(Iptables, Option<String>)> {
    let default = Iptables::find("").await.map(|tables| tables.legacy);
    usable.sort_by_key(|tables| Some(tables.legacy) != default);
    let mut usable = usable.into_iter();
    let first = usable.next()?;
    if let Some(second) = usable.next()
        && !is_in_use(&first).await
        && is_in_use(&second).await
    {
        let why = format!("only {second} has rules of others");
        return Some((second, Some(why)));
    }
    Some((first, None))
}

async fn is_in_use(tables: &Iptables) -> bool {
    for word in ["ip", "ip6"] {
        for table in ["filter", "nat", "mangle"] {
            if tables.serves(word)
                && tables.has_table(word, table)
                && tables.save(word, table).await.is_ok_and(|saved| iptables::has_foreign_rules(&saved))
            {
                return true;
            }
        }
    }
    false
}

/// By their own names where they have them: `iptables` is a link to one of them.
async fn variants() -> Vec<Iptables> {
    let mut found = Vec::new();
    for suffix in ["-nft", "-legacy"] {
        found.extend(Iptables::find(suffix).await);
    }
    if found.is_empty() {
        found.extend(Iptables::find("").await);
    }
    found
}

/// Chains of others, of every tool, that drop what comes in to this host and is not
/// known to them, where no rule beside them names that UDP port.
pub async fn input_drops(port: u16, families: &[Family]) -> Vec<String> {
    let mut drops = Vec::new();
    for tables in variants().await {
        for word in families.iter().map(|family| word(*family)) {
            if tables.serves(word)
                && tables.has_table(word, "filter")
                && tables.save(word, "filter").await.is_ok_and(|saved| iptables::drops_input(&saved, port))
            {
                drops.push(format!("{word}tables filter INPUT ({tables})"));
            }
        }
    }
    match list(&["--terse", "list", "ruleset"]).await {
        Ok(listed) => drops.extend(nftables::input_drops(&listed.unwrap_or_default(), families, port)),
        Err(error) => warn!("looking for chains that drop: {error}"),
    }
    drops
}

/// Whether this nft and this kernel take what the script is made of, or why not.
/// Writes nothing.
pub async fn nftables_takes(script: &str) -> Result<(), String> {
    tools::run("nft", &["--check", "-f", "-"], script).await.map(drop).map_err(|error| error.to_string())
}

async fn probe_random_fully() -> bool {
    tools::run("nft", &["--check", "-f", "-"], nftables::PROBE_RANDOM_FULLY).await.is_ok()
}

/// `nft --json ARGUMENTS`; `None` where there is no such thing.
async fn list(arguments: &[&str]) -> Result<Option<Value>, ToolError> {
    let arguments: Vec<_> = std::iter::once("--json").chain(arguments.iter().copied()).collect();
    let text = match tools::run("nft", &arguments, "").await {
        Err(error) if error.is_absence() => return Ok(None),
        text => text?,
    };
    let parsed = serde_json::from_str(&text);
    parsed
        .map(Some)
        .map_err(|e| ToolError::Failed { program: "nft".to_owned(), said: format!("not JSON: {e}") })
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Nftables => f.write_str("nftables"),
            Place::Iptables(tables) => tables.fmt(f),
        }
    }
}
