//! The same operations on the built-in store and on Debian's etcd.

mod ops;
mod random;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{
    Client, CompareOp, GetOptions, SortOrder, SortTarget, WatchFilterType, WatchOptions, WatchStream,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::peers::{Builtin, Etcd, runtime};
use ops::*;
use random::{any_key, any_op};

#[test]
fn every_rule_of_the_api_gives_etcds_answer() {
    let all = |options| get("\0", End::FromKey, options);
    let when = |key, end, result, target| When { key, end, result, target };
    let with = |change: fn(&mut Put)| {
        let mut put = Put { key: "a", value: "v", ..Put::default() };
        change(&mut put);
        Op::Put { put }
    };
    let many = |count: usize| (0..count).map(|_| get("a", End::One, Get::default())).collect::<Vec<_>>();
    let huge: Key = Box::leak("x".repeat(1_600_000).into_boxed_str());
    let mut trace = vec![
        // Nothing there yet.
        all(Get::default()),
        delete("a", End::One),
        Op::Compact { back: 0, physical: false },
        Op::Compact { back: 0, physical: false },
        Op::Compact { back: -1, physical: true },
        // What is refused.
        get("", End::One, Get::default()),
        put("", "v"),
        delete("", End::Before("b")),
        with(|put| put.ignore_value = true),
        with(|put| (put.value, put.ignore_value) = ("", true)),
        with(|put| put.ignore_lease = true),
        with(|put| (put.lease, put.ignore_lease) = (5, true)),
        with(|put| put.lease = 5),
        with(|put| (put.lease, put.value, put.ignore_value) = (5, "", true)),
        put("a", huge),
        get("a", End::One, Get { back: Some(-1), ..Get::default() }),
        // Puts, and reads of every shape.
        put("a", "3"),
        put("b", "1"),
        put("ab", ""),
        put("a", "2"),
        with(|put| put.prev_kv = true),
        with(|put| (put.value, put.ignore_value, put.prev_kv) = ("", true, true)),
        put("c", "2"),
        delete("b", End::One),
        put("b", "again"),
        get("a", End::Before("a"), Get::default()),
        get("c", End::Before("a"), Get::default()),
        get("a", End::Prefix, Get::default()),
        get("b", End::FromKey, Get::default()),
        all(Get { limit: 2, ..Get::default() }),
        all(Get { limit: 4, ..Get::default() }),
        all(Get { limit: 1, back: Some(3), ..Get::default() }),
        all(Get { keys_only: true, ..Get::default() }),
        all(Get { count_only: true, limit: 1, ..Get::default() }),
        all(Get { count_only: true, back: Some(4), ..Get::default() }),
        all(Get { min_mod: Some(3), ..Get::default() }),
        all(Get { max_mod: Some(3), limit: 1, ..Get::default() }),
        all(Get { min_create: Some(3), ..Get::default() }),
        all(Get { max_create: Some(3), back: Some(1), ..Get::default() }),
        // Transactions.
        txn(vec![], vec![], vec![put("z", "z")]),
        txn(vec![when("a", End::One, CompareOp::Equal, Target::Version(4))], vec![put("t", "1")], vec![]),
        txn(vec![when("none", End::One, CompareOp::Equal, Target::Value(""))], vec![put("t", "2")], vec![]),
        txn(
            vec![when("none", End::One, CompareOp::NotEqual, Target::Value("x"))],
            vec![put("t", "3")],
            vec![],
        ),
        txn(vec![when("none", End::One, CompareOp::Equal, Target::Create(0))], vec![put("t", "4")], vec![]),
        txn(vec![when("a", End::Prefix, CompareOp::Greater, Target::Mod(1))], vec![put("t", "5")], vec![]),
        txn(vec![when("a", End::FromKey, CompareOp::Less, Target::Value("b"))], vec![], vec![put("t", "6")]),
        txn(vec![when("a", End::One, CompareOp::Equal, Target::Lease(0))], vec![put("t", "7")], vec![]),
        txn(vec![when("", End::One, CompareOp::Equal, Target::Lease(0))], vec![], vec![]),
        txn(vec![], vec![put("p", "1"), put("p", "2")], vec![]),
        txn(vec![], vec![put("p", "1"), delete("o", End::Before("q"))], vec![]),
        txn(vec![], vec![put("p", "1"), delete("o", End::FromKey)], vec![]),
        txn(vec![], vec![], vec![put("p", "1"), put("p", "2")]),
        txn(
            vec![],
            vec![put("p", "1"), get("p", End::One, Get::default()), put("q", "1"), delete("a", End::One)],
            vec![],
        ),
        txn(
            vec![],
            vec![get("a", End::One, Get { back: Some(-1), ..Get::default() }), put("p", "9")],
            vec![],
        ),
        txn(vec![], vec![put("p", "9"), with(|put| put.lease = 77)], vec![]),
        txn(
            vec![],
            vec![put("p", "9"), with(|put| (put.key, put.value, put.ignore_value) = ("none", "", true))],
            vec![],
        ),
        txn(
            vec![],
            vec![
                put("n", "1"),
                txn(
                    vec![when("n", End::One, CompareOp::Equal, Target::Version(0))],
                    vec![put("m", "outer put not seen"), get("n", End::One, Get::default())],
                    vec![put("m", "outer put seen")],
                ),
                delete("none", End::One),
            ],
            vec![],
        ),
        txn(vec![], vec![put("n", "1"), txn(vec![], vec![put("n", "2")], vec![])], vec![]),
        txn(vec![], vec![txn(vec![], vec![put("n", "2")], vec![put("n", "3")])], vec![]),
        txn(vec![], vec![delete("n", End::One), txn(vec![], vec![put("n", "2")], vec![])], vec![]),
        txn(vec![], vec![put("n", "1"), txn(vec![], vec![delete("n", End::One)], vec![])], vec![]),
        txn(
            vec![],
            vec![txn(vec![], vec![put("n", "8")], vec![]), txn(vec![], vec![delete("n", End::One)], vec![])],
            vec![],
        ),
        txn(vec![], many(128), vec![]),
        txn(vec![], vec![], many(129)),
        txn(vec![], vec![get("", End::One, Get::default())], vec![]),
        // Compaction.
        Op::Compact { back: 5, physical: true },
        Op::Compact { back: 5, physical: false },
        all(Get { back: Some(6), ..Get::default() }),
        all(Get { back: Some(5), ..Get::default() }),
        all(Get { back: Some(2), ..Get::default() }),
        txn(vec![], vec![all(Get { back: Some(6), ..Get::default() })], vec![]),
        // Leases.
        Op::Grant { id: 5, ttl: 100 },
        Op::Grant { id: 5, ttl: 100 },
        Op::Grant { id: 6, ttl: 1 },
        Op::Grant { id: 7, ttl: 0 },
        Op::Grant { id: 8, ttl: -3 },
        Op::Grant { id: 9, ttl: 9_000_000_001 },
        Op::Grant { id: 10, ttl: 9_000_000_000 },
        Op::Grant { id: -11, ttl: 1000 },
        Op::Revoke { id: 6 },
        Op::Revoke { id: 7 },
        Op::Revoke { id: 8 },
        Op::Revoke { id: 99 },
        Op::KeepAlive { id: 5 },
        Op::KeepAlive { id: 99 },
        with(|put| put.lease = 5),
        with(|put| (put.key, put.lease) = ("leased", 5)),
        with(|put| (put.key, put.lease) = ("moved", 5)),
        with(|put| (put.key, put.lease) = ("moved", 10)),
        with(|put| (put.key, put.ignore_lease, put.value) = ("leased", true, "kept")),
        Op::TimeToLive { id: 5, keys: true },
        Op::TimeToLive { id: 5, keys: false },
        Op::TimeToLive { id: 10, keys: true },
        Op::TimeToLive { id: 99, keys: true },
        Op::Leases,
        txn(vec![when("a", End::One, CompareOp::Equal, Target::Lease(5))], vec![put("t", "8")], vec![]),
        put("a", "no lease any more"),
        Op::TimeToLive { id: 5, keys: true },
        with(|put| (put.key, put.lease) = ("leased2", 5)),
        Op::Revoke { id: 5 },
        all(Get::default()),
    ];
    for target in
        [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value]
    {
        for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            trace.push(all(Get { sort: Some((target, order)), limit: 3, ..Get::default() }));
            trace.push(all(Get { sort: Some((target, order)), keys_only: true, ..Get::default() }));
        }
    }
    runtime().block_on(async {
        let mut pair = Pair::start().await;
        for op in &trace {
            pair.run(op).await;
        }
        pair.compare_logs().await;
    });
}

