use etcd_client::{GetOptions, GetResponse, KeyValue};
use tonic::Code;

use super::EtcdStore;
use super::connection::{Failure, kv};
use crate::subnet::store::StoreError;
use crate::subnet::{Origin, Snapshot};

/// Records asked for at once: an answer of some 400 kB, held twice while it is
/// decoded, beside the one before. For each page etcd (3.4) walks over the keys of
/// all that follow: 50,000 cost it 910 ms of CPU in pages of 500, 500 in pages of
/// 1,000, 290 in pages of 2,000, 190 in pages of 4,000, and 100 in one.
const PAGE: i64 = 2000;
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
    let start = Some(store.keys.subnets().into_bytes());
    let mut pages = Pages { store, start, revision: 0, limit: PAGE };
    let (mut origin, mut records) = (None, 0);
    let mut next = pages.next().await?;
    while let Some(page) = next {
        origin = origin.or(page.header().map(super::origin));
        records += page.kvs().len();
        if records > MAX_RECORDS {
            let what = format!("more than {MAX_RECORDS} records below {}", store.keys.subnets());
            return Err(Failure::refusal(what));
        }
        // The store looks the next page up while this one is taken in. The request is
        // sent by another task, which is to run first.
        let (following, ()) = tokio::join!(pages.next(), async {
            tokio::task::yield_now().await;
            page.kvs().iter().for_each(&mut take);
        });
        next = following?;
    }
    Ok((pages.revision, origin))
}

struct Pages<'a> {
    store: &'a EtcdStore,
    /// Where the next one begins; `None` after the last.
    start: Option<Vec<u8>>,
    /// That of the first page, and of all; 0 until then.
    revision: i64,
    limit: i64,
}

impl Pages<'_> {
    async fn next(&mut self) -> Result<Option<GetResponse>, Failure> {
        let Some(start) = &self.start else { return Ok(None) };
        let page = loop {
            match self.read(start, self.limit, false).await {
                // Too large an answer (of fat records): smaller pages.
                Err(failure) if is_too_large(&failure) && self.limit > 1 => {
                    self.limit = (self.limit / 8).max(1);
                }
                // One record alone is too large: its key will do.
                Err(failure) if is_too_large(&failure) => break self.read(start, 1, true).await?,
                other => break other?,
            }
        };
        if self.revision == 0 {
            self.revision = page.header().map_or(0, |header| header.revision());
        }
        let last = page.kvs().last().filter(|_| page.more());
        self.start = last.map(|last| [last.key(), &[0]].concat());
        Ok(Some(page))
    }

    /// At most `limit` records from `start` on.
    async fn read(&self, start: &[u8], limit: i64, keys_only: bool) -> Result<GetResponse, Failure> {
        let mut options = GetOptions::new()
            .with_range(self.store.keys.subnets_end())
            .with_limit(limit)
            .with_revision(self.revision);
        if keys_only {
            options = options.with_keys_only();
        }
        let get = |client| {
            let (start, options) = (start.to_vec(), options.clone());
            async move { kv(&client).get(start, Some(options)).await }
        };
        self.store.connection.call(get).await
    }
}

fn is_too_large(failure: &Failure) -> bool {
    failure.code == Code::OutOfRange && !failure.is_compacted()
}
