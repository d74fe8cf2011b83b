//! The etcd store against Debian's etcd.

#[path = "common/etcd.rs"]
mod etcd;

use std::collections::BTreeSet;
use std::time::Duration;

use etcd::Etcd;
use etcd_client::{Txn, TxnOp};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use weft::model::{Family, LeaseAttrs, NetworkConfig, SubnetKey};
use weft::subnet::store::builtin::Keeper;
use weft::subnet::store::{Credentials, EtcdConfig, EtcdStore, Store, StoreError, TlsFiles};
use weft::subnet::{Held, Renewal, Snapshot, StoreEvent, Want};

const PREFIX: &str = "/coreos.com/network";

#[tokio::test]
async fn a_lease_is_written_as_flannel_does_and_kept_without_a_write() {
    let etcd = Etcd::start();
    let held = acquire(&store(&etcd), &want(1)).await.expect("a free network");

    let name = format!("{PREFIX}/subnets/{}", held.stored.lease.key);
    assert_eq!(
        etcd.ctl(&["get", &name, "--print-value-only"]).trim_end_matches('\n'),
        r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:d6:9e:dd:59:cc"}}"#
    );
    assert_eq!(held.ttl, Some(Duration::from_secs(86_400)));

    let again = acquire(&store(&etcd), &want(1)).await.expect("our own lease");
    assert_eq!(again.stored, held.stored, "neither written nor on another lease");
}

#[tokio::test]
async fn changed_attributes_are_written_on_the_same_lease() {
    let etcd = Etcd::start();
    let held = acquire(&store(&etcd), &want(1)).await.expect("a free network");

    let changed = Want { attrs: attrs(1, "be:d6:9e:dd:59:dd"), ..want(1) };
    let again = acquire(&store(&etcd), &changed).await.expect("our own lease");

    assert_eq!(again.stored.lease_id, held.stored.lease_id);
    assert_eq!(again.stored.lease.key, held.stored.lease.key);
    assert_eq!(listing(&etcd).await.leases, [again.stored]);
}

#[tokio::test]
async fn the_previous_subnet_is_taken_again_unless_it_is_another_nodes() {
    let etcd = Etcd::start();
    let previous = Some(key("10.5.77.0-24"));

    let first = acquire(&store(&etcd), &Want { previous, ..want(1) }).await.expect("it is free");
    let second = acquire(&store(&etcd), &Want { previous, ..want(2) }).await.expect("another is free");

    assert_eq!(Some(first.stored.lease.key), previous);
    assert_ne!(Some(second.stored.lease.key), previous);
}

