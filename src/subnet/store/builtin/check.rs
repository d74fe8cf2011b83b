//! What etcd refuses before it looks at any key (`api/v3rpc/key.go`).

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbRangeRequest};
use prost::Message;

use super::error::RequestError;

/// etcd's `--max-request-bytes`.
pub(super) const MAX_REQUEST: usize = 3 << 19;
/// What etcd's gRPC server takes in one message.
pub(super) const MAX_MESSAGE: usize = MAX_REQUEST + (512 << 10);

pub(super) fn range(range: &PbRangeRequest) -> Result<(), RequestError> {
    if range.key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(()) }
}

pub(super) fn put(put: &PbPutRequest) -> Result<(), RequestError> {
    if put.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(RequestError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(RequestError::LeaseProvided);
    }
    Ok(())
}

pub(super) fn delete(delete: &PbDeleteRequest) -> Result<(), RequestError> {
    if delete.key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(()) }
}

pub(super) fn size(request: &impl Message) -> Result<(), RequestError> {
    if request.encoded_len() > MAX_REQUEST { Err(RequestError::TooLarge) } else { Ok(()) }
}
