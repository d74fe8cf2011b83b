//! Between a node and the store: the daemon's own client speaks gRPC to the model
//! over a channel in this process that delays, loses, reorders and refuses.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvServer, PbKvService,
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseServer,
    PbLeaseService, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse, PbWatchRequest,
    PbWatchRequestUnion, PbWatchResponse, PbWatchServer, PbWatchService,
};
use futures_util::{Stream, StreamExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{BoxFuture, http};
use tonic::{Code, Request, Response, Status, Streaming};
use tower::Service;
use tower::util::BoxCloneSyncService;

use super::store::{Model, Writer};

type Body = tonic::body::Body;
type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// After so long without an answer to a ping the client hangs up.
const PING: Duration = Duration::from_secs(15);
const PROGRESS: Duration = Duration::from_secs(45);

/// What becomes of a node's packets to the store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reach {
    Up,
    /// Connections are refused and cut.
    Refused,
    /// Nothing arrives, nothing comes back.
    Silent,
    /// The store knows this node no more.
    Forbidden,
}

#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub reach: Reach,
    /// A message takes up to so many milliseconds.
    pub delay: u64,
    /// In a hundred calls so many break off, before or after they were done.
    pub loss: u8,
}

pub const CALM: Weather = Weather { reach: Reach::Up, delay: 2, loss: 0 };

impl Weather {
    /// Calls get through and are answered in good time.
    pub fn is_fair(&self) -> bool {
        self.reach == Reach::Up && self.loss == 0 && self.delay <= 100
    }
}

pub struct Link {
    weather: Mutex<Weather>,
    changed: Notify,
    rng: Mutex<fastrand::Rng>,
}

impl Link {
    pub fn new(seed: u64) -> Arc<Link> {
        Arc::new(Link {
            weather: Mutex::new(CALM),
            changed: Notify::new(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
        })
    }

    pub fn weather(&self) -> Weather {
        *self.weather.lock().unwrap()
    }

    pub fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
        self.changed.notify_waiters();
    }

    /// Something on the way has changed: who waits is to look again.
    pub fn stir(&self) {
        self.changed.notify_waiters();
    }

    /// The node's channels to the store's machines.
    pub fn channels(self: &Arc<Link>, node: usize, model: &Model) -> Vec<etcd_client::Channel> {
        let channel = |machine| {
            let server = Server { node, machine, model: model.clone(), link: self.clone() };
            etcd_client::Channel::Custom(BoxCloneSyncService::new(Channel(Arc::new(server))))
        };
        (0..model.lock().machines()).map(channel).collect()
    }
}

impl Server {
    /// A message arrives after this, if at all: else the status that its sender
    /// sees, or none where it waits in vain.
    async fn travel(&self) -> Result<(), Option<Status>> {
        let delay = self.link.weather().delay;
        let delay = if delay == 0 { 0 } else { self.link.rng.lock().unwrap().u64(..=delay) };
        if delay > 0 {
            sleep(Duration::from_millis(delay)).await;
        }
        self.way()?;
        let loss = self.link.weather().loss;
        if loss > 0 && self.link.rng.lock().unwrap().u8(..100) < loss {
            return Err(Some(Status::unavailable("connection reset")));
        }
        Ok(())
    }

    /// Whether the machine can be reached and serves: else what the caller sees.
    fn way(&self) -> Result<(), Option<Status>> {
        match self.link.weather().reach {
            Reach::Up => self.model.lock().refusal(self.machine),
            Reach::Refused => Err(Some(Status::unavailable("connection refused"))),
            Reach::Forbidden => {
                Err(Some(Status::new(Code::PermissionDenied, "etcdserver: permission denied")))
            }
            Reach::Silent => Err(None),
        }
    }

    /// Until no stream lives on.
    async fn broken(&self) -> Status {
        loop {
            let changed = self.link.changed.notified();
            let pause = match self.way() {
                Ok(()) => Duration::MAX,
                Err(Some(status)) if status.code() == Code::Unavailable => return status,
                Err(Some(_)) => return Status::unavailable("connection reset"),
                Err(None) => PING,
            };
            if timeout(pause, changed).await.is_err() {
                return Status::unavailable("keep-alive timed out");
            }
        }
    }

    async fn open(&self) {
        loop {
            let changed = self.link.changed.notified();
            if self.way().is_ok() {
                return;
            }
            changed.await;
        }
    }
}

#[derive(Clone)]
struct Channel(Arc<Server>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = tower::BoxError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    /// What was sent arrives though the sender has given up waiting or died.
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (mut reply, answer) = oneshot::channel();
        let server = self.0.clone();
        tokio::spawn(async move {
            let answered = match server.travel().await {
                Ok(()) => {
                    let response = dispatch(&server, request).await;
                    server.travel().await.map(|()| response)
                }
                Err(status) => Err(status),
            };
            match answered {
                Ok(response) => drop(reply.send(response)),
                Err(Some(status)) => drop(reply.send(status.into_http())),
                Err(None) => reply.closed().await,
            }
        });
        Box::pin(async { answer.await.map_err(Into::into) })
    }
}

