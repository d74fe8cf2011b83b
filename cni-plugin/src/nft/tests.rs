#![cfg(test)]

use std::net::SocketAddr;

use netns_harness::{Lab, Netns};
use serde_json::Value;

use super::*;

const NAT_POST: Hook = Hook { kind: "nat", number: libc::NF_INET_POST_ROUTING, priority: 100 };

/// Each rule the plugins write, beside the text that the reference plugins load
/// with `nft`: both list alike.
#[test]
fn rules_list_as_those_that_nft_compiles() {
    let lab = Lab::new("nft-rules").unwrap();
    let (ours, theirs) = (lab.host("ours").unwrap(), lab.host("theirs").unwrap());

    ours.enter(|| {
        let mut batch = Batch::default();
        masquerade(&mut batch);
        hostports(&mut batch, Family::Ip, "10.1.2.3", "192.0.2.1");
        hostports(&mut batch, Family::Ip6, "fd00::3", "2001:db8::1");
        spoof_check(&mut batch);
        Nft::open().unwrap().apply(&batch).unwrap();
    })
    .unwrap();
    std::fs::write(theirs.dir().join("rules"), REFERENCE).unwrap();
    theirs.run("nft", ["-f".as_ref(), theirs.dir().join("rules").as_os_str()]).unwrap();

    assert_eq!(list(&ours, &["-j"]), list(&theirs, &["-j"]));
    assert_eq!(compiled(&ours), compiled(&theirs));
}

const REFERENCE: &str = r#"
add table inet masq { comment "Masquerading for plugins" ; }
add chain inet masq masq_checks { comment "Masquerade traffic" ; }
add chain inet masq postrouting { type nat hook postrouting priority 100 ; }
add rule inet masq postrouting ip daddr == 224.0.0.0/4 return
add rule inet masq postrouting ip6 daddr == ff00::/8 return
add rule inet masq postrouting goto masq_checks
add rule inet masq masq_checks ip saddr == 10.1.2.3 ip daddr != 10.1.2.0/24 masquerade comment "net: a, if: eth0"
add rule inet masq masq_checks ip saddr == 10.1.2.3 ip daddr != 10.1.2.0/29 masquerade
add rule inet masq masq_checks ip6 saddr == fd00::3 ip6 daddr != fd00::/64 masquerade
add rule inet masq masq_checks ip6 saddr == fd00::3 ip6 daddr != fd00::/65 masquerade

add table ip cni_hostport
add chain ip cni_hostport hostports
add chain ip cni_hostport prerouting { type nat hook prerouting priority -100 ; }
add chain ip cni_hostport masquerading { type nat hook postrouting priority 100 ; }
add rule ip cni_hostport prerouting fib daddr type local jump hostports
add rule ip cni_hostport hostports tcp dport 80 dnat to 10.1.2.3:8080 comment "id"
add rule ip cni_hostport hostports ip daddr 192.0.2.1 udp dport 65535 dnat to 10.1.2.3:1
add rule ip cni_hostport hostports sctp dport 9 dnat to 10.1.2.3:9
add rule ip cni_hostport masquerading ip saddr 10.1.2.3 ip daddr 10.1.2.3 masquerade
add rule ip cni_hostport masquerading ip saddr 0.0.0.0/0 ip daddr 10.1.2.3 masquerade

add table ip6 cni_hostport
add chain ip6 cni_hostport hostports
add chain ip6 cni_hostport prerouting { type nat hook prerouting priority -100 ; }
add chain ip6 cni_hostport masquerading { type nat hook postrouting priority 100 ; }
add rule ip6 cni_hostport prerouting fib daddr type local jump hostports
add rule ip6 cni_hostport hostports tcp dport 80 dnat to [fd00::3]:8080 comment "id"
add rule ip6 cni_hostport hostports ip6 daddr 2001:db8::1 udp dport 65535 dnat to [fd00::3]:1
add rule ip6 cni_hostport hostports sctp dport 9 dnat to [fd00::3]:9
add rule ip6 cni_hostport masquerading ip6 saddr fd00::3 ip6 daddr fd00::3 masquerade
add rule ip6 cni_hostport masquerading ip6 saddr ::/0 ip6 daddr fd00::3 masquerade

