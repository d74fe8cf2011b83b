//! `macspoofchk`: frames that do not have the MAC of the container's interface
//! are dropped where they enter the bridge, by the rules of the bridge plugin
//! (pkg/link/spoofcheck.go), so that either can remove what the other made.

use weft::model::{IfName, Mac};

use crate::chain::{Site, Valid};
use crate::identity;
use crate::nft::{Batch, Chain, Family, Hook, Nft, Rule, Table};
use crate::protocol::error::{Code, Error, Result};

const TABLE: Table<'static> = Table { family: Family::Bridge, name: "nat" };
const PREROUTING: Chain<'static> = chain("PREROUTING");
const HOOK: Hook = Hook { kind: "filter", number: libc::NF_INET_PRE_ROUTING, priority: -300 };
const COMMENT: &str = "macspoofchk-";
/// That nft shows it whole (`NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT_MAX: usize = 127;

/// The rules of one attachment.
#[derive(Debug)]
pub struct SpoofCheck {
    /// Container and interface, as the chains and comments have it.
    reference: String,
    /// In a field of the rules that nft does not show: which network's.
    owner: String,
}

impl SpoofCheck {
    pub fn of(site: &Site) -> SpoofCheck {
        let reference = reference(&site.request.container_id, site.request.ifname.as_str());
        SpoofCheck { reference, owner: owner(&site.network) }
    }

    /// Only `mac` may come from `port`.
    pub fn set_up(&self, port: IfName, mac: Mac) -> Result<()> {
        let comment = format!("{COMMENT}{}", self.reference);
        if comment.len() > COMMENT_MAX {
            let msg = format!(
                "macspoofchk: container ID and interface {} make a rule's comment too long",
                self.reference
            );
            return Err(Error::new(Code::NetworkConfig, msg));
        }
        let mut nft = Nft::open()?;
        remove(&mut nft, &self.reference)?;
        let [of_port, of_mac] = chains(&self.reference);
        let (of_port, of_mac) = (chain(&of_port), chain(&of_mac));
        let rule = |chain| Rule::new(chain);
        let mut batch = Batch::default();
        batch.table(TABLE, None);
        nft.need(&mut batch, PREROUTING, Some(HOOK), None)?;
        batch.chain(of_port, None);
        batch.chain(of_mac, None);
        for rule in [
            rule(PREROUTING).arriving_by(port).jump(of_port.name),
            rule(of_port).jump(of_mac.name),
            rule(of_mac).sent_by(mac).back(),
            rule(of_mac).drop(),
        ] {
            batch.rule(&rule.comment(&comment).owner(&self.owner));
        }
        nft.apply(&batch)
    }

    pub fn tear_down(&self) -> Result<()> {
        remove(&mut Nft::open()?, &self.reference)
    }
}

/// Remove the rules of the network's attachments that are not valid.
pub fn collect(network: &str, valid: &Valid) -> Result<()> {
    let valid: Vec<_> = valid.iter().map(|(id, ifname)| reference(id, ifname)).collect();
    let mut nft = Nft::open()?;
    for rule in nft.rules(PREROUTING)? {
        let of_network = rule.owner.is_some_and(|of| of == owner(network));
        let reference = rule.comment.as_deref().and_then(|comment| comment.strip_prefix(COMMENT));
        let Some(stale) = reference.filter(|of| of_network && !valid.iter().any(|valid| valid == of)) else {
            continue;
        };
        remove(&mut nft, stale)?;
    }
    Ok(())
}

/// The jump to the chains and the chains, as far as they are there, at once:
/// GC goes by the jump, so chains must not outlive it.
fn remove(nft: &mut Nft, reference: &str) -> Result<()> {
    let comment = format!("{COMMENT}{reference}");
    let mut batch = Batch::default();
    for rule in nft.rules(PREROUTING)?.iter().filter(|rule| rule.comment.as_deref() == Some(&comment)) {
        batch.delete_rule(PREROUTING, rule.handle);
    }
    for name in &chains(reference) {
        if nft.has_chain(chain(name))? {
            batch.delete_chain(chain(name));
        }
    }
    nft.apply(&batch)
}

fn reference(container_id: &str, ifname: &str) -> String {
    format!("{container_id}-{ifname}")
}

fn owner(network: &str) -> String {
    format!("weft {:06x}", identity::tag(network))
}

/// The port's, which jumps to the MAC's.
fn chains(reference: &str) -> [String; 2] {
    ["", "-mac"].map(|end| format!("cni-br-iface-{reference}{end}"))
}

const fn chain(name: &str) -> Chain<'_> {
    Chain { family: TABLE.family, table: TABLE.name, name }
}
