//! The rules as nft scripts, and as `nft --json` lists them (libnftables-json(5)).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{KUBE_PROXY_MARK, Rule, Ruleset, Side, Verdict};
use crate::model::Family;

/// The family's word and the name of our table.
pub fn table(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("ip", "flannel-ipv4"),
        Family::V6 => ("ip6", "flannel-ipv6"),
    }
}

/// The names of our tables of all families.
pub const TABLES: &[&str] = &["flannel-ipv4", "flannel-ipv6"];

/// Asks whether the kernel can draw source ports fully at random: a script for
/// `nft --check`.
pub const PROBE_RANDOM_FULLY: &str = "add table ip flannel-probe
add chain ip flannel-probe postrtg { type nat hook postrouting priority 100 ; }
add rule ip flannel-probe postrtg masquerade fully-random
";

/// The script that makes our table of that family hold `want` and nothing else,
/// in one transaction, where `listed` is what `nft --json list table` says now
/// (`None`: there is no such table). `None` where all is well.
pub fn plan(want: &Ruleset, random_fully: bool, listed: Option<&Value>) -> Option<String> {
    let (family, name) = table(want.family);
    if want.is_empty() {
        return listed.map(|_| format!("delete table {family} {name}\n"));
    }
    if listed.and_then(read).is_some_and(|have| have == expected(want, random_fully)) {
        return None;
    }
    // The table is ours alone: it is made anew, whatever it held.
    let mut script = format!("add table {family} {name}\ndelete table {family} {name}\n");
    script += &format!("add table {family} {name} {{ comment \"rules for {name}\" ; }}\n");
    for (chain, rules) in chains(want) {
        let Chain { name: chain, kind, hook, priority, comment } = chain;
        script += &format!(
            "add chain {family} {name} {chain} {{ type {kind} hook {hook} priority {priority} ; policy accept ; comment \"{comment}\" ; }}\n"
        );
        for rule in rules {
            script += &format!("add rule {family} {name} {chain} {}\n", text(family, rule, random_fully));
        }
    }
    Some(script)
}

/// What is listed but for the numbers that the kernel gives: two texts that are
/// equal mean the same.
pub fn extract(listed: &Value) -> String {
    let without_handle = |(kind, object): (&str, &Value)| {
        let mut object = object.clone();
        object.as_object_mut().map(|members| members.remove("handle"));
        format!("{kind} {object}\n")
    };
    objects(listed).map(without_handle).collect()
}

/// Base chains of others on the way through the host that drop what they do not
/// know, from `nft --json list chains`, as `inet firewalld filter_FORWARD`. In
/// nftables no accepting rule elsewhere outvotes them. `but_for_iptables` passes
/// over the chains that rules of iptables (nf_tables) stand in.
pub fn foreign_drops(listed: &Value, families: &[Family], but_for_iptables: bool) -> Vec<String> {
    let drops = |chain: &Value| {
        let (family, table_name) = (chain["family"].as_str()?, chain["table"].as_str()?);
        let ours = families.iter().any(|f| table(*f).0 == family);
        let is_iptables = (table_name, chain["name"].as_str()?) == ("filter", "FORWARD") && family != "inet";
        let concerns = (ours || family == "inet") && !(is_iptables && but_for_iptables);
        let drops = chain["hook"] == "forward" && chain["policy"] == "drop";
        (concerns && drops).then(|| Some(format!("{family} {table_name} {}", chain["name"].as_str()?)))?
    };
    objects(listed).filter_map(|(kind, chain)| if kind == "chain" { drops(chain) } else { None }).collect()
}

/// The same for what comes in to this host, from `nft --json list ruleset`: chains
/// in whose table no rule names that port. Those of iptables are left to it.
pub fn input_drops(listed: &Value, families: &[Family], port: u16) -> Vec<String> {
    let of_table = |object: &Value| (object["family"].clone(), object["table"].clone());
    let rules = || objects(listed).filter(|(kind, _)| *kind == "rule").map(|(_, rule)| rule);
    let drops = |chain: &Value| {
        let (family, table_name) = (chain["family"].as_str()?, chain["table"].as_str()?);
        let concerns = family == "inet" || families.iter().any(|f| table(*f).0 == family);
        let is_iptables = (table_name, chain["name"].as_str()?) == ("filter", "INPUT") && family != "inet";
        let drops = chain["hook"] == "input" && chain["policy"] == "drop";
        let known = || rules().any(|rule| of_table(rule) == of_table(chain) && names(&rule["expr"], port));
        (concerns && drops && !is_iptables && !known())
            .then(|| Some(format!("chain {family} {table_name} {}", chain["name"].as_str()?)))?
    };
    objects(listed).filter_map(|(kind, chain)| if kind == "chain" { drops(chain) } else { None }).collect()
}

/// Whether a port stands anywhere in an expression, alone or within a range.
fn names(expression: &Value, port: u16) -> bool {
    match expression {
        Value::Array(parts) => parts.iter().any(|part| names(part, port)),
        Value::Object(members) => {
            let within = |range: &Value| {
                let [low, high] = [0, 1].map(|i| range[i].as_u64());
                low.zip(high).is_some_and(|(low, high)| (low..=high).contains(&port.into()))
            };
            members.get("range").is_some_and(within) || members.values().any(|part| names(part, port))
        }
        value => value.as_u64() == Some(port.into()),
    }
}

struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: &'static str,
    priority: i64,
    comment: &'static str,
}

/// `srcnat` is priority 100, `filter` is 0.
fn chains(want: &Ruleset) -> impl Iterator<Item = (Chain, &[Rule])> {
    let masquerade = Chain {
        name: "postrtg",
        kind: "nat",
        hook: "postrouting",
        priority: 100,
        comment: "chain to manage traffic masquerading by flannel",
    };
    let forward = Chain {
        name: "forward",
        kind: "filter",
        hook: "forward",
        priority: 0,
        comment: "chain to accept flannel traffic",
    };
    let all = [(masquerade, want.masquerade.as_deref()), (forward, want.forward.as_deref())];
    all.into_iter().filter_map(|(chain, rules)| Some((chain, rules?)))
}

/// Each chain's type and place, and its rules' expressions.
type Content = BTreeMap<String, (Value, Vec<Value>)>;

fn expected(want: &Ruleset, random_fully: bool) -> Content {
    let (family, _) = table(want.family);
    let chain = |(chain, rules): (Chain, &[Rule])| {
        let place = json!([chain.kind, chain.hook, chain.priority, "accept"]);
        let rules = rules.iter().map(|rule| expression(family, rule, random_fully)).collect();
        (chain.name.to_owned(), (place, rules))
    };
    chains(want).map(chain).collect()
}

/// `None` where there is something that we never put there.
fn read(listed: &Value) -> Option<Content> {
    let mut content = Content::new();
    for (kind, object) in objects(listed) {
        match kind {
            "metainfo" => {}
            // A dormant table does nothing.
            "table" if object.get("flags").is_none() => {}
            "chain" => {
                let place = json!([object["type"], object["hook"], object["prio"], object["policy"]]);
                content.insert(object["name"].as_str()?.to_owned(), (place, Vec::new()));
            }
            "rule" => {
                let expressions = object["expr"].as_array()?.iter().map(normal).collect();
                content.get_mut(object["chain"].as_str()?)?.1.push(expressions);
            }
            _ => return None,
        }
    }
    Some(content)
}

/// The members of `{"nftables": [{KIND: OBJECT}, …]}`.
fn objects(listed: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let entries = listed["nftables"].as_array().into_iter().flatten();
    entries.filter_map(Value::as_object).flatten().map(|(kind, object)| (kind.as_str(), object))
}

/// Newer versions write a single flag as a list of one.
fn normal(expression: &Value) -> Value {
    match expression["masquerade"]["flags"].as_array().map(Vec::as_slice) {
        Some([flag]) => json!({"masquerade": {"flags": flag}}),
        _ => expression.clone(),
    }
}

fn expression(family: &str, rule: &Rule, random_fully: bool) -> Value {
    let mut out = Vec::new();
    let mut condition =
        |op, left, right| out.push(json!({"match": {"op": op, "left": left, "right": right}}));
    if rule.marked {
        let masked = json!({"&": [{"meta": {"key": "mark"}}, KUBE_PROXY_MARK]});
        condition("==", masked, json!(KUBE_PROXY_MARK));
    }
    for (field, side) in [("saddr", rule.source), ("daddr", rule.destination)] {
        let Some(side) = side else { continue };
        let (op, net) = match side {
            Side::In(net) => ("==", net),
            Side::Outside(net) => ("!=", net),
        };
        let right = match net.prefix() == Family::of_net(net).bits() {
            true => json!(net.ip().to_string()),
            false => json!({"prefix": {"addr": net.ip().to_string(), "len": net.prefix()}}),
        };
        condition(op, json!({"payload": {"protocol": family, "field": field}}), right);
    }
    out.push(match rule.verdict {
        Verdict::Return => json!({"return": null}),
        Verdict::Accept => json!({"accept": null}),
        Verdict::Masquerade if random_fully => json!({"masquerade": {"flags": "fully-random"}}),
        Verdict::Masquerade => json!({"masquerade": null}),
    });
    Value::Array(out)
}

fn text(family: &str, rule: &Rule, random_fully: bool) -> String {
    let mut words = Vec::new();
    if rule.marked {
        words.push(format!("meta mark & {KUBE_PROXY_MARK:#x} == {KUBE_PROXY_MARK:#x}"));
    }
    for (field, side) in [("saddr", rule.source), ("daddr", rule.destination)] {
        words.extend(side.map(|side| match side {
            Side::In(net) => format!("{family} {field} {net}"),
            Side::Outside(net) => format!("{family} {field} != {net}"),
        }));
    }
    words.push(
        match rule.verdict {
            Verdict::Return => "return",
            Verdict::Accept => "accept",
            Verdict::Masquerade if random_fully => "masquerade fully-random",
            Verdict::Masquerade => "masquerade",
        }
        .to_owned(),
    );
    words.join(" ")
}
