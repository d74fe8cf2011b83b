//! nf_tables by netlink (linux/netfilter/nf_tables.h): the few kinds of rules
//! that the plugins need. A transaction takes from 0.05 ms (a host port) to 0.25 ms
//! (masquerading) where running `nft` takes more than 3 ms.

mod nfta;
mod rule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::mem::ManuallyDrop;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use weft::kernel::netlink::{Cause, Connection, Request};

use crate::nfnetlink::{Attribute, Message, be32, be64, bytes, nested, text};
use crate::protocol::error::Result;
pub use rule::{End, Is, Rule};
use rule::{UDATA_COMMENT, UDATA_OWNER, find_user_text, user_text};

/// Kinds of tables, by the packets that they see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Inet = libc::NFPROTO_INET as isize,
    Ip = libc::NFPROTO_IPV4 as isize,
    Ip6 = libc::NFPROTO_IPV6 as isize,
    Bridge = libc::NFPROTO_BRIDGE as isize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    pub family: Family,
    pub table: &'a str,
    pub name: &'a str,
}

/// Where packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*`, for a bridge `NF_BR_*`, which has the same numbers.
    pub number: i32,
    pub priority: i32,
}

/// A rule that stands in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub chain: String,
    pub handle: u64,
    pub comment: Option<String>,
    pub owner: Option<String>,
}

/// Changes that are made all or none.
#[derive(Debug, Default)]
pub struct Batch {
    objects: Vec<String>,
    messages: Vec<(Message, u16)>,
}

/// nf_tables of one network namespace.
///
/// The socket is left to the end of the process. The kernel lets nobody close one
/// before it has freed what was deleted, which takes it some 15 ms after the
/// deletion; until the end much of that has passed with other work.
#[derive(Debug)]
pub struct Nft(std::result::Result<ManuallyDrop<Connection>, Cause>);

/// A chain in which other processes delete rules without pause is read this
/// often before giving up.
const DELETE_TRIES: usize = 10;

impl Nft {
    /// Of the namespace that the thread is in. A kernel without nf_tables has no
    /// rules to look for, and says so only where one is to be made.
    pub fn open() -> Result<Nft> {
        match Connection::open_netfilter() {
            Ok(connection) => Ok(Nft(Ok(ManuallyDrop::new(connection)))),
            Err(e) if e.errno() == Some(libc::EPROTONOSUPPORT) => Ok(Nft(Err(e.cause))),
            Err(e) => Err(e.into()),
        }
    }

    pub fn has_chain(&mut self, chain: Chain<'_>) -> Result<bool> {
        let Ok(connection) = &mut self.0 else { return Ok(false) };
        let question = message(libc::NFT_MSG_GETCHAIN, chain.family as u8, &chain_name(chain));
        match connection.get::<Message>(Request::get(question)) {
            Ok(_) => Ok(true),
            Err(cause) if is_absent(&cause) => Ok(false),
            Err(cause) => Err(cause.of(chain).into()),
        }
    }

    /// The rules of a chain, in order; none where the chain is not there.
    pub fn rules(&mut self, chain: Chain<'_>) -> Result<Vec<Listed>> {
        Ok(self.list(chain.family, &rules_of(chain), &chain)?.iter().filter_map(listed).collect())
    }

    /// How many of these rules of a chain stand there, among those that `is_ours`
    /// picks.
    pub fn standing(
        &mut self,
        chain: Chain<'_>,
        rules: &[Rule<'_>],
        is_ours: impl Fn(&Listed) -> bool,
    ) -> Result<usize> {
        let mut ours = self.list(chain.family, &rules_of(chain), &chain)?;
        ours.retain(|found| listed(found).is_some_and(|found| is_ours(&found)));
        Ok(rules.iter().filter(|rule| ours.iter().any(|found| rule.is(found))).count())
    }

    /// Let the batch see to it that a chain is there that others jump to, or, with a
    /// hook, that packets enter. One that is there is not named again, which would
    /// count as a change and take as long as deleting does.
    pub fn need(
        &mut self,
        batch: &mut Batch,
        chain: Chain<'_>,
        hook: Option<Hook>,
        comment: Option<&str>,
    ) -> Result<()> {
        match (self.has_chain(chain)?, hook) {
            (true, _) => {}
            (false, None) => batch.chain(chain, comment),
            (false, Some(hook)) => batch.base_chain(chain, hook),
        }
        Ok(())
    }

    /// Let the batch see to it that a chain has just these rules. Where it has, they
    /// are left, since deleting takes long.
    pub fn keep(&mut self, batch: &mut Batch, chain: Chain<'_>, rules: &[Rule<'_>]) -> Result<()> {
        let wanted: Vec<_> = rules.iter().map(|rule| Some(rule.digest())).collect();
        let have: Vec<_> = self.rules(chain)?.into_iter().map(|rule| rule.owner).collect();
        if have != wanted {
            batch.flush(chain);
            rules.iter().for_each(|rule| batch.rule(&rule.clone().owner(&rule.digest())));
        }
        Ok(())
    }

