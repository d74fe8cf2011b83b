use etcd_client::{GetOptions, GetResponse, KeyValue};
use tonic::Code;

use super::EtcdStore;
use super::connection::{Failure, kv};
use crate::subnet::store::StoreError;
use crate::subnet::{Origin, Snapshot};

/// Records asked for at once: an answer of some 150 kB, held twice while it is
/// decoded.
const PAGE: i64 = 500;
/// More than any IPv4 pool has /24s; bounds what a hostile store can make us
/// hold.
const MAX_RECORDS: usize = 1 << 18;

/// All records below `<prefix>/subnets/` at one revision, page by page.
pub(super) async fn snapshot(store: &EtcdStore) -> Result<Snapshot, StoreError> {
    // A compaction between two pages takes the revision away: begin again. It
    // happens every few minutes at most.
    for _ in 0..3 {
        match list(store).await {
            Ok(snapshot) => return Ok(snapshot),
            Err(failure) if failure.is_compacted() => {}
            Err(failure) => return Err(store.error(&failure)),
        }
    }
    Err(StoreError::Unavailable {
        store: store.description.to_string(),
        cause: format!("{} was compacted during each of three listings", store.keys.subnets()),
    })
}

pub(super) async fn list(store: &EtcdStore) -> Result<Snapshot, Failure> {
    let mut snapshot = Snapshot::default();
    let (revision, origin) = walk(store, |record| match store.keys.parse(record) {
        Ok(lease) => snapshot.leases.push(lease),
        Err(bad) => snapshot.bad.push(bad),
    })
    .await?;
    Ok(Snapshot { revision, origin, ..snapshot })
}

/// Every record at one revision, which it gives, and whose it is.
pub(super) async fn walk(
    store: &EtcdStore,
    mut take: impl FnMut(&KeyValue),
) -> Result<(i64, Option<Origin>), Failure> {
    let (mut revision, mut origin, mut records) = (0, None, 0);
    let mut start = store.keys.subnets().into_bytes();
    let mut limit = PAGE;
    loop {
        let page = match page(store, &start, revision, limit, false).await {
            // Too large an answer (of fat records): smaller pages.
            Err(failure) if failure.code == Code::OutOfRange && !failure.is_compacted() && limit > 1 => {
                limit = (limit / 8).max(1);
                continue;
            }
            // One record alone is too large: its key will do.
            Err(failure) if failure.code == Code::OutOfRange && !failure.is_compacted() => {
                page(store, &start, revision, 1, true).await?
            }
            other => other?,
        };
        if revision == 0 {
            revision = page.header().map_or(0, |header| header.revision());
            origin = page.header().map(super::origin);
        }
        page.kvs().iter().for_each(&mut take);
        records += page.kvs().len();
        if records > MAX_RECORDS {
            let what = format!("more than {MAX_RECORDS} records below {}", store.keys.subnets());
            return Err(Failure::refusal(what));
        }
        let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok((revision, origin)) };
        start = last.key().to_vec();
        start.push(0);
    }
}

/// At most `limit` records from `start` on, at `revision` (0: now).
async fn page(
    store: &EtcdStore,
    start: &[u8],
    revision: i64,
    limit: i64,
    keys_only: bool,
) -> Result<GetResponse, Failure> {
    let mut options =
        GetOptions::new().with_range(store.keys.subnets_end()).with_limit(limit).with_revision(revision);
    if keys_only {
        options = options.with_keys_only();
    }
    store
        .connection
        .call(|client| {
            let (start, options) = (start.to_vec(), options.clone());
            async move { kv(&client).get(start, Some(options)).await }
        })
        .await
}
