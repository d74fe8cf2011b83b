//! Leases: which subnet this node takes (`alloc`), when it is renewed
//! (`renewal`), the table of everyone's leases (`table`), all pure; and the
//! stores they live in (`store`), which do I/O.

#[cfg(feature = "daemon")]
pub mod store;
