//! An operation, and how it is asked.

use std::time::Duration;

use etcd_client::proto::PbResponseHeader;
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, GetOptions, LeaseGrantOptions,
    LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
};

/// One request. Revisions count back from the newest: `Some(0)` is the newest,
/// `Some(-1)` the next.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Get { key: Key, end: End, options: Get },
    Put { put: Put },
    Delete { key: Key, end: End, prev_kv: bool },
    Txn { txn: Branches },
    Compact { back: i64, physical: bool },
    Grant { id: i64, ttl: i64 },
    Revoke { id: i64 },
    KeepAlive { id: i64 },
    TimeToLive { id: i64, keys: bool },
    Leases,
}

pub(super) type Key = &'static str;

#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    One,
    Before(Key),
    Prefix,
    FromKey,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Get {
    pub(super) back: Option<i64>,
    pub(super) limit: i64,
    pub(super) sort: Option<(SortTarget, SortOrder)>,
    pub(super) keys_only: bool,
    pub(super) count_only: bool,
    /// Bounds on the revisions of modification and creation, counted back.
    pub(super) min_mod: Option<i64>,
    pub(super) max_mod: Option<i64>,
    pub(super) min_create: Option<i64>,
    pub(super) max_create: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Put {
    pub(super) key: Key,
    pub(super) value: Key,
    pub(super) lease: i64,
    pub(super) prev_kv: bool,
    pub(super) ignore_value: bool,
    pub(super) ignore_lease: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Branches {
    pub(super) when: Vec<When>,
    pub(super) then: Vec<Op>,
    pub(super) otherwise: Vec<Op>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct When {
    pub(super) key: Key,
    pub(super) end: End,
    pub(super) result: CompareOp,
    pub(super) target: Target,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Key),
    Lease(i64),
}

pub(super) fn put(key: Key, value: Key) -> Op {
    Op::Put { put: Put { key, value, ..Put::default() } }
}

pub(super) fn get(key: Key, end: End, options: Get) -> Op {
    Op::Get { key, end, options }
}

pub(super) fn delete(key: Key, end: End) -> Op {
    Op::Delete { key, end, prev_kv: true }
}

pub(super) fn txn(when: Vec<When>, then: Vec<Op>, otherwise: Vec<Op>) -> Op {
    Op::Txn { txn: Branches { when, then, otherwise } }
}

/// Who answered is no part of the answer.
pub(super) fn anonymous(header: &mut Option<PbResponseHeader>) {
    if let Some(header) = header {
        *header = PbResponseHeader { revision: header.revision, ..Default::default() };
    }
}

pub(super) async fn answer(client: &mut Client, revision: i64, op: &Op) -> String {
    let answer = tokio::time::timeout(Duration::from_secs(10), ask(client, revision, op)).await;
    match answer.expect("an answer within 10 s") {
        Ok(answer) => answer,
        Err(Error::GRpcStatus(status)) => format!("{:?}: {}", status.code(), status.message()),
        Err(error) => error.to_string(),
    }
}

macro_rules! shown {
    ($response:expr) => {{
        let mut response = $response.0;
        anonymous(&mut response.header);
        Ok(format!("{response:?}"))
    }};
}

pub(super) async fn ask(client: &mut Client, revision: i64, op: &Op) -> Result<String, Error> {
    match op.clone() {
        Op::Get { key, end, options } => {
            shown!(client.get(key, Some(get_options(end, &options, revision))).await?)
        }
        Op::Put { put } => shown!(client.put(put.key, put.value, Some(put_options(&put))).await?),
        Op::Delete { key, end, prev_kv } => {
            shown!(client.delete(key, Some(delete_options(end, prev_kv))).await?)
        }
        Op::Txn { txn } => shown!(client.txn(transaction(&txn, revision)).await?),
        Op::Compact { back, physical } => {
            let mut options = CompactionOptions::new();
            if physical {
                options = options.with_physical();
            }
            shown!(client.compact(revision - back, Some(options)).await?)
        }
        Op::Grant { id, ttl } => {
            shown!(client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await?)
        }
        Op::Revoke { id } => shown!(client.lease_revoke(id).await?),
        Op::KeepAlive { id } => {
            let (mut keeper, mut stream) = client.lease_keep_alive(id).await?;
            keeper.keep_alive().await?;
            shown!(stream.message().await?.unwrap())
        }
        Op::TimeToLive { id, keys } => {
            let options = keys.then(|| LeaseTimeToLiveOptions::new().with_keys());
            let mut response = client.lease_time_to_live(id, options).await?;
            response.0.keys.sort();
            if (response.0.granted_ttl - response.0.ttl).abs() <= 2 {
                response.0.ttl = response.0.granted_ttl;
            }
            shown!(response)
        }
        Op::Leases => {
            let mut response = client.leases().await?;
            response.0.leases.sort_by_key(|lease| lease.id);
            shown!(response)
        }
    }
}

pub(super) fn get_options(end: End, get: &Get, revision: i64) -> GetOptions {
    let back = |back: Option<i64>| back.map_or(0, |back| (revision - back).max(0));
    let mut options = GetOptions::new()
        .with_limit(get.limit)
        .with_revision(back(get.back))
        .with_min_mod_revision(back(get.min_mod))
        .with_max_mod_revision(back(get.max_mod))
        .with_min_create_revision(back(get.min_create))
        .with_max_create_revision(back(get.max_create));
    if let Some((target, order)) = get.sort {
        options = options.with_sort(target, order);
    }
    if get.keys_only {
        options = options.with_keys_only();
    }
    if get.count_only {
        options = options.with_count_only();
    }
    match end {
        End::One => options,
        End::Before(end) => options.with_range(end),
        End::Prefix => options.with_prefix(),
        End::FromKey => options.with_from_key(),
    }
}

pub(super) fn put_options(put: &Put) -> PutOptions {
    let mut options = PutOptions::new().with_lease(put.lease);
    if put.prev_kv {
        options = options.with_prev_key();
    }
    if put.ignore_value {
        options = options.with_ignore_value();
    }
    if put.ignore_lease {
        options = options.with_ignore_lease();
    }
    options
}

pub(super) fn delete_options(end: End, prev_kv: bool) -> DeleteOptions {
    let options = if prev_kv { DeleteOptions::new().with_prev_key() } else { DeleteOptions::new() };
    match end {
        End::One => options,
        End::Before(end) => options.with_range(end),
        End::Prefix => options.with_prefix(),
        End::FromKey => options.with_from_key(),
    }
}

pub(super) fn transaction(txn: &Branches, revision: i64) -> Txn {
    let ops = |ops: &[Op]| ops.iter().map(|op| txn_op(op, revision)).collect::<Vec<_>>();
    let when: Vec<_> = txn.when.iter().map(|when| compare(when, revision)).collect();
    Txn::new().when(when).and_then(ops(&txn.then)).or_else(ops(&txn.otherwise))
}

pub(super) fn txn_op(op: &Op, revision: i64) -> TxnOp {
    match op {
        Op::Get { key, end, options } => TxnOp::get(*key, Some(get_options(*end, options, revision))),
        Op::Put { put } => TxnOp::put(put.key, put.value, Some(put_options(put))),
        Op::Delete { key, end, prev_kv } => TxnOp::delete(*key, Some(delete_options(*end, *prev_kv))),
        Op::Txn { txn } => TxnOp::txn(transaction(txn, revision)),
        other => panic!("{other:?} is no part of a transaction"),
    }
}

pub(super) fn compare(when: &When, revision: i64) -> Compare {
    let compare = match when.target {
        Target::Version(version) => Compare::version(when.key, when.result, version),
        Target::Create(back) => Compare::create_revision(when.key, when.result, (revision - back).max(0)),
        Target::Mod(back) => Compare::mod_revision(when.key, when.result, (revision - back).max(0)),
        Target::Value(value) => Compare::value(when.key, when.result, value),
        Target::Lease(lease) => Compare::lease(when.key, when.result, lease),
    };
    match when.end {
        End::One => compare,
        End::Before(end) => compare.with_range(end),
        End::Prefix => compare.with_prefix(),
        End::FromKey => compare.with_range("\0"),
    }
}