async fn dispatch(server: &Arc<Server>, request: http::Request<Body>) -> http::Response<Body> {
    let (path, server) = (request.uri().path(), server.clone());
    let response = match path.split('/').nth(1) {
        Some("etcdserverpb.KV") => PbKvServer::from_arc(server).call(request).await,
        Some("etcdserverpb.Lease") => PbLeaseServer::from_arc(server).call(request).await,
        Some("etcdserverpb.Watch") => PbWatchServer::from_arc(server).call(request).await,
        _ => panic!("not in this model: {path}"),
    };
    response.unwrap_or_else(|never| match never {})
}

/// The model as one node reaches it.
#[derive(Clone)]
struct Server {
    node: usize,
    machine: usize,
    model: Model,
    link: Arc<Link>,
}

#[tonic::async_trait]
impl PbKvService for Server {
    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        self.model.update(|state| state.range(request.get_ref())).map(Response::new)
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.model.update(|state| state.txn(Writer::Node(self.node), request.get_ref())).map(Response::new)
    }

    async fn put(&self, _: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        panic!("a node writes by transactions alone")
    }

    async fn delete_range(&self, _: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        panic!("a node deletes by transactions alone")
    }

    async fn compact(
        &self,
        _: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        panic!("a node does not compact")
    }

    type RangeStreamStream = Boxed<PbRangeStreamResponse>;

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("RangeStream"))
    }
}

#[tonic::async_trait]
impl PbLeaseService for Server {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        Ok(Response::new(self.model.update(|state| state.grant(request.get_ref().ttl))))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        match self.model.update(|state| state.revoke(request.get_ref().id)) {
            true => Ok(Response::new(PbLeaseRevokeResponse::default())),
            false => Err(Status::not_found("etcdserver: requested lease not found")),
        }
    }

    type LeaseKeepAliveStream = Boxed<PbLeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let model = self.model.clone();
        let responses = request.into_inner().map(move |request| {
            let id = request?.id;
            let ttl = model.update(|state| state.keep_alive(id));
            Ok(PbLeaseKeepAliveResponse { header: None, id, ttl })
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("LeaseTimeToLive"))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("LeaseLeases"))
    }
}

#[tonic::async_trait]
impl PbWatchService for Server {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut requests = request.into_inner();
        let (outbox, responses) = mpsc::channel(16);
        let server = self.clone();
        tokio::spawn(async move {
            let Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) })) =
                requests.message().await
            else {
                return;
            };
            let pump =
                Pump { next: create.start_revision, key: create.key, end: create.range_end, server: &server };
            let status = tokio::select! {
                biased;
                () = outbox.closed() => return,
                status = server.broken() => status,
                status = pump.run(&outbox) => status,
            };
            let _ = outbox.try_send(Err(status));
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

struct Pump<'a> {
    next: i64,
    key: Vec<u8>,
    end: Vec<u8>,
    server: &'a Server,
}

impl Pump<'_> {
    async fn run(mut self, outbox: &mpsc::Sender<Result<PbWatchResponse, Status>>) -> Status {
        let Server { model, link, .. } = self.server;
        let (epoch, header) = {
            let state = model.lock();
            (state.epoch, state.header())
        };
        let created = PbWatchResponse { header: Some(header), created: true, ..PbWatchResponse::default() };
        let _ = outbox.send(Ok(created)).await;
        let mut told = Instant::now();
        loop {
            // Registered before the look, so that nothing is missed.
            let changed = model.changed.notified();
            let mut response = {
                let mut state = model.lock();
                if state.epoch != epoch {
                    return Status::unavailable("the store went away");
                }
                if self.next < state.compacted {
                    PbWatchResponse {
                        header: Some(state.header()),
                        canceled: true,
                        compact_revision: state.compacted,
                        ..PbWatchResponse::default()
                    }
                } else {
                    let (events, at) = state.since(self.next, &self.key, &self.end);
                    self.next = self.next.max(at + 1);
                    PbWatchResponse { header: Some(state.header()), events, ..PbWatchResponse::default() }
                }
            };
            let ends = response.canceled;
            let idle = told.elapsed() >= PROGRESS;
            if ends || idle || !response.events.is_empty() {
                told = Instant::now();
                self.server.open().await;
                sleep(Duration::from_millis(link.weather().delay.min(1000))).await;
                self.server.open().await;
                response.watch_id = 0;
                let _ = outbox.send(Ok(response)).await;
            }
            if ends {
                return std::future::pending().await;
            }
            let _ = timeout(PROGRESS, changed).await;
        }
    }
}
