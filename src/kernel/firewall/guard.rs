//! Keeps the table of `crate::firewall::guard`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::{info, warn};

use super::{ToolError, list, tools};
use crate::backends::Encapsulation;
use crate::firewall::guard::{Listed, TABLE, change, whole};

/// The guard of one tunnel.
#[derive(Debug)]
pub struct GuardKeeper {
    tunnel: Encapsulation,
    /// What stands in the set, as far as is known; `None`: look first.
    known: Option<BTreeSet<IpAddr>>,
    /// How this nft lists our rules.
    rules: String,
    dropped: u64,
}

impl GuardKeeper {
    /// `None` where nft is not installed.
    pub fn new(tunnel: Encapsulation) -> Option<GuardKeeper> {
        let keeper = GuardKeeper { tunnel, known: None, rules: Listed::expected(tunnel), dropped: 0 };
        tools::is_installed("nft").then_some(keeper)
    }

    /// Look before the next write: another hand may have been at it.
    pub fn doubt(&mut self) {
        self.known = None;
    }

    /// Packets dropped, as of the last look.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The rules stand, and admit nobody who is not admitted yet: all it takes
    /// before there is a tunnel, and quick, whatever the number of peers.
    pub async fn raise(&mut self) -> Result<(), ToolError> {
        match listed(&["--terse", "list"]).await? {
            Some(listed) if listed.rules == self.rules => Ok(()),
            _ => self.write_whole(BTreeSet::new()).await,
        }
    }

    /// Only `addresses` may send from now on; where they are not the `whole`, also
    /// those that could before. What is there already stays as it is, so that
    /// nobody loses a packet. Gives whether anything was written.
    pub async fn admit(&mut self, mut addresses: BTreeSet<IpAddr>, whole: bool) -> Result<bool, ToolError> {
        if self.known.is_none() {
            self.known = self.look().await?;
        }
        let Some(known) = &self.known else { return self.write_whole(addresses).await.map(|()| true) };
        if !whole {
            addresses.extend(known);
        }
        let Some(script) = change(known, &addresses) else { return Ok(false) };
        // Until it is done: a failure, as where the table is gone, is a doubt.
        self.known = None;
        if tools::run("nft", &["-f", "-"], &script).await.is_err() {
            return self.write_whole(addresses).await.map(|()| true);
        }
        self.known = Some(addresses);
        Ok(true)
    }

    /// The addresses where all else is as it should be.
    async fn look(&mut self) -> Result<Option<BTreeSet<IpAddr>>, ToolError> {
        let Some(listed) = listed(&["list"]).await? else { return Ok(None) };
        self.dropped = listed.dropped;
        Ok((listed.rules == self.rules).then_some(listed.addresses))
    }

    async fn write_whole(&mut self, addresses: BTreeSet<IpAddr>) -> Result<(), ToolError> {
        tools::run("nft", &["-f", "-"], &whole(self.tunnel, &addresses)).await?;
        // Another version may have words of its own for what it was just told, and
        // must not make us write the same for ever.
        if let Some(listed) = listed(&["--terse", "list"]).await?
            && listed.rules != self.rules
        {
            warn!("guard: nft lists our rules in words of its own");
            self.rules = listed.rules;
        }
        self.dropped = 0;
        self.known = Some(addresses);
        Ok(())
    }
}

/// Whether a guard of ours, or of an earlier run, stands on this host.
pub async fn guard_stands() -> Result<bool, ToolError> {
    let (family, name) = TABLE;
    if !tools::is_installed("nft") {
        return Ok(false);
    }
    Ok(list(&["--terse", "list", "table", family, name]).await?.is_some())
}

/// Whoever wants may send again.
pub async fn remove_guard() -> Result<(), ToolError> {
    let (family, name) = TABLE;
    tools::run("nft", &["delete", "table", family, name], "").await?;
    info!("removed {family} {name}");
    Ok(())
}

async fn listed(verb: &[&str]) -> Result<Option<Listed>, ToolError> {
    let (family, name) = TABLE;
    Ok(list(&[verb, &["table", family, name]].concat()).await?.as_ref().and_then(Listed::parse))
}
