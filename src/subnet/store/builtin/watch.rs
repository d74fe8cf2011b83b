//! The Watch service. Each stream is one task: every watcher of it first reads
//! the log up to the present, then follows the engine's broadcast. A stream that
//! falls behind the broadcast reads the log again, so a slow reader costs the
//! writer nothing and misses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::engine::{Commit, Engine, KeyRange, Replay};
use super::error::RequestError;
use super::server::Service;

/// Responses that wait for a slow reader.
const OUTBOX: usize = 16;
/// How often a quiet watcher that asked for it hears the revision.
const PROGRESS: Duration = Duration::from_secs(600);
/// etcd's marks for a response that belongs to no watcher, or to none yet.
const NO_WATCHER: i64 = -1;

#[tonic::async_trait]
impl PbWatchService for Service {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let stream = Stream::new(self.engine.clone(), outbox.clone());
        let requests = request.into_inner();
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let end = tokio::select! {
                end = stream.run(requests) => end,
                () = shutdown.cancelled() => Err(RequestError::Stopped.into()),
            };
            if let Err(status) = end {
                // A reader that is too slow, or gone, needs no farewell.
                let _ = outbox.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

struct Watcher {
    range: KeyRange,
    /// The first revision not sent yet.
    next: i64,
    prev_kv: bool,
    /// Event types that are left out: 0 puts, 1 deletes.
    without: Vec<i32>,
    progress: bool,
    /// Heard something since the last progress tick.
    busy: bool,
}

struct Stream {
    engine: Engine,
    outbox: mpsc::Sender<Result<PbWatchResponse, Status>>,
    commits: broadcast::Receiver<Arc<Commit>>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    /// All watchers have what happened up to here.
    seen: i64,
}

impl Stream {
    fn new(engine: Engine, outbox: mpsc::Sender<Result<PbWatchResponse, Status>>) -> Self {
        let commits = engine.subscribe();
        let seen = engine.revision();
        Self { engine, outbox, commits, watchers: BTreeMap::new(), next_id: 0, seen }
    }

    /// Ends when the client has closed its side or is gone.
    async fn run(mut self, mut requests: Streaming<PbWatchRequest>) -> Result<(), Status> {
        let mut progress = progress_interval();
        let outbox = self.outbox.clone();
        loop {
            tokio::select! {
                request = requests.message() => match request? {
                    Some(PbWatchRequest { request_union: Some(request) }) => self.handle(request).await?,
                    Some(PbWatchRequest { request_union: None }) => {}
                    None => return Ok(()),
                },
                commit = self.commits.recv() => self.follow(commit).await?,
                _ = progress.tick() => self.report_progress().await?,
                () = outbox.closed() => return Ok(()),
            }
        }
    }

    async fn handle(&mut self, request: PbWatchRequestUnion) -> Result<(), Status> {
        match request {
            PbWatchRequestUnion::CreateRequest(create) => {
                let watcher = Watcher {
                    range: watched_range(create.key, &create.range_end),
                    next: create.start_revision,
                    prev_kv: create.prev_kv,
                    without: create.filters,
                    progress: create.progress_notify,
                    busy: false,
                };
                self.create(create.watch_id, watcher).await
            }
            PbWatchRequestUnion::CancelRequest(cancel) => {
                if self.watchers.remove(&cancel.watch_id).is_none() {
                    return Ok(());
                }
                self.catch_up().await?;
                let response =
                    PbWatchResponse { watch_id: cancel.watch_id, canceled: true, ..Default::default() };
                self.send(self.seen, response).await
            }
            PbWatchRequestUnion::ProgressRequest(_) => {
                self.catch_up().await?;
                let response = PbWatchResponse { watch_id: NO_WATCHER, ..Default::default() };
                self.send(self.seen, response).await
            }
        }
    }

    async fn create(&mut self, wanted_id: i64, mut watcher: Watcher) -> Result<(), Status> {
        self.catch_up().await?;
        let reason = if watcher.range.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if wanted_id != 0 && self.watchers.contains_key(&wanted_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = reason {
            let response = PbWatchResponse {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason: reason.into(),
                ..Default::default()
            };
            return self.send(self.seen, response).await;
        }
        let watch_id = if wanted_id == 0 { self.free_id() } else { wanted_id };
        if watcher.next == 0 {
            watcher.next = self.seen + 1;
        }
        let behind = watcher.next <= self.seen;
        self.watchers.insert(watch_id, watcher);
        self.send(self.seen, PbWatchResponse { watch_id, created: true, ..Default::default() }).await?;
        if behind { self.replay(watch_id).await } else { Ok(()) }
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    async fn follow(&mut self, commit: Result<Arc<Commit>, RecvError>) -> Result<(), Status> {
        match commit.as_deref() {
            Ok(Commit { revision, events: Some(events) }) => {
                self.deliver(*revision, events).await?;
                self.seen = self.seen.max(*revision);
                Ok(())
            }
            Ok(Commit { events: None, .. }) | Err(RecvError::Lagged(_)) => self.replay_all().await,
            Err(RecvError::Closed) => Err(RequestError::Stopped.into()),
        }
    }

    /// Delivers everything that was durable when this was called.
    async fn catch_up(&mut self) -> Result<(), Status> {
        let target = self.engine.revision();
        while self.seen < target {
            let commit = self.commits.recv().await;
            self.follow(commit).await?;
        }
        Ok(())
    }

    async fn deliver(&mut self, revision: i64, events: &[PbEvent]) -> Result<(), Status> {
        let header = Some(self.engine.header(revision));
        for (watch_id, watcher) in &mut self.watchers {
            let events = watcher.pick(events.iter());
            watcher.next = watcher.next.max(revision + 1);
            if events.is_empty() {
                continue;
            }
            watcher.busy = true;
            let response = PbWatchResponse { header, watch_id: *watch_id, events, ..Default::default() };
            send(&self.outbox, response).await?;
        }
        Ok(())
    }

    async fn replay_all(&mut self) -> Result<(), Status> {
        let target = self.engine.revision();
        for watch_id in self.watchers.keys().copied().collect::<Vec<_>>() {
            self.replay(watch_id).await?;
        }
        self.seen = self.seen.max(target);
        Ok(())
    }

    /// Reads the log for one watcher until there is nothing more in it.
    async fn replay(&mut self, watch_id: i64) -> Result<(), Status> {
        while let Some(watcher) = self.watchers.get_mut(&watch_id) {
            let (range, from, prev_kv) = (watcher.range.clone(), watcher.next, watcher.prev_kv);
            match self.engine.call(move |mvcc| mvcc.replay(&range, from, prev_kv)).await? {
                Replay::Compacted(compact_revision) => {
                    self.watchers.remove(&watch_id);
                    let response =
                        PbWatchResponse { watch_id, canceled: true, compact_revision, ..Default::default() };
                    return self.send(0, response).await;
                }
                Replay::Events { events, upto, revision } => {
                    let events = watcher.pick(events.iter());
                    watcher.next = watcher.next.max(upto + 1);
                    if !events.is_empty() {
                        watcher.busy = true;
                        self.send(revision, PbWatchResponse { watch_id, events, ..Default::default() })
                            .await?;
                    }
                    if upto >= revision {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    async fn report_progress(&mut self) -> Result<(), Status> {
        let header = Some(self.engine.header(self.seen));
        for (watch_id, watcher) in &mut self.watchers {
            if watcher.progress && !std::mem::take(&mut watcher.busy) {
                let response = PbWatchResponse { header, watch_id: *watch_id, ..Default::default() };
                send(&self.outbox, response).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, revision: i64, response: PbWatchResponse) -> Result<(), Status> {
        let header = Some(self.engine.header(revision));
        send(&self.outbox, PbWatchResponse { header, ..response }).await
    }
}

async fn send(
    outbox: &mpsc::Sender<Result<PbWatchResponse, Status>>,
    response: PbWatchResponse,
) -> Result<(), Status> {
    outbox.send(Ok(response)).await.map_err(|_| Status::cancelled("the watcher is gone"))
}

impl Watcher {
    fn pick<'a>(&self, events: impl Iterator<Item = &'a PbEvent>) -> Vec<PbEvent> {
        let wanted = |event: &&PbEvent| {
            let Some(kv) = &event.kv else { return false };
            kv.mod_revision >= self.next
                && self.range.contains(&kv.key)
                && !self.without.contains(&event.r#type)
        };
        let strip = |event: &PbEvent| PbEvent {
            r#type: event.r#type,
            kv: event.kv.clone(),
            prev_kv: event.prev_kv.clone().filter(|_| self.prev_kv),
        };
        events.filter(wanted).map(strip).collect()
    }
}

/// A watch of the empty key starts at the first key there can be.
fn watched_range(key: Vec<u8>, range_end: &[u8]) -> KeyRange {
    let key = if key.is_empty() { vec![0] } else { key };
    KeyRange::new(&key, range_end)
}

fn progress_interval() -> Interval {
    let mut interval = interval_at(Instant::now() + PROGRESS, PROGRESS);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
