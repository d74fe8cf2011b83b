use std::collections::VecDeque;
use std::time::Duration;

use etcd_client::{
    Client, GetOptions, GetResponse, KeyValue, ResponseHeader, WatchOptions, WatchResponse, WatchStream,
};
use futures_util::stream::{self, BoxStream};
use tokio::time::timeout;
use tonic::Code;

use super::EtcdStore;
use super::acquire::pauses;
use super::connection::{Failure, MAX_MESSAGE, kv};
use crate::subnet::{Origin, Position, StoreEvent};

/// A watch answers its creation within this.
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Before another try to connect: doubles, with as much again by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Where nobody answers a try costs nobody anything, and the first after the
/// store's return should come soon. One that is there but has too much to do
/// makes each try last seconds.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The changes from `from` on, for ever; from a listing on where nothing was told.
pub(super) fn watch(store: EtcdStore, from: Position) -> BoxStream<'static, StoreEvent> {
    let mut watcher = Watcher {
        anchor: Anchor::of(&from, &store),
        store,
        next: from.revision + 1,
        stream: None,
        seen: from.origin,
        astray: !from.is_listed(),
        outage: None,
        pauses: Box::new(pauses(FIRST_PAUSE, MAX_PAUSE)),
        rest: false,
        queue: VecDeque::new(),
    };
    if !from.is_listed() {
        watcher.away("not reached yet".to_owned());
    }
    Box::pin(stream::unfold(watcher, |mut watcher| async {
        let event = watcher.event().await;
        Some((event, watcher))
    }))
}

struct Watcher {
    store: EtcdStore,
    /// The first revision not yet reported.
    next: i64,
    stream: Option<WatchStream>,
    /// The store's last answer but for its revision: tells a restored store.
    seen: Option<Origin>,
    /// Tells one, too, whose revisions have passed ours since.
    anchor: Option<Anchor>,
    /// The store's history is not ours: a listing is due.
    astray: bool,
    /// What was reported with `Disconnected`, and `Connected` not yet.
    outage: Option<String>,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// Pause before the next connect: no fault of the store makes a hot loop.
    rest: bool,
    queue: VecDeque<StoreEvent>,
}

/// The record that changed last, as far as we know. Where it is not so at the
/// revision that we have come to, the store was restored from before it.
struct Anchor {
    key: Vec<u8>,
    mod_revision: i64,
}

impl Anchor {
    fn of(position: &Position, store: &EtcdStore) -> Option<Anchor> {
        let (key, mod_revision) = position.last?;
        Some(Anchor { key: store.keys.subnet(&key).into_bytes(), mod_revision })
    }

    fn stands(&self, found: &[KeyValue]) -> bool {
        found.first().is_some_and(|record| record.mod_revision() == self.mod_revision)
    }
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
        let (key, revision) = match &self.anchor {
            Some(anchor) => (anchor.key.clone(), self.next - 1),
            None => (self.store.keys.config().into_bytes(), 0),
        };
        let probe = |client: Client| {
            let (key, options) = (key.clone(), GetOptions::new().with_revision(revision));
            async move {
                match kv(&client).get(key, Some(options)).await {
                    Ok(found) => Ok((Some(found), client)),
                    // Compacted, or still to come.
                    Err(error) if Failure::new(&error).code == Code::OutOfRange => Ok((None, client)),
                    Err(error) => Err(error),
                }
            }
        };
        let (probe, client) = self.store.connection.call(probe).await?;
        self.astray |= probe.is_none_or(|probe| self.is_other_history(&probe));
        if self.astray {
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
        // Replaced since the probe: the listing and the watch are of two stores.
        if response.created() && self.is_other_origin(response.header()) {
            (self.stream, self.rest, self.astray) = (None, true, true);
            return Ok(());
        }
        if !response.created() {
            self.pauses = Box::new(pauses(FIRST_PAUSE, MAX_PAUSE));
        }
        for event in response.events() {
            let Some(record) = event.kv() else { continue };
            // Not event_type(), which panics on what it does not know.
            const DELETE: i32 = 1;
            let event = match (event.0.r#type == DELETE, self.store.keys.parse_key(record.key())) {
                (true, key) => {
                    self.anchor.take_if(|anchor| anchor.key == record.key());
                    let Ok(key) = key else { continue };
                    StoreEvent::Delete(key)
                }
                (false, _) => self.store.keys.parse(record).map_or_else(StoreEvent::Bad, StoreEvent::Put),
            };
            if matches!(event, StoreEvent::Put(_)) {
                let (key, mod_revision) = (record.key().to_vec(), record.mod_revision());
                self.anchor = Some(Anchor { key, mod_revision });
            }
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
        self.anchor = Anchor::of(&snapshot.position(), &self.store);
        self.seen = snapshot.origin;
        self.astray = false;
        self.queue.push_back(StoreEvent::Snapshot(snapshot));
        Ok(())
    }

    /// Whether the store was restored from a backup or replaced: its revisions
    /// are not those we counted in.
    fn is_other_history(&mut self, probe: &GetResponse) -> bool {
        self.is_other_origin(probe.header())
            || probe.header().is_some_and(|header| header.revision() + 1 < self.next)
            || self.anchor.as_ref().is_some_and(|anchor| !anchor.stands(probe.kvs()))
    }

    fn is_other_origin(&mut self, header: Option<&ResponseHeader>) -> bool {
        let Some(header) = header else { return false };
        let now = super::origin(header);
        let before = self.seen.replace(now);
        before.is_some_and(|before| before.cluster != now.cluster || before.term > now.term)
    }

    async fn lost(&mut self, failure: &Failure) {
        self.stream = None;
        self.rest = true;
        // One answer was too large: a listing comes in smaller pages.
        if failure.code == Code::OutOfRange && self.snapshot().await.is_ok() {
            return;
        }
        self.store.connection.rotate();
        // A refusal is for a person to act on, whatever came before.
        let cause = failure.to_string();
        if self.outage.is_none() || failure.is_refusal() && self.outage.as_ref() != Some(&cause) {
            self.away(cause);
        }
    }

    fn away(&mut self, cause: String) {
        self.queue.push_back(StoreEvent::Disconnected(cause.clone()));
        self.outage = Some(cause);
    }

    fn up(&mut self) {
        if self.outage.take().is_some() {
            self.queue.push_back(StoreEvent::Connected);
        }
    }
}
