use std::path::PathBuf;

use clap::{ArgAction, Args};
use thiserror::Error;

use super::go_bool;
use crate::subnet::store::{Credentials, EtcdConfig, TlsFiles};

const FLANNEL_ENDPOINTS: [&str; 2] = ["http://127.0.0.1:4001", "http://127.0.0.1:2379"];
const FLANNEL_PREFIX: &str = "/coreos.com/network";

/// Naming any of these takes etcd as the store.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "etcd")]
pub struct EtcdArgs {
    /// etcd's client URLs, comma separated.
    /// [default with etcd: http://127.0.0.1:4001,http://127.0.0.1:2379]
    #[arg(long, env = "FLANNELD_ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URLS")]
    pub etcd_endpoints: Option<Vec<String>>,

    /// Prefix of the keys. [default: /coreos.com/network]
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,

    /// Client key (PEM).
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,

    /// Client certificate (PEM).
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,

    /// Authority that etcd's certificate is signed by (PEM). Default: the
    /// system's.
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,

    /// User to log in as.
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    pub etcd_username: Option<String>,

    /// The user's password; better given by the environment variable, since
    /// everyone on the host can read a command line.
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub etcd_password: Option<String>,

    /// Kubernetes as the store.
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", hide = true, action = ArgAction::Set, num_args = 0..=1,
          default_value_t = false, default_missing_value = "true", require_equals = true, value_parser = go_bool())]
    pub kube_subnet_mgr: bool,
}

/// Which store, with all it takes to reach it.
#[derive(Clone, Debug)]
pub enum StoreChoice {
    Builtin,
    Etcd(EtcdConfig),
}

#[derive(Debug, Error)]
pub enum ArgsError {
    #[error(
        "--kube-subnet-mgr: Kubernetes as the store is not part of this version: name an etcd with --etcd-endpoints, or leave both out for the built-in store"
    )]
    Kubernetes,
    #[error(
        "--etcd-keyfile and --etcd-certfile: one is given without the other: give both for TLS with a client certificate, or neither"
    )]
    HalfTls,
    #[error("--etcd-username: needs --etcd-password beside it, and the other way round")]
    HalfLogin,
}

impl EtcdArgs {
    /// `as_flanneld`: called by that name, flannel's defaults hold.
    pub fn choice(&self, as_flanneld: bool) -> Result<StoreChoice, ArgsError> {
        if self.kube_subnet_mgr {
            return Err(ArgsError::Kubernetes);
        }
        if !as_flanneld && !self.is_named() {
            return Ok(StoreChoice::Builtin);
        }
        if self.etcd_keyfile.is_some() != self.etcd_certfile.is_some() {
            return Err(ArgsError::HalfTls);
        }
        let tls = TlsFiles {
            key: self.etcd_keyfile.clone(),
            cert: self.etcd_certfile.clone(),
            ca: self.etcd_cafile.clone(),
        };
        let credentials = match (&self.etcd_username, &self.etcd_password) {
            (None, None) => None,
            (Some(user), Some(password)) => {
                Some(Credentials { user: user.clone(), password: password.clone() })
            }
            _ => return Err(ArgsError::HalfLogin),
        };
        let endpoints = self.endpoints();
        Ok(StoreChoice::Etcd(EtcdConfig { endpoints, prefix: self.prefix(), tls, credentials }))
    }

    pub fn prefix(&self) -> String {
        self.etcd_prefix.clone().unwrap_or_else(|| FLANNEL_PREFIX.to_owned())
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.etcd_endpoints.clone().unwrap_or_else(|| FLANNEL_ENDPOINTS.map(str::to_owned).to_vec())
    }

    pub(super) fn is_named(&self) -> bool {
        self.etcd_endpoints.is_some()
            || self.etcd_prefix.is_some()
            || self.etcd_keyfile.is_some()
            || self.etcd_certfile.is_some()
            || self.etcd_cafile.is_some()
            || self.etcd_username.is_some()
            || self.etcd_password.is_some()
    }
}