add table bridge nat
add chain bridge nat PREROUTING { type filter hook prerouting priority -300 ; policy accept ; }
add chain bridge nat cni-br-iface-1
add chain bridge nat cni-br-iface-1-mac
add rule bridge nat PREROUTING iifname "veth0" jump cni-br-iface-1 comment "macspoofchk-1"
add rule bridge nat cni-br-iface-1 jump cni-br-iface-1-mac comment "macspoofchk-1"
add rule bridge nat cni-br-iface-1-mac ether saddr 02:00:00:00:00:01 return comment "macspoofchk-1"
add rule bridge nat cni-br-iface-1-mac drop comment "macspoofchk-1"
"#;

fn masquerade(batch: &mut Batch) {
    let chain = |name| Chain { family: Family::Inet, table: "masq", name };
    let (checks, postrouting) = (chain("masq_checks"), chain("postrouting"));
    batch.table(Table { family: Family::Inet, name: "masq" }, Some("Masquerading for plugins"));
    batch.chain(checks, Some("Masquerade traffic"));
    batch.base_chain(postrouting, NAT_POST);
    let to = |net: &str| Rule::new(postrouting).address(End::Destination, Is::Equal, net.parse().unwrap());
    batch.rule(&to("224.0.0.0/4").back());
    batch.rule(&to("ff00::/8").back());
    batch.rule(&Rule::new(postrouting).goto("masq_checks"));
    let leaving = |ip: &str, subnet: &str| {
        Rule::new(checks)
            .address(End::Source, Is::Equal, ip.parse().unwrap())
            .address(End::Destination, Is::Unequal, subnet.parse().unwrap())
            .masquerade()
    };
    batch.rule(&leaving("10.1.2.3", "10.1.2.3/24").comment("net: a, if: eth0"));
    batch.rule(&leaving("10.1.2.3", "10.1.2.3/29"));
    batch.rule(&leaving("fd00::3", "fd00::3/64"));
    batch.rule(&leaving("fd00::3", "fd00::3/65"));
}

fn hostports(batch: &mut Batch, family: Family, pod: &str, host: &str) {
    let chain = |name| Chain { family, table: "cni_hostport", name };
    let (ports, prerouting, masquerading) = (chain("hostports"), chain("prerouting"), chain("masquerading"));
    batch.table(Table { family, name: "cni_hostport" }, None);
    batch.chain(ports, None);
    let nat_pre = Hook { number: libc::NF_INET_PRE_ROUTING, priority: -100, ..NAT_POST };
    batch.base_chain(prerouting, nat_pre);
    batch.base_chain(masquerading, NAT_POST);
    batch.rule(&Rule::new(prerouting).for_this_host().jump("hostports"));
    let pod_port = |port| SocketAddr::new(pod.parse().unwrap(), port);
    let port = |rule: Rule<'static>, protocol: i32, port, to| {
        rule.destination_port(protocol as u8, port).destination_nat(pod_port(to))
    };
    batch.rule(&port(Rule::new(ports), libc::IPPROTO_TCP, 80, 8080).comment("id").owner("not listed"));
    let at_host = Rule::new(ports).address(End::Destination, Is::Equal, host.parse().unwrap());
    batch.rule(&port(at_host, libc::IPPROTO_UDP, 65535, 1));
    batch.rule(&port(Rule::new(ports), libc::IPPROTO_SCTP, 9, 9));
    let all = if family == Family::Ip { "0.0.0.0/0" } else { "::/0" };
    for source in [pod, all] {
        batch.rule(
            &Rule::new(masquerading)
                .address(End::Source, Is::Equal, source.parse().unwrap())
                .address(End::Destination, Is::Equal, pod.parse().unwrap())
                .masquerade(),
        );
    }
}

fn spoof_check(batch: &mut Batch) {
    let chain = |name| Chain { family: Family::Bridge, table: "nat", name };
    let prerouting = chain("PREROUTING");
    let (link, mac) = (chain("cni-br-iface-1"), chain("cni-br-iface-1-mac"));
    batch.table(Table { family: Family::Bridge, name: "nat" }, None);
    batch.base_chain(prerouting, Hook { kind: "filter", number: libc::NF_INET_PRE_ROUTING, priority: -300 });
    batch.chain(link, None);
    batch.chain(mac, None);
    let rules = [
        Rule::new(prerouting).arriving_by("veth0".parse().unwrap()).jump(link.name),
        Rule::new(link).jump(mac.name),
        Rule::new(mac).sent_by("02:00:00:00:00:01".parse().unwrap()).back(),
        Rule::new(mac).drop(),
    ];
    for rule in rules {
        batch.rule(&rule.comment("macspoofchk-1"));
    }
}

