//! Masquerading of what a container sends out of its subnet, under the names
//! that the reference plugins use (pkg/ip/ipmasq_{iptables,nftables}_linux.go),
//! so that either can remove what the other made.

mod iptables;
mod nftables;

use std::net::IpAddr;

use crate::chain::Valid;
use crate::iptables::Tools;
use crate::nft::Nft;
use crate::protocol::error::Result;
use crate::protocol::fields::Fields;
use crate::protocol::request::Request;
use crate::protocol::result::IpConfig;

/// `ipMasqBackend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nftables; iptables where the kernel does not have that.
    Any,
    Iptables,
    Nftables,
}

impl Backend {
    pub fn parse(fields: &Fields<'_>) -> Result<Backend> {
        match fields.text("ipMasqBackend")? {
            None => Ok(Backend::Any),
            Some("iptables") => Ok(Backend::Iptables),
            Some("nftables") => Ok(Backend::Nftables),
            Some(_) => Err(fields.wrong("ipMasqBackend", "\"iptables\" or \"nftables\"")),
        }
    }
}

/// The rules of one attachment.
#[derive(Debug)]
pub struct Masquerade<'a> {
    backend: Backend,
    network: &'a str,
    container_id: &'a str,
    ifname: &'a str,
}

impl<'a> Masquerade<'a> {
    pub fn of(network: &'a str, request: &'a Request, backend: Backend) -> Masquerade<'a> {
        let (container_id, ifname) = (&request.container_id, request.ifname.as_str());
        Masquerade { backend, network, container_id, ifname }
    }

    pub fn set_up(&self, ips: &[IpConfig]) -> Result<()> {
        match self.backend {
            Backend::Iptables => iptables::set_up(self, ips),
            Backend::Nftables => nftables::set_up(self, ips),
            Backend::Any => nftables::set_up(self, ips).or_else(|e| match Tools::of(true).is_installed() {
                true => iptables::set_up(self, ips),
                false => Err(e),
            }),
        }
    }

    /// Remove the rules that nftables has. Those of iptables are to be looked for,
    /// too: the config may have changed since.
    pub fn tear_down_nftables(&self) -> Result<()> {
        nftables::tear_down(self)
    }

    /// Remove the rules that iptables has of these addresses, all of the
    /// attachment's if none is known.
    pub fn tear_down_iptables(&self, ips: &[IpAddr]) -> Result<()> {
        iptables::tear_down(self, ips)
    }
}

/// Remove the rules of all attachments of the network that are not valid.
pub fn collect(network: &str, valid: &Valid) -> Result<()> {
    let mut nft = Nft::open()?;
    nftables::collect(&mut nft, network, valid).and(iptables::collect(&mut nft, network, valid))
}
