//! Rate limits for a container: a token bucket on the host's end of its veth for
//! what it receives; for what it sends, one on an IFB device that the host's end
//! sends everything on to (containernetworking/plugins plugins/meta/bandwidth).

mod ifb;
pub mod limits;

use crate::chain::{Plugin, Site, Valid};
use crate::kernel::netns::NetNs;
use crate::kernel::tc::TokenBucket;
use crate::kernel::{Kernel, Link};
use crate::protocol::conf::Conf;
use crate::protocol::error::{Code, Error, Result};
use crate::protocol::result::{Attachment, Interface};
use ifb::Ifb;
use limits::Limits;

#[derive(Debug)]
pub struct Bandwidth(Conf);

impl Bandwidth {
    pub fn new(conf: Conf) -> Bandwidth {
        Bandwidth(conf)
    }
}

impl Plugin for Bandwidth {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        let limits = Limits::parse(&self.0)?;
        if limits.is_none() {
            return Ok(());
        }
        if *result == Attachment::default() {
            let msg = "prevResult: missing: bandwidth goes after a plugin that makes a veth pair";
            return Err(Error::new(Code::NetworkConfig, msg));
        }
        let mut kernel = Kernel::open()?;
        let host = host_end(&mut kernel, site, result)?;
        if let Some(bucket) = &limits.ingress {
            kernel.add_token_bucket(host.index, bucket)?;
        }
        let Some(bucket) = &limits.egress else { return Ok(()) };
        match limit_egress(&mut kernel, &Ifb::of(site)?, &host, bucket) {
            Ok(interface) => result.interfaces.push(interface),
            Err(e) => {
                if limits.ingress.is_some() {
                    kernel.delete_root_qdisc(host.index)?;
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// What stands on the veth goes with it.
    fn del(&self, site: &Site, _: Option<&Attachment>) -> Result<()> {
        let mut kernel = Kernel::open()?;
        let Some(ifb) = Ifb::of(site)?.find(&mut kernel)? else { return Ok(()) };
        kernel.delete_link(ifb.index).map(drop)
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        let limits = Limits::parse(&self.0)?;
        if limits.is_none() {
            return Ok(());
        }
        let mut kernel = Kernel::open()?;
        let host = host_end(&mut kernel, site, prev)?;
        if let Some(bucket) = &limits.ingress {
            check_bucket(&mut kernel, &host, bucket)?;
        }
        let Some(bucket) = &limits.egress else { return Ok(()) };
        let ifb = Ifb::of(site)?.find(&mut kernel)?;
        let ifb =
            ifb.ok_or_else(|| wrong(&host, "has no IFB device that limits what the container sends"))?;
        check_bucket(&mut kernel, &ifb, bucket)
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        let mut kernel = Kernel::open()?;
        for link in ifb::stale(&mut kernel, network, valid.iter())? {
            kernel.delete_link(link.index)?;
        }
        Ok(())
    }
}

/// The redirection comes last: until then the container sends without a limit,
/// and nothing is lost.
fn limit_egress(kernel: &mut Kernel, ifb: &Ifb, host: &Link, bucket: &TokenBucket) -> Result<Interface> {
    let link = ifb.create(kernel, host.mtu)?;
    let done =
        kernel.add_token_bucket(link.index, bucket).and_then(|()| kernel.redirect(host.index, link.index));
    if let Err(e) = done {
        kernel.delete_link(link.index)?;
        return Err(e);
    }
    Ok(Interface { name: link.name, mac: ifb.mac.to_string(), ..Interface::default() })
}

/// The other end of the container's interface, which has to be one of the
/// attachment's interfaces.
fn host_end(kernel: &mut Kernel, site: &Site, result: &Attachment) -> Result<Link> {
    let ifname = site.request.ifname;
    let inside = NetNs::of(&site.request)?.enter(|| Kernel::open()?.existing_link(ifname))?;
    for interface in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(name) = interface.name.parse() else { continue };
        let Some(link) = kernel.link(name)? else { continue };
        if link.is_veth && link.peer == Some(inside.index) && inside.peer == Some(link.index) {
            return Ok(link);
        }
    }
    let msg = format!(
        "prevResult: the other end of interface {ifname} is not among its host's interfaces: \
         bandwidth goes after a plugin that makes a veth pair"
    );
    Err(Error::new(Code::NetworkConfig, msg))
}

fn check_bucket(kernel: &mut Kernel, link: &Link, expected: &TokenBucket) -> Result<()> {
    match kernel.token_bucket(link.index)? {
        Some(bucket) if bucket == *expected => Ok(()),
        Some(bucket) => Err(wrong(link, format_args!("has {bucket:?}, expected {expected:?}"))),
        None => Err(wrong(link, "has no token bucket at its root")),
    }
}

fn wrong(link: &Link, what: impl std::fmt::Display) -> Error {
    Error::internal(format_args!("interface {}: {what}", link.name))
}