#[test]
fn rules_are_found_and_deleted_by_what_they_carry() {
    let lab = Lab::new("nft-found").unwrap();
    let host = lab.host("node").unwrap();
    let table = Table { family: Family::Inet, name: "weft" };
    let chain = Chain { family: Family::Inet, table: "weft", name: "some" };
    host.enter(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!((nft.has_chain(chain).unwrap(), nft.rules(chain).unwrap()), (false, vec![]));
        nft.delete_rules(&[table], |_| true).unwrap();

        let mut batch = Batch::default();
        batch.table(table, None);
        batch.chain(chain, None);
        let long = "é".repeat(100);
        for rule in [
            Rule::new(chain).drop().comment("one").owner("first"),
            Rule::new(chain).drop().owner("second"),
            Rule::new(chain).drop(),
            Rule::new(chain).drop().comment(&long).owner("first"),
        ] {
            batch.rule(&rule);
        }
        nft.apply(&batch).unwrap();

        let carried: Vec<_> = nft.rules(chain).unwrap().into_iter().map(|r| (r.comment, r.owner)).collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            carried,
            [
                (some("one"), some("first")),
                (None, some("second")),
                (None, None),
                (some(&long[..126]), some("first")),
            ]
        );

        nft.delete_rules(&[table], |rule| rule.owner.as_deref() == Some("first")).unwrap();
        assert!(nft.has_chain(chain).unwrap());
    })
    .unwrap();
    assert_eq!(list(&host, &["-a"]).to_string().matches("drop").count(), 2);
}

#[test]
fn a_batch_is_made_whole_or_not_and_the_error_names_what_was_refused() {
    let lab = Lab::new("nft-whole").unwrap();
    let host = lab.host("node").unwrap();
    host.enter(|| {
        let mut nft = Nft::open().unwrap();
        let chain = |name| Chain { family: Family::Ip, table: "weft", name };
        let mut batch = Batch::default();
        batch.table(Table { family: Family::Ip, name: "weft" }, None);
        batch.chain(chain("one"), None);
        batch.rule(&Rule::new(chain("one")).drop());
        batch.rule(&Rule::new(chain("one")).jump("another"));
        batch.rule(&Rule::new(chain("one")).drop());

        let error = nft.apply(&batch).unwrap_err();

        assert_eq!(error.to_string(), "rule of nftables chain ip weft one: ENOENT");
        assert!(!nft.has_chain(chain("one")).unwrap());
        // What the kernel still has to say of that batch is nobody else's.
        let mut batch = Batch::default();
        batch.table(Table { family: Family::Ip, name: "weft" }, None);
        nft.apply(&batch).unwrap();
    })
    .unwrap();
}

/// What `nft` lists of a namespace, without handles and its own version.
fn list(netns: &Netns, options: &[&str]) -> Value {
    let listing = netns.run("nft", [options, &["list", "ruleset"]].concat()).unwrap();
    let Ok(mut listing) = serde_json::from_str::<Value>(&listing) else { return listing.into() };
    let entries = listing["nftables"].as_array_mut().unwrap();
    entries.retain(|entry| entry.get("metainfo").is_none());
    for entry in entries.iter_mut().flat_map(|entry| entry.as_object_mut().unwrap().values_mut()) {
        entry.as_object_mut().unwrap().remove("handle");
    }
    assert!(!entries.is_empty());
    listing
}

/// The expressions that the kernel has, without the rules' handles and userdata.
fn compiled(netns: &Netns) -> Vec<String> {
    let listing = netns.run("nft", ["--debug=netlink", "list", "ruleset"]).unwrap();
    let compiled: Vec<_> =
        listing.lines().filter(|line| line.starts_with("  [")).map(str::to_owned).collect();
    assert!(!compiled.is_empty());
    compiled
}
