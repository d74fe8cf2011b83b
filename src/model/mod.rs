//! The words of the fabric, parsed once at the edge and never again: address
//! families, link names, MACs, the network config, leases and `subnet.env`.
//!
//! Formats are flannel's, byte for byte where we write and as Go's
//! `encoding/json` would take them where we read.

mod backend_data;
mod family;
pub(crate) mod gojson;
mod lease;
mod link;
mod network;
mod subnet_env;

pub use backend_data::{BackendData, Vtep};
pub use family::{Family, PerFamily};
pub use lease::{KeyError, Lease, LeaseAttrs, LeaseError, SubnetKey};
pub use link::{IfName, Mac, ParseError};
pub use network::{BackendConfig, ConfigError, NetworkConfig, Pool};
pub use subnet_env::{SubnetEnv, SubnetEnvError};
