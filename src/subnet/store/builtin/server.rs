//! The KV and Lease services.

use std::pin::Pin;
use std::time::Instant;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService,
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use futures_util::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::check;
use super::engine::{Engine, Mvcc, check_txn};
use super::error::RequestError;

/// What answers requests; one for all listeners.
#[derive(Clone)]
pub(super) struct Service {
    pub engine: Engine,
    /// Where clients reach this store, for the list of members.
    pub client_urls: Vec<String>,
    /// Whether this owner steps back for one that asks.
    pub yields: bool,
    /// Ends the streams, which would otherwise keep the server from draining.
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
}

pub(super) type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PbKvService for Service {
    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        let answer = move |mvcc: &mut Mvcc| {
            let mut response = mvcc.range(&request)?;
            response.header = Some(mvcc.header());
            Ok(response)
        };
        self.engine.call(answer).await.map(Response::new)
    }

    type RangeStreamStream = Boxed<PbRangeStreamResponse>;

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented(
            "weft store: RangeStream is younger than the etcd 3.4 served here; use Range",
        ))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
        check::put(&request)?;
        check::size(&request)?;
        let answer = move |mvcc: &mut Mvcc| {
            mvcc.check_put(&request)?;
            let mut response = mvcc.revise(|mvcc| mvcc.put(request))?;
            response.header = Some(mvcc.header());
            Ok(response)
        };
        self.engine.call(answer).await.map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let request = request.into_inner();
        check::delete(&request)?;
        check::size(&request)?;
        let answer = move |mvcc: &mut Mvcc| {
            let mut response = mvcc.revise(|mvcc| mvcc.delete(&request))?;
            response.header = Some(mvcc.header());
            Ok(response)
        };
        self.engine.call(answer).await.map(Response::new)
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        check_txn(&request)?;
        check::size(&request)?;
        let answer = move |mvcc: &mut Mvcc| {
            let mut response = mvcc.txn(request)?;
            response.header = Some(mvcc.header());
            Ok(response)
        };
        self.engine.call(answer).await.map(Response::new)
    }

    /// A physical compaction and another are the same here: both are done when
    /// they are answered.
    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        let revision = request.into_inner().revision;
        let answer = move |mvcc: &mut Mvcc| {
            mvcc.compact(revision)?;
            Ok(PbCompactionResponse { header: Some(mvcc.header()) })
        };
        self.engine.call(answer).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl PbLeaseService for Service {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let request = request.into_inner();
        let answer = move |mvcc: &mut Mvcc| {
            let (id, ttl) = mvcc.grant(request.id, request.ttl)?;
            Ok(PbLeaseGrantResponse { header: Some(mvcc.header()), id, ttl, error: String::new() })
        };
        self.engine.call(answer).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let id = request.into_inner().id;
        let answer = move |mvcc: &mut Mvcc| {
            mvcc.revoke(id)?;
            Ok(PbLeaseRevokeResponse { header: Some(mvcc.header()) })
        };
        self.engine.call(answer).await.map(Response::new)
    }

    type LeaseKeepAliveStream = Boxed<PbLeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let engine = self.engine.clone();
        let requests = request.into_inner().take_until(self.shutdown.clone().cancelled_owned());
        let responses = requests.then(move |request| {
            let engine = engine.clone();
            async move { keep_alive(&engine, request?.id).await }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let answer = move |mvcc: &mut Mvcc| {
            let header = Some(mvcc.header());
            let id = request.id;
            let (Some(granted_ttl), Some(ttl)) =
                (mvcc.leases.ttl(id), mvcc.leases.remaining(id, Instant::now()))
            else {
                return Ok(PbLeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() });
            };
            let keys = if request.keys { mvcc.keys_of_lease(id)? } else { Vec::new() };
            Ok(PbLeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys })
        };
        self.engine.call(answer).await.map(Response::new)
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let answer = |mvcc: &mut Mvcc| -> Result<_, RequestError> {
            let leases = mvcc.leases.ids().into_iter().map(|id| PbLeaseStatus { id }).collect();
            Ok(PbLeaseLeasesResponse { header: Some(mvcc.header()), leases })
        };
        self.engine.call(answer).await.map(Response::new)
    }
}

/// A time to live of 0 says that the lease is not known.
async fn keep_alive(engine: &Engine, id: i64) -> Result<PbLeaseKeepAliveResponse, Status> {
    let answer = move |mvcc: &mut Mvcc| {
        let ttl = mvcc.leases.keep_alive(id, Instant::now()).unwrap_or(0);
        Ok(PbLeaseKeepAliveResponse { header: Some(mvcc.header()), id, ttl })
    };
    engine.call(answer).await
}
