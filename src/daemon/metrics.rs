//! `/metrics`: OpenMetrics text, encoded from what the loops keep anyway. Between
//! two scrapes it costs nothing, and a scrape asks neither kernel nor store.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::guard::GuardState;
use super::process::Process;
use super::status::StatusSource;
use crate::model::Family;
use crate::reconciler::{Durations, Healing, State};

/// So many fights are told by name: a name is a series of its own.
const NAMED_FIGHTS: usize = 10;

/// The media type of what `text` gives.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told of a daemon that may not have joined yet.
#[derive(Debug)]
pub struct Sample<'a> {
    pub ready: bool,
    pub live: bool,
    pub joined: Option<&'a StatusSource>,
}

/// All metrics as they are now.
pub fn text(sample: &Sample<'_>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics::of(sample)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The values of one moment.
#[derive(Debug)]
struct Metrics {
    ready: bool,
    live: bool,
    process: Process,
    node: Option<Node>,
}

#[derive(Debug)]
struct Node {
    leases: Vec<(Family, usize)>,
    bad_records: usize,
    connected: bool,
    lost: bool,
    store: super::store_health::StoreFacts,
    traffic_in_force: bool,
    guard: GuardState,
    reconciler: Reconciled,
}

/// The reconciler's state without its lists, which can be long.
#[derive(Debug)]
struct Reconciled {
    synced: bool,
    took: Durations,
    converged: Durations,
    ops: BTreeMap<&'static str, u64>,
    errors: u64,
    looks: u64,
    repairs: BTreeMap<&'static str, u64>,
    fights: usize,
    /// The first of them, and how often each was put right.
    named_fights: Vec<(String, u64)>,
    failing: usize,
    rejected: usize,
}

impl Metrics {
    fn of(sample: &Sample<'_>) -> Metrics {
        let Sample { ready, live, joined } = *sample;
        Metrics { ready, live, process: Process::read(), node: joined.map(Node::of) }
    }
}

impl Node {
    fn of(source: &StatusSource) -> Node {
        let leases = source.leases();
        let table = leases.table();
        let keys = || table.peers().keys().chain([&table.own().stored.lease.key]);
        let count = |family| keys().filter(|key| key.net(family).is_some()).count();
        Node {
            leases: Family::BOTH.map(|family| (family, count(family))).to_vec(),
            bad_records: table.bad_count(),
            connected: table.connected(),
            lost: leases.lost().is_some(),
            store: leases.store.facts(),
            guard: source.guard(),
            traffic_in_force: source.traffic_trouble().is_none(),
            reconciler: Reconciled::of(&source.reconciler().borrow(), source.healing()),
        }
    }
}

impl Reconciled {
    fn of(state: &State, healing: Healing) -> Reconciled {
        let Healing { repairs, fights, .. } = healing;
        let named = fights.iter().take(NAMED_FIGHTS).map(|fight| (fight.object.clone(), fight.count));
        Reconciled {
            synced: state.synced,
            took: state.took.clone(),
            converged: state.converged.clone(),
            ops: state.ops.clone(),
            errors: state.errors,
            looks: state.looks,
            fights: fights.len(),
            named_fights: named.collect(),
            repairs,
            failing: state.failed.len(),
            rejected: state.rejected.len(),
        }
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.info("weft_build", "The program.", &[("version", env!("CARGO_PKG_VERSION"))])?;
        out.gauge("weft_ready", "Whether the node has joined, as /readyz says.", u64::from(self.ready))?;
        out.gauge("weft_live", "Whether every loop gets on, as /healthz says.", u64::from(self.live))?;
        self.process.encode(&mut out)?;
        self.node.as_ref().map_or(Ok(()), |node| node.encode(&mut out))
    }
}

impl Node {
    fn encode(&self, out: &mut Out<'_>) -> fmt::Result {
        self.encode_leases(out)?;
        self.encode_store(out)?;
        self.encode_kernel(out)
    }

    fn encode_leases(&self, out: &mut Out<'_>) -> fmt::Result {
        let by_family = self.leases.iter().map(|(family, count)| (family_name(*family), *count as u64));
        out.gauges(
            "weft_leases",
            "Leases with a subnet of the family, our own included.",
            "family",
            by_family,
        )?;
        out.gauge(
            "weft_lease_records_bad",
            "Records of the store that do not parse.",
            self.bad_records as u64,
        )?;
        out.gauge(
            "weft_subnet_lost",
            "Whether this node's subnet is not its own any more.",
            u64::from(self.lost),
        )?;
        let Some(left) = self.store.expires_in() else { return Ok(()) };
        let help = "When the store forgets this node's lease unless it is renewed.";
        out.timestamp("weft_subnet_lease_expiry_timestamp", help, SystemTime::now() + left)
    }

    fn encode_store(&self, out: &mut Out<'_>) -> fmt::Result {
        let store = &self.store;
        out.gauge(
            "weft_store_connected",
            "Whether the watch of the store is up.",
            u64::from(self.connected),
        )?;
        let help = "For how long the store has been away, and leases may be out of date.";
        out.seconds("weft_store_lag", help, store.lag().as_secs_f64())?;
        if let Some(event) = store.last_event {
            let at = SystemTime::now() - event.elapsed();
            out.timestamp("weft_store_last_event_timestamp", "When the store last told of a lease.", at)?;
        }
        out.counter(
            "weft_store_watch_resumes",
            "Watches that went on after the store was away.",
            store.resumes,
        )?;
        out.counter("weft_store_listings", "Whole listings of leases that were taken in.", store.listings)?;
        let results = [("done", store.renewals), ("failed", store.failed_renewals)];
        out.counters("weft_subnet_lease_renewals", "Renewals of this node's lease.", "result", results)
    }

    fn encode_kernel(&self, out: &mut Out<'_>) -> fmt::Result {
        let state = &self.reconciler;
        out.gauge("weft_kernel_synced", "Whether the kernel is as it should be.", u64::from(state.synced))?;
        out.histogram("weft_reconcile_duration", "How long passes of the reconciler took.", &state.took)?;
        let help = "From a change of the leases or of this node to a kernel that has it.";
        out.histogram("weft_convergence_duration", help, &state.converged)?;
        let ops = state.ops.iter().map(|(kind, count)| (*kind, *count));
        out.counters("weft_kernel_operations", "Changes made to the kernel.", "kind", ops)?;
        out.counter("weft_kernel_errors", "Changes that the kernel refused.", state.errors)?;
        out.counter("weft_kernel_reads", "How often the kernel's state was read.", state.looks)?;
        let repairs = state.repairs.iter().map(|(kind, count)| (*kind, *count));
        out.counters("weft_repairs", "Changes that set right what others had changed.", "kind", repairs)?;
        let help = "Objects that something else undoes again and again.";
        out.gauge("weft_fights", help, state.fights as u64)?;
        let help = "Repairs of each of them, the first ten, since its fight began.";
        let named = state.named_fights.iter().map(|(object, count)| (object.as_str(), *count));
        out.gauges("weft_fight_repairs", help, "object", named)?;
        out.gauge("weft_kernel_failures", "What fails or is waited for at present.", state.failing as u64)?;
        out.gauge("weft_peers_rejected", "Peers left out for a fault.", state.rejected as u64)?;
        let in_force = u64::from(self.traffic_in_force);
        out.gauge("weft_traffic_rules_in_force", "Whether the traffic rules asked for are.", in_force)?;
        let Some(admitted) = self.guard.admitted else { return Ok(()) };
        out.gauge("weft_guard_addresses", "Addresses that may send encapsulated packets.", admitted as u64)?;
        let help = "Encapsulated packets of others that were dropped, as of the last audit.";
        out.counter("weft_guard_dropped_packets", help, self.guard.dropped)
    }
}

/// Writes one metric a call.
pub(super) struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.value(name, help, None, &integer(value))
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.value(name, help, Some(&Unit::Seconds), &value)
    }

    pub(super) fn bytes(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.value(name, help, Some(&Unit::Bytes), &integer(value))
    }

    pub(super) fn timestamp(&mut self, name: &str, help: &str, at: SystemTime) -> fmt::Result {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.seconds(name, help, since.as_secs_f64())
    }

    fn value(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: &impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(value)
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    pub(super) fn seconds_counted(&mut self, name: &str, help: &str, count: f64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (of, value) in values {
            metric.encode_family(&[(label, of)])?.encode_gauge(&integer(value))?;
        }
        Ok(())
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, count) in counts {
            metric.encode_family(&[(label, of)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, of: &Durations) -> fmt::Result {
        let buckets: Vec<_> = of.buckets().collect();
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(of.sum().as_secs_f64(), of.count(), &buckets, None)
    }
}

/// As OpenMetrics' integers go.
fn integer(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}
