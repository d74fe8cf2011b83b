//! A schedule: nodes, their store and their faults, all drawn from one number.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::{Instant, sleep};
use weft::backends;
use weft::model::PerFamily;

use super::faults::Fault;
use super::kernel::{ROOM, before, uplink};
use super::mutants::Mutant;
use super::node::{Node, Setting};
use super::oracle::settled;
use super::store::{Contents, Model, PREFIX, Writer};
use super::verdict::{Invariant, Verdict, Violation};

/// A node that reaches the store knows of its subnet's fate after this: the
/// longest pause between two tries of a renewal, and the calls.
const AWARE: Duration = Duration::from_secs(90);
/// All is as it should be this long after the last fault: pauses between tries
/// grow to a minute, and what a restored store remembers has to run out.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is on its way when the faults end has arrived: a request and its answer.
const ARRIVAL: Duration = Duration::from_secs(9);
/// What holds at all times is looked at so often.
const STEP: Duration = Duration::from_secs(1);
/// Nothing is written once all is quiet.
const QUIET: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub fingerprint: u64,
    pub settled_after: Duration,
    pub faults: usize,
}

pub struct World {
    pub rng: fastrand::Rng,
    pub setting: Setting,
    pub config: &'static str,
    pub nodes: Vec<Node>,
    /// What was saved of the store.
    pub saved: Option<Contents>,
    pub restored: bool,
    /// Kinds of faults that this schedule has, each as often as it is in here.
    pub kinds: Vec<Fault>,
    /// Since when a node's way to the store has been good.
    pub reached: Vec<Instant>,
    pub bad_records: usize,
}

/// Backends and families: the schedules share them.
const CONFIGS: [&str; 4] = [
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.24.0","Backend":{"Type":"vxlan"}}"#,
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.24.0","Backend":{"Type":"host-gw"}}"#,
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.24.0","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
    r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.24.0","IPv6Network":"fd00:5::/56","IPv6SubnetLen":64,"Backend":{"Type":"vxlan"}}"#,
];