    pub fn apply(&mut self, batch: &Batch) -> Result<()> {
        self.commit(batch).map_err(|(object, cause)| cause.of(object).into())
    }

    /// Delete the rules of these tables that `is_ours` picks. A rule that
    /// another process deletes meanwhile is as good.
    pub fn delete_rules(&mut self, tables: &[Table<'_>], is_ours: impl Fn(&Listed) -> bool) -> Result<()> {
        let mut tries = 0..DELETE_TRIES;
        loop {
            let mut batch = Batch::default();
            for &Table { family, name: table } in tables {
                let rules =
                    self.list(family, &[text(nfta::RULE_TABLE, table)], &Table { family, name: table })?;
                for rule in rules.iter().filter_map(listed).filter(|rule| is_ours(rule)) {
                    batch.delete_rule(Chain { family, table, name: &rule.chain }, rule.handle);
                }
            }
            match self.commit(&batch) {
                Ok(()) => return Ok(()),
                Err((_, cause)) if cause.errno() == Some(libc::ENOENT) && tries.next().is_some() => {}
                Err((object, cause)) => return Err(cause.of(object).into()),
            }
        }
    }

    fn list(&mut self, family: Family, of: &[Attribute], object: &dyn fmt::Display) -> Result<Vec<Message>> {
        let Ok(connection) = &mut self.0 else { return Ok(Vec::new()) };
        let question = message(libc::NFT_MSG_GETRULE, family as u8, of);
        match connection.dump(Request::dump(question)) {
            Err(cause) if is_absent(&cause) => Ok(Vec::new()),
            rules => rules.map_err(|cause| cause.of(format_args!("rules of {object}")).into()),
        }
    }

    /// On failure what was at fault, and why.
    fn commit(&mut self, batch: &Batch) -> std::result::Result<(), (String, Cause)> {
        let Some(last) = batch.messages.len().checked_sub(1) else { return Ok(()) };
        let connection = self.0.as_mut().map_err(|cause| ("nftables".to_owned(), cause.clone()))?;
        let bound = |kind| Request::new(Message::batch(kind, libc::NFNL_SUBSYS_NFTABLES), 0);
        let changes = batch.messages.iter().enumerate().map(|(index, (message, flags))| {
            Request::new(message.clone(), if index == last { flags | NLM_F_ACK } else { *flags })
        });
        let mut requests = vec![bound(libc::NFNL_MSG_BATCH_BEGIN)];
        requests.extend(changes);
        requests.push(bound(libc::NFNL_MSG_BATCH_END));
        connection.transaction(&mut requests).map_err(|(index, cause)| {
            let object = index.checked_sub(1).and_then(|index| batch.objects.get(index));
            (object.cloned().unwrap_or_else(|| "nftables".to_owned()), cause)
        })
    }
}

impl Batch {
    /// Make a table, unless it is there.
    pub fn table(&mut self, table: Table<'_>, comment: Option<&str>) {
        let mut attributes = vec![text(nfta::TABLE_NAME, table.name)];
        attributes
            .extend(comment.map(|comment| bytes(nfta::TABLE_USERDATA, user_text(UDATA_COMMENT, comment))));
        self.push(&table, message(libc::NFT_MSG_NEWTABLE, table.family as u8, &attributes), NLM_F_CREATE);
    }

    /// Make a chain that others jump to, unless it is there.
    pub fn chain(&mut self, chain: Chain<'_>, comment: Option<&str>) {
        let comment = comment.map(|comment| bytes(nfta::CHAIN_USERDATA, user_text(UDATA_COMMENT, comment)));
        self.new_chain(chain, comment.into_iter().collect());
    }

