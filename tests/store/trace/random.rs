//! Operations drawn at random.

use etcd_client::{CompareOp, SortOrder, SortTarget};
use proptest::prelude::*;

use super::ops::*;

pub(super) fn any_key() -> impl Strategy<Value = Key> + Clone {
    prop::sample::select(vec!["a", "ab", "b", "c", "ca"])
}

fn any_end() -> impl Strategy<Value = End> + Clone {
    prop_oneof![
        4 => Just(End::One),
        1 => any_key().prop_map(End::Before),
        1 => Just(End::Prefix),
        1 => Just(End::FromKey),
    ]
}

fn any_get() -> impl Strategy<Value = Op> + Clone {
    let targets =
        vec![SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
    let orders = vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
    let sort = prop::option::of((prop::sample::select(targets), prop::sample::select(orders)));
    let back = || prop::option::weighted(0.3, -1i64..8);
    let bounds = (back(), back(), back(), back());
    (any_key(), any_end(), (back(), 0i64..4, sort, any::<bool>(), prop::bool::weighted(0.2)), bounds)
        .prop_map(
            |(
                key,
                end,
                (back, limit, sort, keys_only, count_only),
                (min_mod, max_mod, min_create, max_create),
            )| {
                let options = Get {
                    back,
                    limit,
                    sort,
                    keys_only,
                    count_only,
                    min_mod,
                    max_mod,
                    min_create,
                    max_create,
                };
                Op::Get { key, end, options }
            },
        )
}

fn any_put() -> impl Strategy<Value = Op> + Clone {
    let rarely = || prop::bool::weighted(0.1);
    let lease = prop_oneof![3 => Just(0), 2 => 1i64..4];
    (any_key(), prop::sample::select(vec!["", "1", "2"]), lease, any::<bool>(), rarely(), rarely()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| {
            let value = if ignore_value { "" } else { value };
            Op::Put { put: Put { key, value, lease, prev_kv, ignore_value, ignore_lease } }
        },
    )
}

/// One that takes nothing over from what stands there. etcd 3.4 dies of one that
/// does after a deletion of its key in the same transaction.
fn whole_put() -> impl Strategy<Value = Op> + Clone {
    any_put().prop_map(|op| match op {
        Op::Put { put } => Op::Put { put: Put { ignore_value: false, ignore_lease: false, ..put } },
        other => other,
    })
}

fn any_delete() -> impl Strategy<Value = Op> + Clone {
    (any_key(), any_end(), any::<bool>()).prop_map(|(key, end, prev_kv)| Op::Delete { key, end, prev_kv })
}

fn any_txn() -> impl Strategy<Value = Op> + Clone {
    let results = vec![CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];
    let target = prop_oneof![
        (0i64..4).prop_map(Target::Version),
        (0i64..8).prop_map(Target::Create),
        (0i64..8).prop_map(Target::Mod),
        prop::sample::select(vec!["", "1", "2"]).prop_map(Target::Value),
        (0i64..3).prop_map(Target::Lease),
    ];
    let when = (any_key(), any_end(), prop::sample::select(results), target)
        .prop_map(|(key, end, result, target)| When { key, end, result, target });
    let leaf = prop_oneof![any_get(), whole_put(), whole_put(), any_delete()];
    leaf.prop_recursive(2, 12, 4, move |op| {
        let ops = || prop::collection::vec(op.clone(), 0..4);
        (prop::collection::vec(when.clone(), 0..3), ops(), ops())
            .prop_map(|(when, then, otherwise)| Op::Txn { txn: Branches { when, then, otherwise } })
    })
}

pub(super) fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any_put(),
        4 => any_txn(),
        3 => any_get(),
        2 => any_delete(),
        1 => (0i64..12, any::<bool>()).prop_map(|(back, physical)| Op::Compact { back, physical }),
        1 => (1i64..4, 60i64..1000).prop_map(|(id, ttl)| Op::Grant { id, ttl }),
        1 => (1i64..4).prop_map(|id| Op::Revoke { id }),
        1 => (1i64..4).prop_map(|id| Op::KeepAlive { id }),
        1 => (1i64..4, any::<bool>()).prop_map(|(id, keys)| Op::TimeToLive { id, keys }),
        1 => Just(Op::Leases),
    ]
}
