//! Transactions: what etcd refuses, which branches are taken, what they do.

use std::collections::HashSet;

use etcd_client::proto::{
    PbCompare, PbKeyValue, PbPutRequest, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};

use super::super::check;
use super::super::error::RequestError;
use super::{KeyRange, Mvcc};

/// Operations of one transaction, and of its nested ones along any path.
const MAX_OPS: usize = 128;

/// What can be refused without looking at the keys.
pub(in super::super) fn check_txn(txn: &PbTxnRequest) -> Result<(), RequestError> {
    check_ops(txn, MAX_OPS)?;
    check_intervals(&txn.success)?;
    check_intervals(&txn.failure)?;
    Ok(())
}

fn check_ops(txn: &PbTxnRequest, max: usize) -> Result<(), RequestError> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > max {
        return Err(RequestError::TooManyOps);
    }
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(RequestError::EmptyKey);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => check::range(range)?,
            Some(PbTxnOpRequest::RequestPut(put)) => check::put(put)?,
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => check::delete(delete)?,
            Some(PbTxnOpRequest::RequestTxn(txn)) => check_ops(txn, max - ops)?,
            None => return Err(RequestError::KeyNotFound),
        }
    }
    Ok(())
}

type Changes<'a> = (HashSet<&'a [u8]>, Vec<KeyRange>);

