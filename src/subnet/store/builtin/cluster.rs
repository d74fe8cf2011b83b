//! The Cluster and Maintenance services: as much as tells a client that it
//! talks to a healthy cluster of one.

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMember, PbMemberAddRequest, PbMemberAddResponse,
    PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse,
    PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest,
    PbStatusResponse,
};
use tonic::{Request, Response, Status};

use super::engine::Mvcc;
use super::server::{Boxed, Service};

/// The version whose behaviour is served; clients parse it.
const ETCD_VERSION: &str = "3.4.23";

fn one_machine(what: &str) -> Status {
    Status::unimplemented(format!("weft store: {what}: this store is one machine's; use etcd for a cluster"))
}

fn not_offered(what: &str, instead: &str) -> Status {
    Status::unimplemented(format!("weft store: {what} is not offered: {instead}"))
}

#[tonic::async_trait]
impl PbClusterService for Service {
    async fn member_list(
        &self,
        _: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let member = PbMember {
            id: self.engine.identity.member_id,
            name: "weft".into(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: false,
        };
        let header = Some(self.engine.header(self.engine.revision()));
        Ok(Response::new(PbMemberListResponse { header, members: vec![member] }))
    }

    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(one_machine("no member can be added"))
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(one_machine("no member can be removed"))
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(one_machine("no member can be changed"))
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(one_machine("no member can be promoted"))
    }
}

#[tonic::async_trait]
impl PbMaintenanceService for Service {
    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let identity = self.engine.identity;
        let answer = move |mvcc: &mut Mvcc| {
            let (db_size, db_size_in_use) = mvcc.size()?;
            let index = mvcc.revision().unsigned_abs();
            Ok(PbStatusResponse {
                header: Some(mvcc.header()),
                version: ETCD_VERSION.into(),
                db_size,
                db_size_in_use,
                leader: identity.member_id,
                raft_index: index,
                raft_applied_index: index,
                raft_term: identity.term,
                ..Default::default()
            })
        };
        self.engine.call(answer).await.map(Response::new)
    }

    /// There are no alarms; a full disk is reported by each write.
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        const ACTIVATE: i32 = 1;
        if request.into_inner().action == ACTIVATE {
            return Err(not_offered("raising an alarm", "there is nothing it would guard"));
        }
        let header = Some(self.engine.header(self.engine.revision()));
        Ok(Response::new(PbAlarmResponse { header, alarms: Vec::new() }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(not_offered("Defragment", "history is bounded and free pages are used again"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(not_offered("Hash", "there is no second member to compare with"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(not_offered("HashKV", "there is no second member to compare with"))
    }

    type SnapshotStream = Boxed<PbSnapshotResponse>;

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_offered("Snapshot", "stop the store and copy store.db"))
    }

    /// A keeper hands the store to a `weft store` that asks for it; whom the
    /// request names does not matter.
    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        if !self.yields {
            return Err(one_machine("leadership cannot move"));
        }
        self.shutdown.cancel();
        let header = Some(self.engine.header(self.engine.revision()));
        Ok(Response::new(PbMoveLeaderResponse { header }))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(one_machine("there is no cluster version"))
    }
}