    /// Make a chain that packets enter at a hook, unless it is there.
    pub fn base_chain(&mut self, chain: Chain<'_>, hook: Hook) {
        let at =
            [be32(nfta::HOOK_HOOKNUM, hook.number as u32), be32(nfta::HOOK_PRIORITY, hook.priority as u32)];
        self.new_chain(chain, vec![nested(nfta::CHAIN_HOOK, &at), text(nfta::CHAIN_TYPE, hook.kind)]);
    }

    /// Delete a chain and the rules in it.
    pub fn delete_chain(&mut self, chain: Chain<'_>) {
        self.flush(chain);
        let attributes = chain_name(chain);
        self.push(&chain, message(libc::NFT_MSG_DELCHAIN, chain.family as u8, &attributes), 0);
    }

    /// Delete the rules of a chain.
    pub fn flush(&mut self, chain: Chain<'_>) {
        let attributes = rules_of(chain);
        self.push(&chain, message(libc::NFT_MSG_DELRULE, chain.family as u8, &attributes), 0);
    }

    /// Append a rule to its chain.
    pub fn rule(&mut self, rule: &Rule<'_>) {
        let chain = rule.chain;
        let mut attributes = rules_of(chain).to_vec();
        attributes.push(nested(nfta::RULE_EXPRESSIONS, &rule.expressions));
        if !rule.userdata.is_empty() {
            attributes.push(bytes(nfta::RULE_USERDATA, rule.userdata.clone()));
        }
        let message = message(libc::NFT_MSG_NEWRULE, chain.family as u8, &attributes);
        self.push(&format_args!("rule of {chain}"), message, NLM_F_CREATE | NLM_F_APPEND);
    }

    pub fn delete_rule(&mut self, chain: Chain<'_>, handle: u64) {
        let [table, name] = rules_of(chain);
        let attributes = [table, name, be64(nfta::RULE_HANDLE, handle)];
        let message = message(libc::NFT_MSG_DELRULE, chain.family as u8, &attributes);
        self.push(&format_args!("rule {handle} of {chain}"), message, 0);
    }

    fn new_chain(&mut self, chain: Chain<'_>, more: Vec<Attribute>) {
        let attributes = [chain_name(chain).to_vec(), more].concat();
        self.push(&chain, message(libc::NFT_MSG_NEWCHAIN, chain.family as u8, &attributes), NLM_F_CREATE);
    }

    fn push(&mut self, object: &dyn fmt::Display, message: Message, flags: u16) {
        self.objects.push(object.to_string());
        self.messages.push((message, flags));
    }
}

fn message(kind: i32, family: u8, attributes: &[Attribute]) -> Message {
    Message::new(libc::NFNL_SUBSYS_NFTABLES, kind, family, attributes)
}

fn chain_name(chain: Chain<'_>) -> [Attribute; 2] {
    [text(nfta::CHAIN_TABLE, chain.table), text(nfta::CHAIN_NAME, chain.name)]
}

fn rules_of(chain: Chain<'_>) -> [Attribute; 2] {
    [text(nfta::RULE_TABLE, chain.table), text(nfta::RULE_CHAIN, chain.name)]
}

fn listed(message: &Message) -> Option<Listed> {
    let (mut chain, mut handle, mut userdata) = (None, None, &[][..]);
    for (kind, value) in message.attributes() {
        match kind {
            nfta::RULE_CHAIN => chain = value.strip_suffix(b"\0").map(<[u8]>::to_vec),
            nfta::RULE_HANDLE => handle = value.first_chunk().map(|handle| u64::from_be_bytes(*handle)),
            nfta::RULE_USERDATA => userdata = value,
            _ => {}
        }
    }
    Some(Listed {
        chain: String::from_utf8(chain?).ok()?,
        handle: handle?,
        comment: find_user_text(userdata, UDATA_COMMENT),
        owner: find_user_text(userdata, UDATA_OWNER),
    })
}

/// The kernel says that the object is not there. It answers a question to a
/// subsystem that it lacks with EINVAL.
fn is_absent(cause: &Cause) -> bool {
    matches!(cause.errno(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP))
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Bridge => "bridge",
        })
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nftables table {} {}", self.family, self.name)
    }
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nftables chain {} {} {}", self.family, self.table, self.name)
    }
}
