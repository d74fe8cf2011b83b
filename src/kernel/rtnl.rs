//! The running kernel, by rtnetlink.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;

use super::entry::{Entry, LinkEntry};
use super::netlink::{Cause, Connection, NetlinkError, Request, in_netns};
use super::nexthop::NexthopNetlinkMessage;
use super::{Glance, Kernel, Scope, learn, offload, request, rivals, sysctl};
use crate::desired::{LinkKind, LinkSpec, Observed, ObservedLink, Op};
use crate::model::{Family, IfName};

/// Whether routes go by nexthop objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nexthops {
    /// Where the kernel has them (Linux 5.3).
    #[default]
    WherePossible,
    /// Behave as on a kernel that has none.
    Never,
}

/// The kernel of one network namespace.
#[derive(Debug)]
pub struct Rtnl {
    connection: Connection,
    /// `None` is the caller's own. `/proc/sys/net` shows the namespace of the
    /// thread that opens a file in it.
    netns: Option<OwnedFd>,
    nexthops: Nexthops,
}

impl Rtnl {
    /// In the namespace of the calling thread, which must be the process's, or
    /// in `netns`.
    pub fn open(netns: Option<OwnedFd>, nexthops: Nexthops) -> Result<Rtnl, NetlinkError> {
        let connection = match &netns {
            Some(netns) => Connection::open_in(netns.as_fd())?,
            None => Connection::open()?,
        };
        Ok(Rtnl { connection, netns, nexthops })
    }

    /// The number that the kernel knows our socket by (`nlmsg_pid`).
    pub(super) fn port(&self) -> io::Result<u32> {
        self.connection.port()
    }
}

impl Kernel for Rtnl {
    /// One by one: there are few in scope, and a node may have thousands.
    fn links(&mut self, scope: &Scope) -> Result<BTreeMap<IfName, ObservedLink>, NetlinkError> {
        let mut seen = Vec::new();
        for name in scope.links() {
            match self.link(request::get_link(name)) {
                Ok(link) => seen.push(link),
                Err(cause) if cause.errno() == Some(libc::ENODEV) => {}
                Err(cause) => return Err(cause.of(format_args!("link {name}"))),
            }
        }
        let mut names: BTreeMap<_, _> = seen.iter().map(|link| (link.index, link.name)).collect();
        for vxlan in seen.iter().filter_map(|link| link.vxlan.as_ref()) {
            if !names.contains_key(&vxlan.underlay)
                && let Ok(underlay) = self.link(request::get_link_at(vxlan.underlay))
            {
                names.insert(underlay.index, underlay.name);
            }
        }
        let observed = |link: LinkEntry| {
            let mut observed = ObservedLink::seen(&link, |index| names.get(&index).copied());
            if observed.kind.is_some() {
                observed.tx_checksum = offload::tx_checksum(self.connection.as_fd(), link.name).ok();
            }
            (link.name, observed)
        };
        Ok(seen.into_iter().map(observed).collect())
    }

    fn observe(&mut self, scope: &Scope) -> Result<Observed, NetlinkError> {
        let undecodable = self.connection.undecodable();
        let mut have = Observed { links: self.links(scope)?, ..Observed::default() };
        let of_links: Vec<_> = have.links.iter().map(|(name, link)| (*name, link.index)).collect();
        for &(name, index) in &of_links {
            self.learn(&mut have, request::dump_addresses(index), format_args!("addresses dev {name}"))?;
        }
        for &(name, index) in of_links.iter().filter(|(name, _)| scope.tunnels.contains(name)) {
            for family in Family::BOTH {
                let dump = request::dump_neighbours(family, index);
                self.learn(&mut have, dump, format_args!("{family} neighbours dev {name}"))?;
            }
            if have.links.get(&name).is_some_and(|link| link.kind.is_some()) {
                self.learn(&mut have, request::dump_fdb(index), format_args!("fdb dev {name}"))?;
            }
        }
        self.learn_nexthops(&mut have)?;
        for family in Family::BOTH {
            self.learn(&mut have, request::dump_routes(family), format_args!("{family} routes"))?;
        }
        have.sysctls = self.sysctls(scope)?;
        let skipped = self.connection.undecodable() - undecodable;
        if skipped > 0 {
            tracing::warn!(
                skipped,
                "the kernel reported entries that cannot be decoded: they are passed over"
            );
        }
        Ok(have)
    }

    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, NetlinkError> {
        let offload =
            |name: &IfName| Some((*name, offload::tx_checksum(self.connection.as_fd(), *name).ok()?));
        let tx_checksum = scope.tunnels.iter().filter_map(offload).collect();
        Ok(Some(Glance { sysctls: self.sysctls(scope)?, tx_checksum }))
    }