#[tokio::test]
async fn a_lease_that_no_longer_fits_the_config_is_replaced() {
    let etcd = Etcd::start();
    acquire(&store(&etcd), &want(1)).await.expect("a free network");

    let moved = Want { config: config(r#"{"Network":"10.6.0.0/16"}"#), ..want(1) };
    let held = acquire(&store(&etcd), &moved).await.expect("a free network");

    assert_eq!(listing(&etcd).await.leases, [held.stored]);
}

#[tokio::test]
async fn fifty_nodes_at_once_share_fifty_subnets_and_one_more_is_refused() {
    let etcd = Etcd::start();
    let full = config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.50.0"}"#);

    let leased = race((0..50).map(|_| store(&etcd)), &full).await;
    assert_eq!(leased.iter().map(|held| held.stored.lease.key).collect::<BTreeSet<_>>().len(), 50);

    let late = acquire(&store(&etcd), &Want { config: full, ..want(51) }).await;
    assert!(matches!(late, Err(StoreError::Exhausted(_))), "{late:?}");
    assert_eq!(etcd.ctl(&["lease", "list"]).lines().count(), 51, "a headline and fifty: none is left over");
}

#[tokio::test]
async fn dual_stack_nodes_at_once_overlap_in_neither_family() {
    let etcd = Etcd::start();
    let dual = config(
        r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.20.0",
            "IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:14::"}"#,
    );

    let leased = race((0..20).map(|_| store(&etcd)), &dual).await;

    for (i, a) in leased.iter().enumerate() {
        for b in &leased[i + 1..] {
            assert!(!a.stored.lease.key.overlaps(&b.stored.lease.key), "{a:?} {b:?}");
        }
    }
    assert_eq!(listing(&etcd).await.leases.len(), 20);
}

#[tokio::test]
async fn a_listing_from_before_a_wipe_leads_to_no_subnet_of_anothers() {
    let dual = config(
        r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0",
            "IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:9::"}"#,
    );
    let mut etcd = Etcd::start();
    let put = |etcd: &Etcd, subnets: &str, node: u8| {
        etcd.ctl(&["put", &format!("{PREFIX}/subnets/{subnets}"), &want(node).attrs.to_json()])
    };
    for _ in 0..9 {
        put(&etcd, "10.5.2.0-24&fd00:5:0:2::-64", 2);
    }
    let old = listing(&etcd).await;
    etcd.kill();
    etcd.restart_empty();
    // One of the two IPv4 subnets, at a revision that the old listing had seen.
    put(&etcd, "10.5.1.0-24&fd00:5:0:1::-64", 1);

    let held = store(&etcd).acquire(&old, &Want { config: dual, ..want(3) }).await.expect("a free one");

    assert_eq!(held.stored.lease.key.net(Family::V4), Some("10.5.2.0/24".parse().expect("a subnet")));
}

