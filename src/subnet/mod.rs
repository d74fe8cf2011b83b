//! Leases: which subnet this node takes (`alloc`), when it is renewed
//! (`renewal`), the table of everyone's leases (`table`), all pure; and the
//! stores they live in (`store`), the file the plugin reads (`env_file`) and the
//! one that a restart without the store goes by (`checkpoint`), which do I/O.

pub mod alloc;
mod record;
pub mod renewal;
pub mod table;

#[cfg(feature = "daemon")]
pub mod checkpoint;
#[cfg(feature = "daemon")]
pub mod env_file;
#[cfg(feature = "daemon")]
pub mod store;

pub use record::{BadRecord, Held, Origin, Position, Renewal, Snapshot, StoreEvent, StoredLease, Want};
