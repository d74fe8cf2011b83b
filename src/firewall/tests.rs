use serde_json::{Value, json};

use super::*;

const NODE: &str =
    r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;
const OWN: &str = "10.244.7.0-24&fd42:0:0:7::-64";
const ALL: Intent = Intent { masquerade: true, forward: true, plain: Vec::new() };
const JUMP: &str = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;

#[test]
fn iptables_rules_are_flannels_in_flannels_order() {
    let script = iptables::plan(iptables::MASQUERADE, v4(&ALL).masquerade.as_deref(), true, "").unwrap();
    assert_eq!(
        script,
        r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.7.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.7.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.7.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
"#
    );
    let script = iptables::plan(iptables::FORWARD, v6(&ALL).forward.as_deref(), true, "").unwrap();
    assert_eq!(
        script,
        r#"*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s fd42::/48 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d fd42::/48 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
COMMIT
"#
    );
}

#[test]
fn nftables_rules_mean_the_same_as_the_iptables_ones() {
    let intent = Intent { plain: vec!["fd00::/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()], ..ALL };
    assert_eq!(
        nftables::plan(&v6(&intent), false, None).unwrap(),
        r#"add table ip6 flannel-ipv6
delete table ip6 flannel-ipv6
add table ip6 flannel-ipv6 { comment "rules for flannel-ipv6" ; }
add chain ip6 flannel-ipv6 postrtg { type nat hook postrouting priority 100 ; policy accept ; comment "chain to manage traffic masquerading by flannel" ; }
add rule ip6 flannel-ipv6 postrtg meta mark & 0x4000 == 0x4000 return
add rule ip6 flannel-ipv6 postrtg ip6 saddr fd42:0:0:7::/64 ip6 daddr fd42::/48 return
add rule ip6 flannel-ipv6 postrtg ip6 saddr fd42::/48 ip6 daddr fd42:0:0:7::/64 return
add rule ip6 flannel-ipv6 postrtg ip6 saddr != fd42::/48 ip6 daddr fd42:0:0:7::/64 return
add rule ip6 flannel-ipv6 postrtg ip6 saddr fd42::/48 ip6 daddr fd00::/8 return
add rule ip6 flannel-ipv6 postrtg ip6 saddr fd42::/48 ip6 daddr != ff00::/8 masquerade
add rule ip6 flannel-ipv6 postrtg ip6 saddr != fd42::/48 ip6 daddr fd42::/48 masquerade
add chain ip6 flannel-ipv6 forward { type filter hook forward priority 0 ; policy accept ; comment "chain to accept flannel traffic" ; }
add rule ip6 flannel-ipv6 forward ip6 saddr fd42::/48 accept
add rule ip6 flannel-ipv6 forward ip6 daddr fd42::/48 accept
"#
    );
}

#[test]
fn iptables_writes_only_what_differs() {
    let rules = v4(&ALL).masquerade;
    let plan = |saved: &str| iptables::plan(iptables::MASQUERADE, rules.as_deref(), true, saved);
    let well = saved(&plan("").unwrap());
    assert_eq!(plan(&well), None);
    assert_eq!(
        plan(&format!("{well}-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\n")),
        None,
        "others' rules"
    );

    // A rule is gone: the chain is filled anew, the jump keeps its place.
    let script = plan(&well.replace("-A FLANNEL-POSTRTG -m mark", "-A ELSEWHERE -m mark")).unwrap();
    assert!(script.contains("-m mark") && !script.contains("POSTROUTING"), "{script}");

    // A jump too many, and a rule of the days before flannel had chains.
    let old =
        r#"-A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#;
    let script = plan(&format!("{well}{JUMP}\n{old}\n")).unwrap();
    assert_eq!(script.matches(&JUMP.replace("-A", "-D")).count(), 2, "{script}");
    assert_eq!(script.matches(JUMP).count(), 1, "{script}");
    assert!(script.contains(&old.replacen("-A", "-D", 1)), "{script}");
}

#[test]
fn iptables_removal_takes_the_chain_and_what_leads_to_it() {
    let remove = |saved: &str| iptables::plan(iptables::MASQUERADE, None, true, saved);
    assert_eq!(remove(":POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j DOCKER\n"), None);
    let saved = format!(":FLANNEL-POSTRTG - [0:0]\n{JUMP}\n-A MINE -j FLANNEL-POSTRTG\n");
    let jump = JUMP.replace("-A", "-D");
    assert_eq!(
        remove(&saved).unwrap(),
        format!("*nat\n{jump}\n-D MINE -j FLANNEL-POSTRTG\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n")
    );
    let astray = iptables::plan_astray(":FLANNEL-FWD - [0:0]\n").unwrap();
    assert_eq!(astray, "*nat\n-F FLANNEL-FWD\n-X FLANNEL-FWD\nCOMMIT\n");
}

#[test]
fn nftables_reads_whatever_stands_in_its_table() {
    let want = Ruleset { masquerade: None, ..v4(&ALL) };
    let chain = json!({"chain": {"family": "ip", "table": "flannel-ipv4", "name": "forward", "handle": 2,
        "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}});
    let rule = |field: &str| {
        json!({"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "forward", "handle": 3, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": field}},
                       "right": {"prefix": {"addr": "10.244.0.0", "len": 16}}}},
            {"accept": null}]}})
    };
    let table = json!({"table": {"family": "ip", "name": "flannel-ipv4", "handle": 1}});
    let plan = |objects: &[&Value]| {
        let listed = json!({"nftables": objects});
        nftables::plan(&want, true, Some(&listed))
    };
    let (source, destination) = (rule("saddr"), rule("daddr"));
    assert_eq!(plan(&[&table, &chain, &source, &destination]), None);

    let dormant = json!({"table": {"family": "ip", "name": "flannel-ipv4", "flags": ["dormant"]}});
    let mut dropping = chain.clone();
    dropping["chain"]["policy"] = json!("drop");
    let set = json!({"set": {"family": "ip", "table": "flannel-ipv4", "name": "s", "type": "ipv4_addr"}});
    for objects in [
        vec![&table],
        vec![&table, &chain, &source],
        vec![&table, &chain, &destination, &source],
        vec![&dormant, &chain, &source, &destination],
        vec![&table, &dropping, &source, &destination],
        vec![&table, &chain, &source, &destination, &set],
    ] {
        assert!(plan(&objects).is_some(), "{objects:?}");
    }
    assert_eq!(
        nftables::plan(&Ruleset::none(Family::V4), true, Some(&json!({}))).unwrap(),
        "delete table ip flannel-ipv4\n"
    );
    assert_eq!(nftables::plan(&Ruleset::none(Family::V4), true, None), None);
}

