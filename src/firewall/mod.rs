//! What is done to containers' packets at the border of the fabric: which get
//! the host's address instead of their own, and which are forwarded whatever
//! the host's policy. Pure: one list of rules for a family, rendered for nftables
//! and for iptables with the same meaning, and compared with what the tools list.
//!
//! Names, comments and order are flannel's (pkg/trafficmngr), so that either
//! daemon finds the other's rules and takes them over. flannel's nftables rules
//! mean something else than its iptables rules in two places; here both mean
//! what the iptables ones do.

pub mod guard;
pub mod iptables;
pub mod nftables;
#[cfg(test)]
mod tests;

use ipnetwork::IpNetwork;

use crate::model::{Family, NetworkConfig, SubnetKey};

/// The packets that kube-proxy will masquerade itself, as value and mask.
pub const KUBE_PROXY_MARK: u32 = 0x4000;

/// The rules of one family. `None` is a chain that should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub family: Family,
    /// Before a packet leaves the host: may its source address be replaced?
    pub masquerade: Option<Vec<Rule>>,
    /// On its way through the host: accept it.
    pub forward: Option<Vec<Rule>>,
}

/// One rule: a packet that all its conditions hold for meets the verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Marked by kube-proxy.
    pub marked: bool,
    pub source: Option<Side>,
    pub destination: Option<Side>,
    pub verdict: Verdict,
}

/// Where an address has to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    In(IpNetwork),
    Outside(IpNetwork),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// This chain has nothing more to say of it.
    #[default]
    Return,
    Accept,
    /// Give it the address of the link that it leaves by.
    Masquerade,
}

/// What is asked for, for all families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    pub masquerade: bool,
    pub forward: bool,
    /// Networks that containers' packets reach with their own source address,
    /// none twice, without host bits.
    pub plain: Vec<IpNetwork>,
}

impl Ruleset {
    /// No rules at all: what is there is to go.
    pub fn none(family: Family) -> Ruleset {
        Ruleset { family, masquerade: None, forward: None }
    }

    /// For a node that holds `own`. A family that the config switches off has no
    /// rules.
    pub fn of(family: Family, intent: &Intent, config: &NetworkConfig, own: &SubnetKey) -> Ruleset {
        let subnet = own.nets().find(|(of, _)| *of == family);
        let (Some(pool), Some((_, subnet))) = (config.pools.get(family), subnet) else {
            return Ruleset::none(family);
        };
        let network = pool.network;
        let plain = intent.plain.iter().copied().filter(|net| Family::of_net(*net) == family);
        Ruleset {
            family,
            masquerade: intent.masquerade.then(|| masquerade(network, subnet, plain)),
            forward: intent.forward.then(|| forward(network)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.masquerade.is_none() && self.forward.is_none()
    }
}

fn masquerade(network: IpNetwork, subnet: IpNetwork, plain: impl Iterator<Item = IpNetwork>) -> Vec<Rule> {
    use Side::{In, Outside};
    use Verdict::{Masquerade, Return};
    // kube-proxy's own masquerading comes later; twice is once too often.
    let mut rules = vec![Rule { marked: true, ..Rule::default() }];
    // Inside the fabric everyone sees the true source.
    rules.push(Rule::from_to(In(subnet), In(network), Return));
    rules.push(Rule::from_to(In(network), In(subnet), Return));
    // Who comes from outside to a container here came to the right node already.
    rules.push(Rule::from_to(Outside(network), In(subnet), Return));
    rules.extend(plain.map(|net| Rule::from_to(In(network), In(net), Return)));
    rules.push(Rule::from_to(In(network), Outside(multicast(Family::of_net(network))), Masquerade));
    // The host itself and what it forwards, to another node's containers: their
    // answer must come back here.
    rules.push(Rule::from_to(Outside(network), In(network), Masquerade));
    rules
}

fn forward(network: IpNetwork) -> Vec<Rule> {
    let side = Some(Side::In(network));
    vec![
        Rule { source: side, verdict: Verdict::Accept, ..Rule::default() },
        Rule { destination: side, verdict: Verdict::Accept, ..Rule::default() },
    ]
}

impl Rule {
    fn from_to(source: Side, destination: Side, verdict: Verdict) -> Rule {
        Rule { marked: false, source: source.narrowing(), destination: destination.narrowing(), verdict }
    }
}

impl Side {
    /// A condition that always holds is none: no tool would list it.
    fn narrowing(self) -> Option<Side> {
        if matches!(self, Side::In(net) if net.prefix() == 0) { None } else { Some(self) }
    }
}

fn multicast(family: Family) -> IpNetwork {
    let (addr, prefix) = match family {
        Family::V4 => ([224, 0, 0, 0].into(), 4),
        Family::V6 => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    // Both prefixes are shorter than an address.
    IpNetwork::new(addr, prefix).unwrap_or_else(|_| IpNetwork::from(addr))
}
