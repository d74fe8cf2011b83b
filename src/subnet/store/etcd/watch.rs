use std::collections::VecDeque;
use std::time::Duration;

use etcd_client::{Client, GetOptions, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use futures_util::stream::{self, BoxStream};
use tokio::time::timeout;
use tonic::Code;

use super::EtcdStore;
use super::acquire::pauses;
use super::connection::{Failure, MAX_MESSAGE, kv};
use crate::subnet::{Snapshot, StoreEvent};

/// A watch answers its creation within this.
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// The changes from `from` on, for ever.
pub(super) fn watch(store: EtcdStore, from: Snapshot) -> BoxStream<'static, StoreEvent> {
    let mut watcher = Watcher {
        store,
        next: from.revision + 1,
        stream: None,
        seen: None,
        outage: false,
        pauses: Box::new(reconnect_pauses()),
        rest: false,
        queue: VecDeque::new(),
    };
    watcher.queue.push_back(StoreEvent::Snapshot(from));
    Box::pin(stream::unfold(watcher, |mut watcher| async {
        let event = watcher.event().await;
        Some((event, watcher))
    }))
}

fn reconnect_pauses() -> impl Iterator<Item = Duration> + Send {
    pauses(Duration::from_millis(100), Duration::from_secs(5))
}

struct Watcher {
    store: EtcdStore,
    /// The first revision not yet reported.
    next: i64,
    stream: Option<WatchStream>,
    /// The store's last answer but for its revision: tells a restored store.
    seen: Option<Origin>,
    /// `Disconnected` was reported, `Connected` not yet.
    outage: bool,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// Pause before the next connect: no fault of the store makes a hot loop.
    rest: bool,
    queue: VecDeque<StoreEvent>,
}

/// Which history revisions count in.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    cluster: u64,
    term: u64,
}

impl Watcher {
    async fn event(&mut self) -> StoreEvent {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return event;
            }
            if let Err(failure) = self.advance().await {
                self.lost(&failure).await;
            }
        }
    }

    /// Bring the watch up, or take in its next answer.
    async fn advance(&mut self) -> Result<(), Failure> {
        let Some(stream) = &mut self.stream else { return self.connect().await };
        let ended = || Failure::unavailable("the store ended the watch");
        let response = stream.message().await.map_err(|e| Failure::new(&e))?.ok_or_else(ended)?;
        self.take_in(&response).await
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        if self.rest {
            tokio::time::sleep(self.pauses.next().unwrap_or_default()).await;
            self.rest = false;
        }
        // A read first: it renews an expired login, which a watch would only
        // report as a cancellation, and says whether our revision still counts.
        let key = self.store.keys.config();
        let probe = |client: Client| {
            let options = GetOptions::new().with_count_only();
            let key = key.clone();
            async move { Ok((kv(&client).get(key, Some(options)).await?, client)) }
        };
        let (probe, client) = self.store.connection.call(probe).await?;
        if self.is_other_history(probe.header()) {
            self.snapshot().await?;
        }

        let options = WatchOptions::new()
            .with_range(self.store.keys.subnets_end())
            .with_start_revision(self.next)
            .with_progress_notify()
            .with_fragment();
        let mut watches = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let create = async {
            let mut stream = watches.watch(self.store.keys.subnets(), Some(options)).await?;
            let first = stream.message().await?;
            Ok::<_, etcd_client::Error>((stream, first))
        };
        let (stream, first) = match timeout(CREATE_TIMEOUT, create).await {
            Ok(created) => created.map_err(|e| Failure::new(&e))?,
            Err(_) => return Err(Failure::timeout()),
        };
        self.stream = Some(stream);
        self.take_in(&first.ok_or_else(|| Failure::unavailable("the store ended the watch"))?).await?;
        if self.stream.is_some() {
            self.up();
        }
        Ok(())
    }

    async fn take_in(&mut self, response: &WatchResponse) -> Result<(), Failure> {
        if response.compact_revision() > 0 {
            self.stream = None;
            self.rest = true;
            return self.snapshot().await;
        }
        if response.canceled() {
            return Err(Failure::unavailable(&format!(
                "the store cancelled the watch: {}",
                response.cancel_reason()
            )));
        }
        if !response.created() {
            self.pauses = Box::new(reconnect_pauses());
        }
        for event in response.events() {
            let Some(record) = event.kv() else { continue };
            // Not event_type(), which panics on what it does not know.
            const DELETE: i32 = 1;
            let event = match (event.0.r#type == DELETE, self.store.keys.parse_key(record.key())) {
                (true, Ok(key)) => StoreEvent::Delete(key),
                (true, Err(_)) => continue,
                (false, _) => self.store.keys.parse(record).map_or_else(StoreEvent::Bad, StoreEvent::Put),
            };
            self.queue.push_back(event);
        }
        // A revision may come in fragments: it is done when the last is here.
        if response.0.fragment {
            return Ok(());
        }
        let last = response.events().last().and_then(|event| event.kv()).map(|kv| kv.mod_revision());
        // Without events it is a sign of progress: all up to here was sent.
        let progress = response.header().filter(|_| !response.created()).map(|header| header.revision());
        self.next = self.next.max(last.or(progress).unwrap_or(0) + 1);
        Ok(())
    }

    /// A fresh listing, from which on the watch goes.
    async fn snapshot(&mut self) -> Result<(), Failure> {
        let snapshot = super::listing::list(&self.store).await?;
        self.next = snapshot.revision + 1;
        self.queue.push_back(StoreEvent::Snapshot(snapshot));
        Ok(())
    }

    /// Whether the store was restored from a backup or replaced: its revisions
    /// are not those we counted in.
    fn is_other_history(&mut self, header: Option<&ResponseHeader>) -> bool {
        let Some(header) = header else { return false };
        let now = Origin { cluster: header.cluster_id(), term: header.raft_term() };
        let before = self.seen.replace(now);
        header.revision() + 1 < self.next
            || before.is_some_and(|before| before.cluster != now.cluster || before.term > now.term)
    }

    async fn lost(&mut self, failure: &Failure) {
        self.stream = None;
        self.rest = true;
        // One answer was too large: a listing comes in smaller pages.
        if failure.code == Code::OutOfRange && self.snapshot().await.is_ok() {
            return;
        }
        self.store.connection.rotate();
        if !self.outage {
            self.outage = true;
            self.queue.push_back(StoreEvent::Disconnected(failure.to_string()));
        }
    }

    fn up(&mut self) {
        if self.outage {
            self.outage = false;
            self.queue.push_back(StoreEvent::Connected);
        }
    }
}