/// Run the schedule of `seed`, told aloud or not.
pub fn run(seed: u64, mutant: Option<Mutant>, tell: bool) -> Result<Outcome, Violation> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // The daemon's own dice: subnets, MACs, pauses.
    fastrand::seed(seed);
    runtime.block_on(async {
        let mut world = World::new(seed, mutant, tell);
        world.play().await
    })
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>, tell: bool) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let verdict = Verdict::new(tell);
        let count = [2, 2, 3, 3, 3, 4, 5, 7][rng.usize(..8)];
        let shape = rng.usize(..CONFIGS.len());
        let hosts: Vec<_> = (0..count).map(|index| host(index, shape)).collect();
        let addresses = hosts.iter().map(|host| host.public_ip.v4.unwrap().to_string()).collect();
        let machines = if rng.bool() { 3 } else { 1 };
        let model = Model::new(verdict.clone(), addresses, machines);
        {
            let mut state = model.lock();
            state.ignore_compare = mutant == Some(Mutant::NoCompare);
            state.ignore_history = mutant == Some(Mutant::NoHistory);
        }
        let audit = if rng.u8(..4) == 0 { 60 } else { 7200 };
        let setting = Setting {
            model,
            verdict,
            ttl: Duration::from_secs(rng.u64(20..=60)),
            audit: Duration::from_secs(audit),
            mutant,
        };
        let nodes: Vec<_> = hosts
            .into_iter()
            .enumerate()
            .map(|(index, host)| {
                let nets: Vec<_> = host.address.iter().map(|(_, ip)| of_link(*ip)).collect();
                Node::new(index, host, before(&nets), ROOM, rng.u64(..))
            })
            .collect();
        let kinds = Fault::some(&mut rng, audit < 7200);
        let reached = vec![Instant::now(); nodes.len()];
        World {
            rng,
            setting,
            config: CONFIGS[shape],
            nodes,
            saved: None,
            restored: false,
            kinds,
            reached,
            bad_records: 0,
        }
    }

    async fn play(&mut self) -> Result<Outcome, Violation> {
        self.put_config();
        let expiring = tokio::spawn(self.setting.model.clone().expire());
        for index in 0..self.nodes.len() {
            if self.rng.u8(..8) > 0 {
                self.nodes[index].start(&self.setting);
            }
        }
        let faults = self.rng.usize(4..20);
        for _ in 0..faults {
            self.pause().await?;
            let kind = self.kinds[self.rng.usize(..self.kinds.len())];
            let told = kind.strike(self);
            let (verdict, number) = (self.setting.verdict.clone(), kind as u64);
            verdict.note(number, || format!("{kind:?} {told}"));
            self.check()?;
        }
        let settled_after = self.settle().await?;
        expiring.abort();
        Ok(Outcome { fingerprint: self.setting.verdict.fingerprint(), settled_after, faults })
    }

    pub fn put_config(&self) {
        let (key, config) = (format!("{PREFIX}/config"), self.config.as_bytes());
        self.setting.model.update(|state| state.put_by(Writer::Other, key.as_bytes(), config, 0));
    }

    /// From nothing at all to longer than a lease lives.
    async fn pause(&mut self) -> Result<(), Violation> {
        let millis = match self.rng.u8(..16) {
            0..5 => self.rng.u64(..5),
            5..9 => self.rng.u64(..200),
            9..13 => self.rng.u64(..3_000),
            13..15 => self.rng.u64(..20_000),
            _ => self.rng.u64(..120_000),
        };
        let mut left = Duration::from_millis(millis);
        while left > STEP {
            sleep(STEP).await;
            left -= STEP;
            self.check()?;
        }
        sleep(left).await;
        Ok(())
    }

    /// What holds after each step.
    fn check(&mut self) -> Result<(), Violation> {
        let served = self.setting.model.lock().has_majority();
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if !(served && node.link.weather().is_fair() && node.member().is_some() && !node.stands_still()) {
                self.reached[index] = Instant::now();
            }
            if self.nodes[index].bury() && self.rng.bool() {
                self.nodes[index].start(&self.setting);
            }
        }
        self.one_believer();
        self.memory();
        self.setting.verdict.violation().map_or(Ok(()), Err)
    }

    /// Of the nodes that reach the store no two believe that a subnet is theirs.
    fn one_believer(&self) {
        let believers: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| self.reached[node.index].elapsed() > AWARE)
            .filter_map(|node| Some((node.index, node.member()?)))
            .filter(|(_, member)| member.leases.lost().is_none())
            .map(|(index, member)| (index, member.leases.own().stored.lease.key))
            .collect();
        for (i, (node, own)) in believers.iter().enumerate() {
            if let Some((other, _)) = believers[i + 1..].iter().find(|(_, key)| key.overlaps(own)) {
                let what = || format!("nodes {node} and {other} both hold {own}");
                self.setting.verdict.violated(Invariant::OneBeliever, what);
            }
        }
    }

    /// What grows is bounded by what there is.
    fn memory(&self) {
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        self.bounded("tasks that are alive", tasks, 10 + 40 * self.nodes.len());
        let records = self.setting.model.lock().now.records.len();
        for node in &self.nodes {
            let Some(member) = node.member() else { continue };
            self.bounded("bad records", member.leases.table().bad_count(), self.bad_records);
            let failed = member.reconciler.state().borrow().failed.len();
            let things = node.fake.with(|have| have.routes.len() + have.neighbours.len() + have.fdb.len());
            self.bounded("failures that are remembered", failed, 50 + 4 * (things + records));
        }
    }

    fn bounded(&self, what: &str, count: usize, most: usize) {
        if count > most {
            let what = || format!("{count} {what}, of {most} at most");
            self.setting.verdict.violated(Invariant::BoundedMemory, what);
        }
    }

    /// The faults end; then all comes to be as it should be, and stays so untouched.
    async fn settle(&mut self) -> Result<Duration, Violation> {
        self.setting.verdict.note(0, || "the faults end".to_owned());
        self.mend();
        let begin = Instant::now();
        sleep(ARRIVAL).await;
        loop {
            sleep(Duration::from_secs(1)).await;
            for index in 0..self.nodes.len() {
                self.nodes[index].bury();
                self.start(index);
            }
            self.check()?;
            let so_far = begin.elapsed();
            match self.quiet().await {
                None => return self.check().map(|()| so_far),
                Some(why) if so_far > PATIENCE => {
                    let what = || format!("not settled after {PATIENCE:?}: {why}");
                    self.setting.verdict.violated(Invariant::Settles, what);
                }
                Some(_) => {}
            }
        }
    }

    /// What is not as it should be. Once all is, and the store says nothing new,
    /// nothing is written.
    async fn quiet(&mut self) -> Option<String> {
        let unsettled = self.unsettled();
        if unsettled.is_some() {
            return unsettled;
        }
        let revision = self.setting.model.lock().now.revision;
        self.nodes.iter().for_each(|node| drop(node.fake.take_tried()));
        sleep(QUIET).await;
        if self.setting.model.lock().now.revision != revision {
            return Some("the store goes on changing".to_owned());
        }
        for node in &self.nodes {
            let written = node.fake.take_tried();
            if !written.is_empty() {
                let what = || format!("node {} writes without a reason: {written:?}", node.index);
                self.setting.verdict.violated(Invariant::StaysQuiet, what);
            }
        }
        if let Some(why) = self.unsettled() {
            let what = || format!("settled and did not stay so: {why}");
            self.setting.verdict.violated(Invariant::StaysQuiet, what);
        }
        None
    }

    fn unsettled(&self) -> Option<String> {
        let state = self.setting.model.lock();
        self.nodes.iter().find_map(|node| {
            let why = settled(node, &state).err()?;
            Some(format!("node {}: {why}", node.index))
        })
    }
}

fn host(index: usize, shape: usize) -> backends::Node {
    // With DirectRouting every other node is in another layer-2 network.
    let third = if shape == 2 && index % 2 == 1 { 8 } else { 7 };
    let v4: IpAddr = format!("192.168.{third}.{}", 10 + index).parse().unwrap();
    let v6 = (shape == 3).then(|| format!("fd77::{:x}", 10 + index).parse().unwrap());
    let address = PerFamily { v4: Some(v4), v6 };
    let link: IpNetwork = format!("192.168.{third}.0/24").parse().unwrap();
    let on_link = if shape == 1 || shape == 2 { vec![link] } else { Vec::new() };
    backends::Node { uplink: uplink(), uplink_mtu: 1500, address, public_ip: address, on_link }
}

fn of_link(ip: IpAddr) -> IpNetwork {
    let prefix = if ip.is_ipv4() { 24 } else { 64 };
    IpNetwork::new(ip, prefix).unwrap()
}