#[test]
fn a_network_that_is_everything_is_no_condition() {
    let intent = Intent { plain: vec!["0.0.0.0/0".parse().unwrap()], ..ALL };
    let script = iptables::plan(iptables::MASQUERADE, v4(&intent).masquerade.as_deref(), true, "").unwrap();
    assert!(
        script
            .contains("-A FLANNEL-POSTRTG -s 10.244.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN")
    );
}

#[test]
fn a_family_without_a_subnet_has_no_rules() {
    let config = NetworkConfig::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
    let own = "10.244.7.0-24".parse().unwrap();
    assert!(Ruleset::of(Family::V6, &ALL, &config, &own).is_empty());
    assert!(Ruleset::of(Family::V4, &Intent::default(), &config, &own).is_empty());
}

#[test]
fn networks_to_leave_alone_come_from_the_config() {
    let config = |value: &str| {
        NetworkConfig::parse(&format!(r#"{{"Network":"10.244.0.0/16","NonMasqueradeCIDRs":{value}}}"#))
    };
    let nets = config(r#"["192.168.7.9/16","fd00::/8"]"#).unwrap().non_masquerade;
    assert_eq!(nets, ["192.168.0.0/16".parse::<IpNetwork>().unwrap(), "fd00::/8".parse().unwrap()]);
    assert!(config("null").unwrap().non_masquerade.is_empty());
    for wrong in [r#""10.0.0.0/8""#, r#"["10.0.0.0"]"#, "[7]", r#"["10.0.0.0/33"]"#] {
        let error = config(wrong).unwrap_err().to_string();
        assert!(error.contains("nonMasqueradeCIDRs") && error.contains("CIDR form"), "{error}");
    }
}

/// What a restored table looks like when it is saved.
fn saved(script: &str) -> String {
    script.replace("COMMIT\n", "")
}

fn v4(intent: &Intent) -> Ruleset {
    of(Family::V4, intent)
}

fn v6(intent: &Intent) -> Ruleset {
    of(Family::V6, intent)
}

fn of(family: Family, intent: &Intent) -> Ruleset {
    Ruleset::of(family, intent, &NetworkConfig::parse(NODE).unwrap(), &OWN.parse().unwrap())
}