#[tokio::test]
async fn ipv6_nodes_share_no_key_and_each_is_read_by_flannel() {
    let etcd = Etcd::start();
    let alone = config(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#);
    let node = |n: u8| {
        let mut want = Want { config: alone.clone(), ..want(n) };
        let v6 = format!("fd77::{n}").parse().expect("an address");
        want.attrs.public_ip = weft::model::PerFamily { v4: None, v6: Some(v6) };
        want
    };
    let mut keys = BTreeSet::new();
    for n in [1, 2] {
        let held = acquire(&store(&etcd), &node(n)).await.expect("a free network");
        let again = acquire(&store(&etcd), &node(n)).await.expect("our own lease");
        assert_eq!(again.stored, held.stored, "known by PublicIPv6");
        keys.insert(held.stored.lease.key);
    }
    assert_eq!(keys.len(), 2);
    // What flannel's ParseSubnetKey matches (pkg/subnet/subnet.go).
    let flannel = regex::Regex::new(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$").expect("a pattern");
    let listed = etcd.ctl(&["get", "--prefix", &format!("{PREFIX}/subnets/"), "--keys-only"]);
    let read: BTreeSet<_> =
        listed.split_whitespace().map(|key| flannel.captures(key).expect(key)[3].to_owned()).collect();
    assert_eq!(read.len(), 2, "{listed}");
    let values = etcd.ctl(&["get", "--prefix", &format!("{PREFIX}/subnets/"), "--print-value-only"]);
    assert!(values.contains(r#""PublicIP":"0.0.0.0","PublicIPv6":"fd77::1""#), "{values}");
}

#[tokio::test]
async fn a_changed_address_is_published_on_the_same_lease_while_it_is_ours() {
    let etcd = Etcd::start();
    let store = store(&etcd);
    let held = acquire(&store, &want(1)).await.expect("a free network");

    let moved = store.update(&held, &want(9).attrs).await.expect("etcd is up").expect("it is ours");
    assert_eq!(
        (moved.stored.lease.key, moved.stored.lease_id),
        (held.stored.lease.key, held.stored.lease_id)
    );
    assert_eq!(listing(&etcd).await.leases, std::slice::from_ref(&moved.stored));
    assert_eq!(store.renew(&moved).await.expect("etcd is up"), Renewal::Renewed(moved.ttl));

    let name = format!("{PREFIX}/subnets/{}", held.stored.lease.key);
    etcd.ctl(&["put", &name, &want(2).attrs.to_json()]);
    assert_eq!(store.update(&moved, &want(3).attrs).await.expect("etcd is up"), None);
    assert!(etcd.ctl(&["get", &name]).contains("192.168.77.2"));
    let again = Want { previous: Some(held.stored.lease.key), no_other: true, ..want(9) };
    let refused = acquire(&store, &again).await.expect_err("it is another's").to_string();
    assert!(refused.contains("is reserved for 192.168.77.2"), "{refused}");
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let etcd = Etcd::start();
    let name = format!("{PREFIX}/subnets/10.5.9.0-24");
    etcd.ctl(&["put", &name, r#"{"PublicIP":"192.168.77.1","PublicIPv6":null}"#]);

    for _ in 0..2 {
        let held = acquire(&store(&etcd), &want(1)).await.expect("the reservation");
        assert_eq!(held.stored.lease.key, key("10.5.9.0-24"));
        assert_eq!((held.stored.lease_id, held.ttl), (None, None));
        assert_eq!(store(&etcd).renew(&held).await.expect("etcd is up"), Renewal::Renewed(None));
    }
    assert!(etcd.ctl(&["get", &name, "-w", "fields"]).contains("\"Lease\" : 0"));
    assert_eq!(listing(&etcd).await.leases[0].lease.attrs, want(1).attrs);
}

#[tokio::test]
async fn renewal_wakes_no_watcher_and_a_revoked_lease_is_lost() {
    let etcd = Etcd::start();
    let store = store(&etcd);
    let held = acquire(&store, &want(1)).await.expect("a free network");
    let mut events = watch(&store).await;

    for _ in 0..3 {
        let ttl = held.ttl;
        assert_eq!(store.renew(&held).await.expect("etcd is up"), Renewal::Renewed(ttl));
    }
    etcd.ctl(&["lease", "revoke", &format!("{:x}", held.stored.lease_id.expect("not a reservation"))]);

    let StoreEvent::Delete(deleted) = next(&mut events).await else {
        panic!("the first event is the revocation")
    };
    assert_eq!(deleted, held.stored.lease.key);
    assert_eq!(store.renew(&held).await.expect("etcd is up"), Renewal::Lost);
}

#[tokio::test]
async fn a_lease_that_ran_out_may_be_anothers_and_then_is_lost() {
    let etcd = Etcd::start();
    let store = store(&etcd).with_lease_ttl(Duration::from_secs(2));
    let mut events = watch(&store).await;
    let held = acquire(&store, &want(1)).await.expect("a free network");
    let previous = Some(held.stored.lease.key);
    assert!(matches!(next(&mut events).await, StoreEvent::Put(_)));
    assert!(matches!(next(&mut events).await, StoreEvent::Delete(key) if Some(key) == previous));

    let other = acquire(&store, &Want { previous, ..want(2) }).await.expect("it is free");

    assert_eq!(Some(other.stored.lease.key), previous);
    assert_eq!(store.renew(&held).await.expect("etcd is up"), Renewal::Lost);
    let again = acquire(&store, &Want { previous, ..want(1) }).await.expect("another is free");
    assert_ne!(Some(again.stored.lease.key), previous);
}

#[tokio::test]
async fn renewal_puts_a_spoilt_record_right_and_gives_up_a_foreign_one() {
    let etcd = Etcd::start();
    let store = store(&etcd);
    let held = acquire(&store, &want(1)).await.expect("a free network");
    let name = format!("{PREFIX}/subnets/{}", held.stored.lease.key);

    etcd.ctl(&["put", &name, "{"]);
    assert_eq!(store.renew(&held).await.expect("etcd is up"), Renewal::Renewed(held.ttl));
    assert_eq!(listing(&etcd).await.leases[0].lease, held.stored.lease);

    etcd.ctl(&["put", &name, &want(2).attrs.to_json()]);
    assert_eq!(store.renew(&held).await.expect("etcd is up"), Renewal::Lost);
}

#[tokio::test]
async fn the_watch_resumes_after_etcd_was_killed() {
    let mut etcd = Etcd::start();
    let mut events = watch(&store(&etcd)).await;
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.5.1.0-24"), &want(1).attrs.to_json()]);
    assert_put(&next(&mut events).await, "10.5.1.0-24");

    etcd.kill();
    assert!(matches!(next(&mut events).await, StoreEvent::Disconnected(_)));
    etcd.restart();
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.5.2.0-24"), &want(2).attrs.to_json()]);
    etcd.ctl(&["del", &format!("{PREFIX}/subnets/10.5.1.0-24")]);

    let event = next(&mut events).await;
    assert!(matches!(event, StoreEvent::Connected), "once an outage, and no snapshot: {event:?}");
    assert_put(&next(&mut events).await, "10.5.2.0-24");
    assert!(matches!(next(&mut events).await, StoreEvent::Delete(deleted) if deleted == key("10.5.1.0-24")));
}

#[tokio::test]
async fn compaction_during_an_outage_gives_a_snapshot() {
    let mut etcd = Etcd::start();
    let mut events = watch(&store(&etcd)).await;
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.5.1.0-24"), &want(1).attrs.to_json()]);
    assert_put(&next(&mut events).await, "10.5.1.0-24");

    // The watch stands still as long as nobody asks for its next event.
    etcd.kill();
    etcd.restart();
    for (subnet, node) in [("10.5.2.0-24", 2), ("10.5.3.0-24", 3)] {
        etcd.ctl(&["put", &format!("{PREFIX}/subnets/{subnet}"), &want(node).attrs.to_json()]);
    }
    etcd.ctl(&["compact", &listing(&etcd).await.revision.to_string()]);

    let snapshot = next_snapshot(&mut events).await;
    assert_eq!(snapshot.leases.len(), 3);
    assert!(matches!(next(&mut events).await, StoreEvent::Connected));
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.5.4.0-24"), &want(4).attrs.to_json()]);
    assert_put(&next(&mut events).await, "10.5.4.0-24");
}

#[tokio::test]
async fn another_store_at_the_same_address_gives_a_snapshot() {
    let mut etcd = Etcd::start();
    let mut events = watch(&store(&etcd)).await;
    for node in 1..9 {
        let name = format!("{PREFIX}/subnets/10.5.{node}.0-24");
        etcd.ctl(&["put", &name, &want(node).attrs.to_json()]);
        assert!(matches!(next(&mut events).await, StoreEvent::Put(_)));
    }

    etcd.kill();
    etcd.restart_empty();
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.5.99.0-24"), &want(99).attrs.to_json()]);

    let snapshot = next_snapshot(&mut events).await;
    assert_eq!(snapshot.leases.iter().map(|s| s.lease.key).collect::<Vec<_>>(), [key("10.5.99.0-24")]);
}

#[tokio::test]
async fn hostile_records_are_bad_and_harm_no_other() {
    let etcd = Etcd::start();
    let huge = "x".repeat(100 << 10);
    let hostile: [(&str, &str); 7] = [
        ("subnets/10.5.1.0-24", "{"),
        ("subnets/10.5.2.0-24", &huge),
        ("subnets/10.5.3.0-24", r#"{"PublicIP":"not an address"}"#),
        ("subnets/../x", "{}"),
        ("subnets/10.5.4.7-24", "{}"),
        ("subnets/fd00::-64", r#"{"PublicIPv6":"fd00::1"}"#),
        ("subnets-foo", "{}"),
    ];
    let mut events = watch(&store(&etcd)).await;
    for (name, value) in hostile {
        etcd.ctl(&["put", &format!("{PREFIX}/{name}"), value]);
    }
    let own = acquire(&store(&etcd), &want(1)).await.expect("a free network");

    for (name, _) in &hostile[..6] {
        let event = next(&mut events).await;
        assert!(matches!(&event, StoreEvent::Bad(bad) if bad.key.ends_with(name)), "{name}: {event:?}");
    }
    assert!(matches!(next(&mut events).await, StoreEvent::Put(stored) if stored == own.stored));
    let listing = listing(&etcd).await;
    assert_eq!((listing.leases, listing.bad.len()), (vec![own.stored], 6));
}

#[tokio::test]
async fn a_listing_of_many_pages_is_whole() {
    let etcd = Etcd::start();
    let client = etcd_client::Client::connect([&etcd.url], None).await.expect("etcd is up");
    // Values of 100 KiB: a page of two thousand with such would exceed what is taken in.
    let fat = format!(r#"{{"PublicIP":"192.0.2.1","BackendData":"{}"}}"#, "x".repeat(100 << 10));
    let put = |i: usize| {
        let value = if i.is_multiple_of(10) { fat.clone() } else { want(1).attrs.to_json() };
        let name = format!("{PREFIX}/subnets/10.{}.{}.0-24", i / 256, i % 256);
        TxnOp::put(name, value, None)
    };
    for i in (0..5_000).step_by(100) {
        let puts: Vec<_> = (i..i + 100).map(put).collect();
        client.kv_client().txn(Txn::new().and_then(puts)).await.expect("etcd is up");
    }

    let listing = listing(&etcd).await;

    assert_eq!((listing.leases.len(), listing.bad.len()), (4_500, 500));
}

#[tokio::test]
async fn a_client_certificate_and_a_ca_of_its_own() {
    let certs = tempfile::tempdir().expect("a temporary directory");
    let files = certificates(certs.path());
    let arg = |file: &str| certs.path().join(file).display().to_string();
    let etcd = Etcd::start_with("https", |_| {
        let server = ["--client-cert-auth", "--trusted-ca-file", &arg("ca.pem"), "--cert-file"];
        let server = server.into_iter().map(str::to_owned).chain([
            arg("server.pem"),
            "--key-file".into(),
            arg("server.key"),
        ]);
        let client = ["--cacert", &arg("ca.pem"), "--cert", &arg("client.pem"), "--key", &arg("client.key")];
        (server.collect(), client.map(str::to_owned).to_vec())
    });
    let connect =
        |tls: TlsFiles| EtcdStore::new(EtcdConfig { tls, ..config_of(&etcd) }).expect("a good config");

    connect(files.clone()).snapshot().await.expect("the certificate is accepted");

    let without_identity = TlsFiles { cert: None, key: None, ..files.clone() };
    assert!(connect(without_identity).snapshot().await.is_err());
    let without_ca = TlsFiles { ca: None, ..files };
    assert!(connect(without_ca).snapshot().await.is_err());
}

#[tokio::test]
async fn a_ca_alone_is_honoured() {
    let certs = tempfile::tempdir().expect("a temporary directory");
    let ca = certificates(certs.path()).ca;
    let arg = |file: &str| certs.path().join(file).display().to_string();
    let etcd = Etcd::start_with("https", |_| {
        let server = ["--cert-file".into(), arg("server.pem"), "--key-file".into(), arg("server.key")];
        (server.to_vec(), vec!["--cacert".into(), arg("ca.pem")])
    });
    let tls = TlsFiles { ca, ..TlsFiles::default() };
    let store = EtcdStore::new(EtcdConfig { tls, ..config_of(&etcd) }).expect("a good config");
    store.snapshot().await.expect("the server is known");
}

#[tokio::test]
async fn a_user_logs_in_again_when_the_token_is_gone() {
    let mut etcd = Etcd::start_with("http", |_| (Vec::new(), Vec::new()));
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let connect = |password: &str| {
        let credentials = Credentials { user: "root".into(), password: password.into() };
        EtcdStore::new(EtcdConfig { credentials: Some(credentials), ..config_of(&etcd) })
            .expect("a good config")
    };
    let wrong = connect("guess").snapshot().await;
    assert!(matches!(wrong, Err(StoreError::Refused { .. })), "{wrong:?}");
    let store = connect("secret");
    let mut events = watch(&store).await;
    let held = acquire(&store, &want(1)).await.expect("a free network");
    assert!(matches!(next(&mut events).await, StoreEvent::Put(_)));

    // etcd keeps its tokens in memory.
    etcd.kill();
    etcd.restart();

    assert_eq!(store.renew(&held).await.expect("logged in again"), Renewal::Renewed(held.ttl));
    assert!(matches!(next(&mut events).await, StoreEvent::Disconnected(_)));
    assert!(matches!(next(&mut events).await, StoreEvent::Connected));
    acquire(&store, &want(2)).await.expect("a free network");
    assert!(matches!(next(&mut events).await, StoreEvent::Put(_)));
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_a_store_away_is_waited_for() {
    let mut etcd = Etcd::start();
    let mut config = config_of(&etcd);
    config.endpoints.insert(0, "http://127.0.0.1:1".into());
    let store = EtcdStore::new(config).expect("a good config");
    let held = acquire(&store, &want(1)).await.expect("the second endpoint answers");

    etcd.kill();
    let away = tokio::time::timeout(Duration::from_secs(11), store.renew(&held)).await.expect("bounded");
    assert!(
        matches!(&away, Err(StoreError::Unavailable { cause, .. }) if cause.contains("refused")),
        "{away:?}"
    );

    etcd.restart();
    assert_eq!(store.renew(&held).await.expect("etcd is up"), Renewal::Renewed(held.ttl));
}

#[tokio::test]
async fn a_hanging_etcd_is_noticed_by_watch_and_calls() {
    let etcd = Etcd::start();
    let store = store(&etcd);
    let mut events = watch(&store).await;
    let held = acquire(&store, &want(1)).await.expect("a free network");
    assert!(matches!(next(&mut events).await, StoreEvent::Put(_)));

    etcd.signal("-STOP");
    let hung = tokio::time::timeout(Duration::from_secs(11), store.renew(&held)).await.expect("bounded");
    assert!(matches!(hung, Err(StoreError::Unavailable { .. })), "{hung:?}");
    assert!(matches!(next(&mut events).await, StoreEvent::Disconnected(_)));

    etcd.signal("-CONT");
    assert!(matches!(next(&mut events).await, StoreEvent::Connected));
    assert_eq!(store.renew(&held).await.expect("etcd goes on"), Renewal::Renewed(held.ttl));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_store_serves_the_same_client_also_over_a_takeover() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let (channel, owner) = Keeper::start(dir.path(), first.clone()).await.expect("a fresh store");
    let (_, heir) = Keeper::start(dir.path(), second.clone()).await.expect("a second keeper");
    let store = EtcdStore::from_channel(etcd_client::Channel::Tonic(channel), PREFIX, "built-in store");
    let mut events = watch(&store).await;
    let full = config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.20.0"}"#);

    let leased = race((0..20).map(|_| store.clone()), &full).await;
    let subnets: BTreeSet<_> = leased.iter().map(|held| held.stored.lease.key).collect();
    assert_eq!(subnets.len(), 20);
    for _ in 0..20 {
        assert!(matches!(next(&mut events).await, StoreEvent::Put(_)));
    }
    let late = acquire(&store, &Want { config: full, ..want(51) }).await;
    assert!(matches!(late, Err(StoreError::Exhausted(_))), "{late:?}");

    first.cancel();
    owner.stopped().await;
    assert_eq!(store.renew(&leased[0]).await.expect("the heir serves"), Renewal::Renewed(leased[0].ttl));
    assert!(matches!(next(&mut events).await, StoreEvent::Disconnected(_)));
    assert!(matches!(next(&mut events).await, StoreEvent::Connected));
    let changed = Want { attrs: attrs(1, "be:d6:9e:dd:59:dd"), ..want(1) };
    acquire(&store, &changed).await.expect("our own lease");
    assert!(
        matches!(next(&mut events).await, StoreEvent::Put(stored) if stored.lease.attrs == changed.attrs)
    );

    drop((events, store));
    second.cancel();
    heir.stopped().await;
}

/// A node with each of these stores, all of which acquire at the same time.
async fn race(stores: impl Iterator<Item = EtcdStore>, config: &NetworkConfig) -> Vec<Held> {
    let tasks: Vec<_> = (1..)
        .zip(stores)
        .map(|(node, store)| {
            let want = Want { config: config.clone(), ..want(node) };
            tokio::spawn(async move { acquire(&store, &want).await })
        })
        .collect();
    let mut leased = Vec::new();
    for task in tasks {
        leased.push(task.await.expect("no panic").expect("there is a subnet for each"));
    }
    leased
}

fn config_of(etcd: &Etcd) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![etcd.url.clone()],
        prefix: PREFIX.into(),
        tls: TlsFiles::default(),
        credentials: None,
    }
}

fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::new(config_of(etcd)).expect("a good config")
}

async fn acquire(store: &EtcdStore, want: &Want) -> Result<Held, StoreError> {
    store.acquire(&store.snapshot().await?, want).await
}

async fn listing(etcd: &Etcd) -> Snapshot {
    store(etcd).snapshot().await.expect("etcd is up")
}

async fn watch(store: &EtcdStore) -> BoxStream<'static, StoreEvent> {
    store.watch(store.snapshot().await.expect("etcd is up").position())
}

async fn next(events: &mut BoxStream<'static, StoreEvent>) -> StoreEvent {
    let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    event.expect("an event within 20 s").expect("a watch has no end")
}

async fn next_snapshot(events: &mut BoxStream<'static, StoreEvent>) -> Snapshot {
    loop {
        match next(events).await {
            StoreEvent::Snapshot(snapshot) => return snapshot,
            StoreEvent::Disconnected(_) | StoreEvent::Connected => {}
            other => panic!("a snapshot was due, not {other:?}"),
        }
    }
}

fn assert_put(event: &StoreEvent, subnet: &str) {
    assert!(matches!(event, StoreEvent::Put(stored) if stored.lease.key == key(subnet)), "{event:?}");
}

fn want(node: u8) -> Want {
    let attrs = attrs(node, "be:d6:9e:dd:59:cc");
    Want { config: config(r#"{"Network":"10.5.0.0/16"}"#), attrs, previous: None, no_other: false }
}

fn attrs(node: u8, mac: &str) -> LeaseAttrs {
    let json = format!(
        r#"{{"PublicIP":"192.168.77.{node}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    LeaseAttrs::parse(json.as_bytes()).expect("good attributes")
}

fn config(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json).expect("a good config")
}

fn key(text: &str) -> SubnetKey {
    text.parse().expect("a subnet key")
}

/// A CA, a server on 127.0.0.1 and a client; gives the client's files.
fn certificates(dir: &std::path::Path) -> TlsFiles {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let write = |name: &str, pem: String| {
        let path = dir.join(name);
        std::fs::write(&path, pem).expect("a file in our directory");
        Some(path)
    };
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("good parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
    let issuer = Issuer::new(ca, ca_key);
    let leaf = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("good parameters");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &issuer).expect("a certificate");
        (write(&format!("{name}.pem"), cert.pem()), write(&format!("{name}.key"), key.serialize_pem()))
    };
    leaf("server");
    let (cert, key) = leaf("client");
    TlsFiles { key, cert, ca: write("ca.pem", ca_pem) }
}
