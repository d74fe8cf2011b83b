//! The filter rules of attachments, in the words of `iptables --list-rules`, and
//! what `iptables-restore --noflush` has to do for them to stand or to go. The
//! rules are the reference plugin's, so that either finds what the other made.

use std::net::IpAddr;

use weft::model::IfName;

const FORWARD: &str = "FORWARD";
pub const ACCEPT_CHAIN: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// Which rules there have to be in one family.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Containers' addresses, whose traffic may be forwarded.
    pub accept: &'a [IpAddr],
    /// The chain that may decide otherwise.
    pub admin_chain: &'a str,
    pub isolation: Option<&'a Isolation>,
}

/// `ingressPolicy` other than `open`: what comes from another bridge is dropped.
#[derive(Clone, Debug)]
pub struct Isolation {
    pub bridge: IfName,
    /// What comes from the same bridge is dropped, too.
    pub within: bool,
}

impl Wanted<'_> {
    pub fn is_empty(&self) -> bool {
        self.accept.is_empty() && self.isolation.is_none()
    }

    /// The lines that make what is missing in `listing`.
    pub fn additions(&self, listing: &[String]) -> Vec<String> {
        let mut script = Script { listing, lines: Vec::new() };
        if !self.accept.is_empty() {
            script.chain(ACCEPT_CHAIN);
            script.chain(self.admin_chain);
        }
        if self.isolation.is_some() {
            script.chain(STAGE_1);
            script.chain(STAGE_2);
        }
        script.jumps(!self.accept.is_empty(), self.isolation.is_some());
        if !self.accept.is_empty() {
            let overrides =
                format!("{} -j {}", comment("CNI firewall plugin admin overrides"), self.admin_chain);
            script.first(ACCEPT_CHAIN, &overrides);
        }
        for rule in self.accept.iter().flat_map(accepting) {
            script.last(ACCEPT_CHAIN, &rule);
        }
        if let Some(isolation) = self.isolation {
            script.isolate(isolation);
        }
        script.lines
    }
}

/// The lines that delete the rules of these addresses, as often as they are there.
pub fn removals(addresses: &[IpAddr], listing: &[String]) -> Vec<String> {
    let rules: Vec<_> =
        addresses.iter().flat_map(accepting).map(|rule| appended(ACCEPT_CHAIN, &rule)).collect();
    let there = listing.iter().filter(|line| rules.contains(line));
    there.filter_map(|line| line.strip_prefix("-A ")).map(|rule| format!("-D {rule}")).collect()
}

struct Script<'a> {
    listing: &'a [String],
    lines: Vec<String>,
}

impl Script<'_> {
    fn chain(&mut self, name: &str) {
        let line = format!("-N {name}");
        if self.at(&line).is_none() && !self.lines.contains(&line) {
            self.lines.push(line);
        }
    }

    fn first(&mut self, chain: &str, rule: &str) {
        if self.at(&appended(chain, rule)).is_none() {
            self.lines.push(format!("-I {chain} 1 {rule}"));
        }
    }

    fn last(&mut self, chain: &str, rule: &str) {
        let line = appended(chain, rule);
        if self.at(&line).is_none() {
            self.lines.push(line);
        }
    }

    /// Isolation comes before acceptance, or it would isolate nothing.
    fn jumps(&mut self, accept: bool, isolate: bool) {
        let accepting = format!("{} -j {ACCEPT_CHAIN}", comment("CNI firewall plugin rules"));
        let isolating = format!("{} -j {STAGE_1}", comment(BOTH_POLICIES));
        let accepting_at = self.at(&appended(FORWARD, &accepting));
        let isolating_at = self.at(&appended(FORWARD, &isolating));
        let inserted = accept && accepting_at.is_none();
        if accept {
            self.first(FORWARD, &accepting);
        }
        let wrong = match isolating_at {
            None => isolate,
            Some(at) => inserted || accepting_at.is_some_and(|accepting_at| accepting_at < at),
        };
        if !wrong {
            return;
        }
        if isolating_at.is_some() {
            self.lines.push(format!("-D {FORWARD} {isolating}"));
        }
        self.lines.push(format!("-I {FORWARD} 1 {isolating}"));
    }

    fn isolate(&mut self, isolation: &Isolation) {
        let bridge = isolation.bridge;
        let policy = if isolation.within { "isolated" } else { "same-bridge" };
        let policy = comment(&format!("CNI firewall plugin rules (ingressPolicy: {policy})"));
        let both = comment(BOTH_POLICIES);
        self.first(STAGE_1, &format!("-i {bridge} ! -o {bridge} {policy} -j {STAGE_2}"));
        if isolation.within {
            self.first(STAGE_1, &format!("-i {bridge} -o {bridge} {policy} -j DROP"));
        }
        self.last(STAGE_1, &format!("{both} -j RETURN"));
        self.first(STAGE_2, &format!("-o {bridge} {both} -j DROP"));
        self.last(STAGE_2, &format!("{both} -j RETURN"));
    }

    fn at(&self, line: &str) -> Option<usize> {
        self.listing.iter().position(|listed| listed == line)
    }
}

const BOTH_POLICIES: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

fn accepting(address: &IpAddr) -> [String; 2] {
    let host = host(*address);
    [
        format!("-d {host} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-s {host} -j ACCEPT"),
    ]
}

/// An address as a network of its own.
pub fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn appended(chain: &str, rule: &str) -> String {
    format!("-A {chain} {rule}")
}

fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}
