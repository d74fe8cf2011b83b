use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::protocol::error::{Code, Error, Result};
use crate::protocol::fields::Fields;

/// Addresses of one subnet to hand out, bounds included, the gateway left out
/// (host-local backend/allocator/range.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub subnet: IpNetwork,
    pub gateway: IpAddr,
    start: u128,
    end: u128,
}

/// Ranges of one family that serve one address of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl Range {
    fn parse(fields: &Fields<'_>) -> Result<Range> {
        let subnet: IpNetwork = fields
            .parsed("subnet", "a subnet such as 10.5.1.0/24")?
            .ok_or_else(|| fields.wrong("subnet", "a subnet such as 10.5.1.0/24"))?;
        let host_bits = if subnet.is_ipv4() { 32 } else { 128 } - subnet.prefix();
        if host_bits < 2 {
            return Err(
                fields.wrong("subnet", "a subnet with room for a gateway and a host: /30, /126 or larger")
            );
        }
        if subnet.ip() != subnet.network() {
            return Err(fields
                .wrong("subnet", format_args!("no host bits: {}/{}", subnet.network(), subnet.prefix())));
        }
        let first = bits(subnet.network()) + 1;
        let all_ones = bits(subnet.network()) | (u128::MAX >> (128 - u32::from(host_bits)));
        let last = if subnet.is_ipv4() { all_ones - 1 } else { all_ones };
        let bound = |key, default| -> Result<u128> {
            let Some(address) = fields.parsed::<IpAddr>(key, "an address of the subnet")? else {
                return Ok(default);
            };
            if !subnet.contains(address) {
                return Err(fields.wrong(key, format_args!("an address of {subnet}")));
            }
            Ok(bits(address))
        };
        let (start, end) = (bound("rangeStart", first)?, bound("rangeEnd", last)?);
        if start > end {
            return Err(fields.wrong("rangeEnd", "an address not below rangeStart"));
        }
        let gateway =
            fields.parsed("gateway", "an IP address")?.unwrap_or_else(|| address(subnet.is_ipv4(), first));
        Ok(Range { subnet, gateway, start, end })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && (self.start..=self.end).contains(&bits(ip))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4() && self.start <= other.end && other.start <= self.end
    }
}

impl RangeSet {
    fn new(ranges: Vec<Range>, at: &str) -> Result<RangeSet> {
        let Some(first) = ranges.first() else { return Err(Error::field(at, "[]", "at least one range")) };
        if ranges.iter().any(|r| r.subnet.is_ipv4() != first.subnet.is_ipv4()) {
            return Err(Error::field(at, RangeSet(ranges), "ranges of one address family"));
        }
        let overlap = ranges.iter().enumerate().any(|(i, a)| ranges[i + 1..].iter().any(|b| a.overlaps(b)));
        if overlap {
            return Err(Error::field(at, RangeSet(ranges), "ranges that do not overlap"));
        }
        Ok(RangeSet(ranges))
    }

    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Every address of the set once, round robin: the one after `last` first,
    /// `last` itself at the end, gateways left out.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let from = last.and_then(|ip| Some((self.0.iter().position(|r| r.contains(ip))?, bits(ip))));
        let (at, cut) = from.unwrap_or((0, self.0[0].start.wrapping_sub(1)));
        let tail = &self.0[at];
        let behind = cut.checked_add(1).filter(|next| *next <= tail.end).map(|next| (tail, next, tail.end));
        let around = self.0.iter().cycle().skip(at + 1).take(self.0.len() - 1).map(|r| (r, r.start, r.end));
        let before = from.map(|_| (tail, tail.start, cut));
        let spans = behind.into_iter().chain(around).chain(before);
        spans
            .flat_map(|(range, start, end)| {
                (start..=end).map(move |n| (address(range.subnet.is_ipv4(), n), range))
            })
            .filter(|(ip, range)| *ip != range.gateway)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let v4 = range.subnet.is_ipv4();
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}-{}", address(v4, range.start), address(v4, range.end))?;
        }
        Ok(())
    }
}

/// The range sets of an IPAM config in host-local's order: the runtime's, the
/// single range of old configs, `ranges`.
pub fn parse(ipam: &Fields<'_>, runtime: Option<&Fields<'_>>) -> Result<Vec<RangeSet>> {
    let mut sets = Vec::new();
    if let Some(runtime) = runtime {
        sets.extend(parse_sets(runtime, "ipRanges")?);
    }
    if ipam.get("subnet").is_some() {
        sets.push(RangeSet::new(vec![Range::parse(ipam)?], &ipam.place("subnet"))?);
    }
    sets.extend(parse_sets(ipam, "ranges")?);
    if sets.is_empty() {
        return Err(Error::new(
            Code::NetworkConfig,
            format!("{}: no IP ranges specified", ipam.place("ranges")),
        ));
    }
    for (i, a) in sets.iter().enumerate() {
        if let Some(b) = sets[i + 1..].iter().find(|b| a.0.iter().any(|x| b.0.iter().any(|y| x.overlaps(y))))
        {
            return Err(Error::field(
                ipam.place("ranges"),
                json!(b.to_string()),
                format_args!("no overlap with {a}"),
            ));
        }
    }
    Ok(sets)
}

fn parse_sets(fields: &Fields<'_>, key: &str) -> Result<Vec<RangeSet>> {
    let set = |(i, value): (usize, &Value)| {
        let at = fields.place(&format!("{key}[{i}]"));
        let ranges = value.as_array().ok_or_else(|| Error::field(&at, value, "a list of ranges"))?;
        let range = |(j, value)| Range::parse(&fields.inner(&format!("{key}[{i}][{j}]"), value)?);
        RangeSet::new(ranges.iter().enumerate().map(range).collect::<Result<_>>()?, &at)
    };
    fields.list(key)?.iter().enumerate().map(set).collect()
}

/// Take from `requested` the address that `set` can serve, if any.
pub fn take_requested(requested: &mut Vec<IpAddr>, set: &RangeSet) -> Option<IpAddr> {
    let at = requested.iter().position(|ip| set.range_of(*ip).is_some())?;
    Some(requested.remove(at))
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(v4: bool, bits: u128) -> IpAddr {
    if v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
}