#[test]
fn random_traces_give_etcds_answers() {
    let runtime = runtime();
    let pair = RefCell::new(runtime.block_on(Pair::start()));
    let mut runner = TestRunner::new(Config {
        cases: 60,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    });
    let case = (prop::collection::vec(any_op(), 1..40), any_key());
    let outcome = runner.run(&case, |(trace, watched)| {
        let pair = &mut *pair.borrow_mut();
        runtime.block_on(async {
            let mut watches = pair.watch(watched, WatchOptions::new().with_range("~~")).await;
            for op in &trace {
                pair.run(op).await;
            }
            watches.compare(pair).await;
            pair.compare_logs().await;
        });
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn watches_report_what_etcds_report() {
    runtime().block_on(async {
        let mut pair = Pair::start().await;
        let options = || WatchOptions::new().with_range("~~");
        let mut live = vec![
            pair.watch("a", options().with_prev_key()).await,
            pair.watch("a", options().with_filters([WatchFilterType::NoDelete])).await,
            pair.watch("a", options().with_filters([WatchFilterType::NoPut])).await,
            pair.watch("a", options().with_start_revision(6)).await,
            pair.watch("", options().with_watch_id(17).with_progress_notify()).await,
        ];
        for op in [
            put("a", "1"),
            put("a", "2"),
            put("b", "1"),
            txn(vec![], vec![put("a", "3"), put("c", "1"), delete("b", End::One)], vec![]),
            Op::Grant { id: 5, ttl: 100 },
            Op::Put { put: Put { key: "d", lease: 5, ..Put::default() } },
            Op::Put { put: Put { key: "e", lease: 5, ..Put::default() } },
            Op::Revoke { id: 5 },
            delete("\0", End::FromKey),
            put("a", "4"),
        ] {
            pair.run(&op).await;
        }
        for watches in &mut live {
            watches.compare(&mut pair).await;
        }
        for back in 0..pair.revision {
            let start = pair.revision - back;
            let options = || options().with_start_revision(start);
            pair.watch("a", options()).await.compare(&mut pair).await;
            pair.watch("a", options().with_prev_key()).await.compare(&mut pair).await;
        }
        pair.run(&Op::Compact { back: 4, physical: true }).await;
        for back in [0, 3, 5, 6] {
            let options = options().with_prev_key().with_start_revision(pair.revision - back);
            pair.watch("a", options).await.compare(&mut pair).await;
        }
    });
}

#[test]
fn several_watches_share_a_stream_as_in_etcd() {
    runtime().block_on(async {
        let mut pair = Pair::start().await;
        let mut seen = Vec::new();
        for client in [&mut pair.etcd, &mut pair.builtin] {
            let mut stream = client.watch("a", None).await.unwrap();
            let mut answers = Vec::new();
            stream.watch("b", Some(WatchOptions::new().with_watch_id(5))).await.unwrap();
            answers.push(next(&mut stream).await);
            stream.watch("c", Some(WatchOptions::new().with_watch_id(5))).await.unwrap();
            answers.push(next(&mut stream).await);
            stream.watch("c", Some(WatchOptions::new().with_range("a"))).await.unwrap();
            answers.push(next(&mut stream).await);
            stream.watch("c", None).await.unwrap();
            answers.push(next(&mut stream).await);
            stream.request_progress().await.unwrap();
            answers.push(next(&mut stream).await);
            stream.cancel(5).await.unwrap();
            answers.push(next(&mut stream).await);
            stream.cancel(99).await.unwrap();
            client.put("b", "not watched any more", None).await.unwrap();
            client.put("c", "1", None).await.unwrap();
            answers.push(next(&mut stream).await);
            stream.request_progress().await.unwrap();
            answers.push(next(&mut stream).await);
            seen.push(answers);
        }
        assert_eq!(seen[1], seen[0], "the built-in store against etcd");
    });
}

/// Both stores, with the same history.
struct Pair {
    etcd: Client,
    builtin: Client,
    revision: i64,
    _servers: (Etcd, Builtin),
}

impl Pair {
    async fn start() -> Self {
        let servers = (Etcd::start(), Builtin::start());
        let (etcd, builtin) = (servers.0.client().await, servers.1.client().await);
        Self { etcd, builtin, revision: 1, _servers: servers }
    }

    async fn run(&mut self, op: &Op) {
        let expected = answer(&mut self.etcd, self.revision, op).await;
        let found = answer(&mut self.builtin, self.revision, op).await;
        let shown = format!("{op:?}");
        assert_eq!(found, expected, "the built-in store against etcd: {shown:.2000}");
        self.revision = revision(&mut self.etcd).await;
        assert_eq!(revision(&mut self.builtin).await, self.revision, "{shown:.2000}");
    }

    async fn watch(&mut self, key: &str, options: WatchOptions) -> Watches {
        let etcd = self.etcd.watch(key, Some(options.clone())).await.unwrap();
        let builtin = self.builtin.watch(key, Some(options)).await.unwrap();
        Watches { etcd, builtin }
    }

    /// All of the history that is left; the revision of the last compaction is
    /// left out, where etcd before 3.5.17 loses deletions.
    async fn compare_logs(&mut self) {
        let mut oldest = self.revision;
        while oldest > 1
            && self.builtin.get("\0", Some(GetOptions::new().with_revision(oldest - 1))).await.is_ok()
        {
            oldest -= 1;
        }
        let options = WatchOptions::new().with_range("~~").with_prev_key().with_start_revision(oldest + 1);
        self.watch("", options).await.compare(self).await;
    }
}

/// The same watch on both.
struct Watches {
    etcd: WatchStream,
    builtin: WatchStream,
}

impl Watches {
    /// Ends both with a last key and compares all they have told.
    async fn compare(&mut self, pair: &mut Pair) {
        pair.run(&put("~", "the end")).await;
        pair.run(&delete("~", End::One)).await;
        let expected = told(&mut self.etcd, pair.revision).await;
        let found = told(&mut self.builtin, pair.revision).await;
        assert_eq!(found, expected, "the built-in store's watch against etcd's");
    }
}

/// Events by revision up to one of the revisions that end a watch; or why it
/// was cancelled. Fails where one revision comes in two responses.
async fn told(stream: &mut WatchStream, end: i64) -> Result<BTreeMap<i64, Vec<String>>, PbWatchResponse> {
    let mut told = BTreeMap::<i64, Vec<String>>::new();
    loop {
        let response = next(stream).await;
        if response.canceled {
            return Err(response);
        }
        let mut last = told.keys().last().copied().unwrap_or(0);
        for event in response.events {
            let revision = event.kv.as_ref().unwrap().mod_revision;
            assert!(revision > last || last == i64::MAX || told.contains_key(&revision), "out of order");
            last = last.max(revision);
            told.entry(revision).or_default().push(format!("{event:?}"));
        }
        if told.range(end - 1..).next().is_some() {
            // A filter lets only one of the last two revisions through.
            told.retain(|revision, _| *revision < end - 1);
            return Ok(told);
        }
    }
}

async fn next(stream: &mut WatchStream) -> PbWatchResponse {
    let message = tokio::time::timeout(Duration::from_secs(10), stream.message()).await;
    let mut response = message.expect("an answer within 10 s").unwrap().unwrap().0;
    anonymous(&mut response.header);
    if !response.events.is_empty() {
        // Whether events came late or live shows in etcd's header alone.
        response.header = None;
    }
    response
}

async fn revision(client: &mut Client) -> i64 {
    client.get("any", None).await.unwrap().header().unwrap().revision()
}