/// No key may be put twice on one path, nor put and deleted (etcd's
/// `checkIntervals`, with its order: deletes of this level, then nested
/// transactions, then puts of this level).
fn check_intervals(ops: &[PbTxnRequestOp]) -> Result<Changes<'_>, RequestError> {
    let requests = || ops.iter().filter_map(|op| op.request.as_ref());
    let mut puts = HashSet::new();
    let mut deletes: Vec<KeyRange> = requests()
        .filter_map(|request| match request {
            PbTxnOpRequest::RequestDeleteRange(delete) => Some(KeyRange::new(&delete.key, &delete.range_end)),
            _ => None,
        })
        // etcd overlooks them, and lets a key be put and deleted in one revision.
        .filter(|range| range.end.is_some())
        .collect();
    let deleted = |deletes: &[KeyRange], key: &[u8]| deletes.iter().any(|range| range.contains(key));
    for request in requests() {
        let PbTxnOpRequest::RequestTxn(txn) = request else { continue };
        let (then_puts, then_deletes) = check_intervals(&txn.success)?;
        let (else_puts, else_deletes) = check_intervals(&txn.failure)?;
        // Only one branch is taken, so both may put the same key.
        for key in then_puts.union(&else_puts) {
            if puts.contains(key) || deleted(&deletes, key) {
                return Err(RequestError::DuplicateKey);
            }
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for request in requests() {
        let PbTxnOpRequest::RequestPut(put) = request else { continue };
        if deleted(&deletes, &put.key) || !puts.insert(&put.key) {
            return Err(RequestError::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

/// Which branch each transaction takes, decided for all before anything is
/// written; `nested` in the order of the branch's nested transactions.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Mvcc {
    pub fn txn(&mut self, txn: PbTxnRequest) -> Result<PbTxnResponse, RequestError> {
        let path = self.path(&txn)?;
        self.check_puts(&txn, &path)?;
        self.check_ranges(&txn, &path)?;
        self.revise(|mvcc| mvcc.apply(txn, path))
    }

    fn path(&self, txn: &PbTxnRequest) -> Result<Path, RequestError> {
        let mut succeeded = true;
        for compare in &txn.compare {
            if !self.holds(compare)? {
                succeeded = false;
                break;
            }
        }
        let nested = nested(branch(txn, succeeded)).map(|txn| self.path(txn)).collect::<Result<_, _>>()?;
        Ok(Path { succeeded, nested })
    }

    fn holds(&self, compare: &PbCompare) -> Result<bool, RequestError> {
        const VALUE: i32 = 3;
        let range = KeyRange::new(&compare.key, &compare.range_end);
        let kvs = self.read(&range, i64::MAX, -1)?;
        if kvs.is_empty() {
            // A missing key has no value, which no comparison can express.
            return Ok(compare.target != VALUE && key_holds(compare, &PbKeyValue::default()));
        }
        Ok(kvs.iter().all(|kv| key_holds(compare, kv)))
    }

    fn check_puts(&self, txn: &PbTxnRequest, path: &Path) -> Result<(), RequestError> {
        let mut paths = path.nested.iter();
        for op in branch(txn, path.succeeded) {
            match &op.request {
                Some(PbTxnOpRequest::RequestPut(put)) => self.check_put_in_txn(put)?,
                Some(PbTxnOpRequest::RequestTxn(txn)) => {
                    if let Some(path) = paths.next() {
                        self.check_puts(txn, path)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A put alone looks for its lease first, a put in a transaction for its key.
    fn check_put_in_txn(&self, put: &PbPutRequest) -> Result<(), RequestError> {
        self.check_put(&PbPutRequest { lease: 0, value: Vec::new(), ..put.clone() })?;
        self.check_put(put)
    }

    fn check_ranges(&self, txn: &PbTxnRequest, path: &Path) -> Result<(), RequestError> {
        let mut paths = path.nested.iter();
        for op in branch(txn, path.succeeded) {
            match &op.request {
                Some(PbTxnOpRequest::RequestRange(range)) => self.check_revision(range.revision)?,
                Some(PbTxnOpRequest::RequestTxn(txn)) => {
                    if let Some(path) = paths.next() {
                        self.check_ranges(txn, path)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, txn: PbTxnRequest, path: Path) -> Result<PbTxnResponse, RequestError> {
        let mut paths = path.nested.into_iter();
        let ops = if path.succeeded { txn.success } else { txn.failure };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            let response = match op.request {
                Some(PbTxnOpRequest::RequestRange(range)) => {
                    Some(PbTxnOpResponse::ResponseRange(self.range(&range)?))
                }
                Some(PbTxnOpRequest::RequestPut(put)) => Some(PbTxnOpResponse::ResponsePut(self.put(put)?)),
                Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                    Some(PbTxnOpResponse::ResponseDeleteRange(self.delete(&delete)?))
                }
                Some(PbTxnOpRequest::RequestTxn(txn)) => match paths.next() {
                    Some(path) => Some(PbTxnOpResponse::ResponseTxn(self.apply(txn, path)?)),
                    None => None,
                },
                None => None,
            };
            responses.push(PbResponseOp { response });
        }
        let header = Some(PbResponseHeader::default());
        Ok(PbTxnResponse { header, succeeded: path.succeeded, responses })
    }
}

fn branch(txn: &PbTxnRequest, succeeded: bool) -> &[PbTxnRequestOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

fn nested(ops: &[PbTxnRequestOp]) -> impl Iterator<Item = &PbTxnRequest> {
    ops.iter().filter_map(|op| match &op.request {
        Some(PbTxnOpRequest::RequestTxn(txn)) => Some(txn),
        _ => None,
    })
}

/// `target` and `result` as in `etcdserverpb.Compare`. A target without its
/// value is compared with zero.
fn key_holds(compare: &PbCompare, kv: &PbKeyValue) -> bool {
    use PbTargetUnion as T;
    let union = compare.target_union.as_ref();
    let ordering = match compare.target {
        0 => kv.version.cmp(&if let Some(T::Version(version)) = union { *version } else { 0 }),
        1 => {
            kv.create_revision.cmp(&if let Some(T::CreateRevision(revision)) = union { *revision } else { 0 })
        }
        2 => kv.mod_revision.cmp(&if let Some(T::ModRevision(revision)) = union { *revision } else { 0 }),
        3 => kv.value.as_slice().cmp(if let Some(T::Value(value)) = union { value } else { &[] }),
        4 => kv.lease.cmp(&if let Some(T::Lease(lease)) = union { *lease } else { 0 }),
        _ => std::cmp::Ordering::Equal,
    };
    match compare.result {
        0 => ordering.is_eq(),
        1 => ordering.is_gt(),
        2 => ordering.is_lt(),
        3 => ordering.is_ne(),
        _ => true,
    }
}