    fn rivals(&mut self) -> Vec<String> {
        rivals::running()
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>> {
        let mut links = Links::default();
        let mut results = Vec::with_capacity(ops.len());
        let mut rest = ops;
        while !rest.is_empty() {
            let (batch, tail) = rest.split_at(rest.iter().take_while(|op| !stands_alone(op)).count());
            results.extend(self.batch(batch, &mut links));
            rest = tail;
            if let Some((op, tail)) = rest.split_first() {
                results.push(self.alone(op, &mut links));
                rest = tail;
            }
        }
        let named = results.into_iter().zip(ops);
        named.map(|(result, op)| forgive(result, op).map_err(|cause| cause.of(op))).collect()
    }
}

/// Link numbers, as far as they have been asked for.
type Links = BTreeMap<IfName, u32>;

/// Ops on links change the numbers that others need; sysctls are files.
fn stands_alone(op: &Op) -> bool {
    matches!(op, Op::AddLink { .. } | Op::SetLink { .. } | Op::DelLink { .. } | Op::SetSysctl { .. })
}

/// Gone is gone, whoever did it.
fn forgive(result: Result<(), Cause>, op: &Op) -> Result<(), Cause> {
    let absent: &[i32] = match op {
        Op::DelRoute { .. } => &[libc::ESRCH],
        Op::DelLink { .. } => &[libc::ENODEV],
        Op::DelAddress { .. } => &[libc::EADDRNOTAVAIL, libc::ENODEV],
        Op::DelNeighbour { .. } | Op::DelFdb { .. } | Op::DelNexthop { .. } => &[libc::ENOENT, libc::ENODEV],
        _ => &[],
    };
    match result {
        Err(cause) if cause.errno().is_some_and(|errno| absent.contains(&errno)) => Ok(()),
        result => result,
    }
}

impl Rtnl {
    fn sysctls(&self, scope: &Scope) -> Result<BTreeMap<String, String>, NetlinkError> {
        let read = || scope.sysctls.iter().map(|key| (key.clone(), sysctl::read(key))).collect::<Vec<_>>();
        let read = self.in_netns(|| Ok(read())).map_err(|e| of_sysctl(e, "net"))?;
        let mut found = BTreeMap::new();
        for (key, value) in read {
            if let Some(value) = value.map_err(|e| of_sysctl(e, &key))? {
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    fn batch(&mut self, ops: &[Op], links: &mut Links) -> Vec<Result<(), Cause>> {
        let mut results = Vec::with_capacity(ops.len());
        let mut requests = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(self.encode(op, links).map(|request| requests.push(request)));
        }
        let mut answers = self.connection.batch(requests).into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = answers.next().unwrap_or(Err(Cause::NoAnswer));
        }
        results
    }

    fn encode(&mut self, op: &Op, links: &mut Links) -> Result<Request, Cause> {
        let mut link = |name: IfName| self.index(name, links);
        Ok(match *op {
            Op::DelRoute { dst, protocol } => request::del_route(dst, protocol),
            Op::AddAddress { dev, addr } => request::add_address(link(dev)?, addr),
            Op::DelAddress { dev, addr } => request::del_address(link(dev)?, addr),
            Op::SetNeighbour { dev, ip, mac } => request::set_neighbour(link(dev)?, ip, mac),
            Op::DelNeighbour { dev, ip } => request::del_neighbour(link(dev)?, ip),
            Op::SetFdb { dev, mac, dst } => request::set_fdb(link(dev)?, mac, dst),
            Op::DelFdb { dev, mac, dst } => request::del_fdb(link(dev)?, mac, dst),
            Op::SetNexthop { id, nexthop } => request::set_nexthop(id, link(nexthop.dev)?, nexthop),
            Op::DelNexthop { id } => request::del_nexthop(id),
            Op::SetRoute { dst, id: Some(id), .. } => request::set_route_by_id(dst, id),
            Op::SetRoute { dst, nexthop, id: None } => request::set_route(dst, link(nexthop.dev)?, nexthop),
            Op::AddLink { .. } | Op::SetLink { .. } | Op::DelLink { .. } | Op::SetSysctl { .. } => {
                return Err(Cause::from(io::Error::from_raw_os_error(libc::EINVAL)));
            }
        })
    }

    fn alone(&mut self, op: &Op, links: &mut Links) -> Result<(), Cause> {
        match op {
            Op::AddLink { name, spec } => {
                let LinkKind::Vxlan(vxlan) = &spec.kind;
                let underlay = self.index(vxlan.underlay, links)?;
                links.remove(name);
                self.connection.request(request::add_link(*name, spec, underlay))?;
                self.set_offload(*name, spec)
            }
            Op::SetLink { name, spec } => {
                let LinkKind::Vxlan(vxlan) = &spec.kind;
                let (index, underlay) = (self.index(*name, links)?, self.index(vxlan.underlay, links)?);
                self.connection.request(request::set_link(index, spec))?;
                self.connection.request(request::set_vxlan(index, spec, underlay))?;
                self.set_offload(*name, spec)
            }
            Op::DelLink { name } => {
                let index = self.index(*name, links)?;
                links.remove(name);
                self.connection.request(request::del_link(index))
            }
            Op::SetSysctl { key, value } => Ok(self.in_netns(|| sysctl::write(key, value))?),
            op => self.batch(std::slice::from_ref(op), links).pop().unwrap_or(Err(Cause::NoAnswer)),
        }
    }

    fn set_offload(&mut self, name: IfName, spec: &LinkSpec) -> Result<(), Cause> {
        match spec.tx_checksum {
            Some(on) => Ok(offload::set_tx_checksum(self.connection.as_fd(), name, on)?),
            None => Ok(()),
        }
    }

    fn index(&mut self, name: IfName, links: &mut Links) -> Result<u32, Cause> {
        if let Some(index) = links.get(&name) {
            return Ok(*index);
        }
        let index = self.link(request::get_link(name))?.index;
        links.insert(name, index);
        Ok(index)
    }

    fn link(&mut self, request: Request) -> Result<LinkEntry, Cause> {
        match self.connection.get(request)? {
            RouteNetlinkMessage::NewLink(message) => LinkEntry::of(&message).ok_or(Cause::NoAnswer),
            _ => Err(Cause::NoAnswer),
        }
    }

    fn learn(
        &mut self,
        have: &mut Observed,
        dump: Request,
        object: std::fmt::Arguments<'_>,
    ) -> Result<(), NetlinkError> {
        let entry = |message: RouteNetlinkMessage| Entry::of(&message);
        let entries = match self.connection.dump_each(dump, entry) {
            Ok(entries) => entries,
            // A table that has never been written to, or a family switched off.
            Err(cause) if matches!(cause.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => return Ok(()),
            Err(cause) => return Err(cause.of(object)),
        };
        entries.iter().for_each(|entry| learn::found(have, entry));
        Ok(())
    }

    fn learn_nexthops(&mut self, have: &mut Observed) -> Result<(), NetlinkError> {
        if self.nexthops == Nexthops::Never {
            return Ok(());
        }
        let entry = |message: NexthopNetlinkMessage| Entry::of_nexthop(message.message());
        let entries = match self.connection.dump_each(request::dump_nexthops(), entry) {
            Ok(entries) => entries,
            Err(cause) if matches!(cause.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => return Ok(()),
            Err(cause) => return Err(cause.of("nexthops")),
        };
        have.nexthop_objects = true;
        entries.iter().for_each(|entry| learn::found(have, entry));
        Ok(())
    }

    fn in_netns<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.netns {
            Some(netns) => in_netns(netns.as_fd(), f)?,
            None => f(),
        }
    }
}

fn of_sysctl(error: io::Error, key: &str) -> NetlinkError {
    Cause::from(error).of(format_args!("sysctl {key}"))
}
