use std::sync::Arc;

use etcd_client::KeyValue;

use crate::model::{Family, KeyError, Lease, LeaseAttrs, SubnetKey};
use crate::subnet::{BadRecord, StoredLease};

/// A lease is some 300 bytes; what is far beyond is not parsed at all.
const MAX_VALUE: usize = 64 << 10;
const MAX_KEY: usize = 256;

/// Where things lie below the prefix.
#[derive(Clone, Debug)]
pub(super) struct Keyspace {
    /// `<prefix>/`
    root: Arc<str>,
}

impl Keyspace {
    pub(super) fn new(prefix: &str) -> Keyspace {
        Keyspace { root: format!("{}/", prefix.trim_end_matches('/')).into() }
    }

    pub(super) fn config(&self) -> String {
        format!("{}config", self.root)
    }

    /// With a trailing slash: `<prefix>/subnets-foo` is none of ours.
    pub(super) fn subnets(&self) -> String {
        format!("{}subnets/", self.root)
    }

    /// The first key after all of `subnets()`: '0' follows '/'.
    pub(super) fn subnets_end(&self) -> String {
        format!("{}subnets0", self.root)
    }

    /// IPv6 alone is written with flannel's filler: a key without an IPv4 part
    /// would cost every flannel in the cluster all its peers.
    pub(super) fn subnet(&self, key: &SubnetKey) -> String {
        let filler = if key.net(Family::V4).is_none() { "0.0.0.0-0&" } else { "" };
        format!("{}subnets/{filler}{key}", self.root)
    }

    /// The subnet that a key of the store names.
    pub(super) fn parse_key(&self, key: &[u8]) -> Result<SubnetKey, String> {
        let bad = || "not a subnet key such as 10.5.1.0-24".to_owned();
        if key.len() > MAX_KEY {
            return Err(format!("a key of {} bytes", key.len()));
        }
        let key = str::from_utf8(key).map_err(|_| bad())?;
        let name = key.strip_prefix(&self.subnets()).ok_or_else(bad)?;
        let subnet: SubnetKey = name.parse().map_err(|e: KeyError| e.reason)?;
        // One subnet has one key.
        let canonical = self.subnet(&subnet);
        if canonical == key { Ok(subnet) } else { Err(format!("must be written {canonical}")) }
    }

    /// A record of the store, as a lease or as a bad one.
    pub(super) fn parse(&self, kv: &KeyValue) -> Result<StoredLease, BadRecord> {
        let key = self.parse_key(kv.key()).map_err(|reason| bad(kv, None, reason))?;
        let attrs = parse_attrs(kv.value()).map_err(|reason| bad(kv, Some(key), reason))?;
        Ok(StoredLease {
            lease: Lease { key, attrs },
            lease_id: (kv.lease() != 0).then_some(kv.lease()),
            mod_revision: kv.mod_revision(),
        })
    }
}

fn bad(kv: &KeyValue, subnet: Option<SubnetKey>, reason: String) -> BadRecord {
    let shown = &kv.key()[..kv.key().len().min(MAX_KEY)];
    // It goes to logs and terminals: no control characters.
    BadRecord { key: String::from_utf8_lossy(shown).escape_debug().to_string(), subnet, reason }
}

fn parse_attrs(value: &[u8]) -> Result<LeaseAttrs, String> {
    if value.len() > MAX_VALUE {
        return Err(format!("a value of {} bytes; at most {MAX_VALUE} are read", value.len()));
    }
    let attrs = LeaseAttrs::parse(value).map_err(|e| e.to_string())?;
    // `null` and `{}` parse. Whose should they be?
    if attrs.public_ip.is_empty() { Err("no public address".to_owned()) } else { Ok(attrs) }
}
