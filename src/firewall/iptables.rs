//! The rules as `iptables-save` lists them and `iptables-restore` takes them.

use super::{KUBE_PROXY_MARK, Rule, Ruleset, Side, Verdict};

/// A chain of ours and the kernel's chain that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    pub table: &'static str,
    pub name: &'static str,
    hook: &'static str,
    comment: &'static str,
}

/// nat `POSTROUTING`.
pub const MASQUERADE: Chain =
    Chain { table: "nat", name: "FLANNEL-POSTRTG", hook: "POSTROUTING", comment: "flanneld masq" };
/// filter `FORWARD`.
pub const FORWARD: Chain =
    Chain { table: "filter", name: "FLANNEL-FWD", hook: "FORWARD", comment: "flanneld forward" };
/// flannel's own cleanup looks for its filter chain in the nat table, and may
/// have made it there.
const ASTRAY: Chain = Chain { table: "nat", ..FORWARD };

/// All that is of concern to us in iptables' tables: these chains, whether ours or
/// those that lead to ours.
pub const CHAINS: &[&str] = &[MASQUERADE.name, MASQUERADE.hook, FORWARD.name, FORWARD.hook];
pub const TABLES: &[&str] = &[MASQUERADE.table, FORWARD.table];

/// The chains of a ruleset with their rules.
pub fn chains(want: &Ruleset) -> [(Chain, Option<&[Rule]>); 2] {
    [(MASQUERADE, want.masquerade.as_deref()), (FORWARD, want.forward.as_deref())]
}

/// What `iptables-restore --noflush` has to be told for `chain` to hold `rules`
/// and nothing else, and to be jumped to exactly once, where `saved` is what
/// `iptables-save -t TABLE` says now. `None` where all is well.
///
/// A jump stays at the place it has; a new one is appended, as flannel's is.
pub fn plan(chain: Chain, rules: Option<&[Rule]>, random_fully: bool, saved: &str) -> Option<String> {
    let found = Found::of(chain, saved);
    let Some(rules) = rules else { return removal(chain, &found) };
    let lines: Vec<_> = rules.iter().map(|rule| line(chain, rule, random_fully)).collect();
    let jump = jump(chain);
    let jumps_well = found.jumps == [jump.as_str()];
    if found.exists && found.rules == lines && jumps_well {
        return None;
    }
    let mut commands = vec![format!(":{} - [0:0]", chain.name)];
    commands.extend(lines);
    if !jumps_well {
        commands.extend(found.jumps.iter().map(|line| deletion(line)));
        commands.push(jump);
    }
    Some(transaction(chain.table, &commands))
}

/// What of `saved` is about `chain`: two texts that are equal mean the same.
pub fn extract(chain: Chain, saved: &str) -> String {
    let found = Found::of(chain, saved);
    found.rules.into_iter().chain(found.jumps).collect::<Vec<_>>().join("\n")
}

/// Whether `saved` has rules of others.
pub fn has_foreign_rules(saved: &str) -> bool {
    saved
        .lines()
        .any(|line| line.starts_with("-A ") && !line.contains("FLANNEL-") && !line.contains("flanneld "))
}

/// Whether what no rule of `FORWARD` takes is dropped.
pub fn drops_by_policy(saved_filter: &str) -> bool {
    saved_filter.lines().any(|line| line.starts_with(":FORWARD DROP"))
}

/// Whether what no rule of `INPUT` takes is dropped, and none names that port.
pub fn drops_input(saved_filter: &str, port: u16) -> bool {
    let port = port.to_string();
    let names_it = |line: &str| line.split([' ', ',', ':']).any(|word| word == port);
    saved_filter.lines().any(|line| line.starts_with(":INPUT DROP"))
        && !saved_filter.lines().any(|line| line.starts_with("-A") && names_it(line))
}

struct Found<'a> {
    exists: bool,
    rules: Vec<&'a str>,
    /// From the hook: to our chain, or with our comment, as flannel's before 0.17
    /// that had no chains of their own.
    jumps: Vec<&'a str>,
    /// To our chain, from other chains of whomever.
    strangers: Vec<&'a str>,
}

impl<'a> Found<'a> {
    fn of(chain: Chain, saved: &'a str) -> Found<'a> {
        let declared = format!(":{} ", chain.name);
        let (own, hook) = (format!("-A {} ", chain.name), format!("-A {} ", chain.hook));
        let (target, goto) = (format!(" -j {}", chain.name), format!(" -g {}", chain.name));
        let comment = format!("--comment \"{}\"", chain.comment);
        let mut found = Found { exists: false, rules: vec![], jumps: vec![], strangers: vec![] };
        for line in saved.lines() {
            let leads_here = line.ends_with(&target) || line.ends_with(&goto);
            if line.starts_with(&declared) {
                found.exists = true;
            } else if line.starts_with(&own) {
                found.rules.push(line);
            } else if line.starts_with(&hook) && (leads_here || line.contains(&comment)) {
                found.jumps.push(line);
            } else if line.starts_with("-A ") && leads_here {
                found.strangers.push(line);
            }
        }
        found
    }
}

/// A chain goes with all that leads to it.
fn removal(chain: Chain, found: &Found<'_>) -> Option<String> {
    let mut commands: Vec<_> =
        found.jumps.iter().chain(&found.strangers).map(|line| deletion(line)).collect();
    if found.exists {
        commands.extend([format!("-F {}", chain.name), format!("-X {}", chain.name)]);
    }
    if commands.is_empty() { None } else { Some(transaction(chain.table, &commands)) }
}

/// What flannel may have left where nothing of ours belongs.
pub fn plan_astray(saved_nat: &str) -> Option<String> {
    removal(ASTRAY, &Found::of(ASTRAY, saved_nat))
}

fn deletion(line: &str) -> String {
    format!("-D {}", line.strip_prefix("-A ").unwrap_or(line))
}

fn transaction(table: &str, commands: &[String]) -> String {
    format!("*{table}\n{}\nCOMMIT\n", commands.join("\n"))
}

fn jump(chain: Chain) -> String {
    format!("-A {} -m comment --comment \"{}\" -j {}", chain.hook, chain.comment, chain.name)
}

fn line(chain: Chain, rule: &Rule, random_fully: bool) -> String {
    let mut words = vec![format!("-A {}", chain.name)];
    words.extend(rule.source.map(|side| address("-s", side)));
    words.extend(rule.destination.map(|side| address("-d", side)));
    if rule.marked {
        words.push(format!("-m mark --mark {KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x}"));
    }
    words.push(format!("-m comment --comment \"{}\"", chain.comment));
    words.push(match rule.verdict {
        Verdict::Return => "-j RETURN".to_owned(),
        Verdict::Accept => "-j ACCEPT".to_owned(),
        Verdict::Masquerade if random_fully => "-j MASQUERADE --random-fully".to_owned(),
        Verdict::Masquerade => "-j MASQUERADE".to_owned(),
    });
    words.join(" ")
}

fn address(option: &str, side: Side) -> String {
    match side {
        Side::In(net) => format!("{option} {net}"),
        Side::Outside(net) => format!("! {option} {net}"),
    }
}
