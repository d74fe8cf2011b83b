//! What befalls the store, the wires, the daemons, the kernels and the records.

use weft::desired::{LinkSpec, Nexthop, Observed, Op, ROUTE_PROTOCOL};
use weft::model::{IfName, Mac};

use super::kernel::uplink;
use super::network::{Reach, Weather};
use super::store::{Contents, Writer, key_of, subnet_of};
use super::world::{CALM, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Fault {
    StoreRefuses = 1,
    StoreSilent,
    StoreSlow,
    StoreBack,
    Election,
    Compaction,
    Save,
    Restore,
    Wipe,
    Expiry,
    Cut,
    Slow,
    Lossy,
    Forbidden,
    Mend,
    Kill,
    KillInBatch,
    Start,
    Reboot,
    Meddle,
    Burst,
    MeddleUnheard,
    Sysctl,
    UplinkFlap,
    TunnelDown,
    TunnelGone,
    Refusals,
    RefusalsEnd,
    BadRecord,
    Spoil,
    Release,
    OtherTakes,
    OtherTakesOurs,
    OtherLeaves,
}

use Fault::*;

const ALL: [Fault; 34] = [
    StoreRefuses,
    StoreSilent,
    StoreSlow,
    StoreBack,
    Election,
    Compaction,
    Save,
    Restore,
    Wipe,
    Expiry,
    Cut,
    Slow,
    Lossy,
    Forbidden,
    Mend,
    Kill,
    KillInBatch,
    Start,
    Reboot,
    Meddle,
    Burst,
    MeddleUnheard,
    Sysctl,
    UplinkFlap,
    TunnelDown,
    TunnelGone,
    Refusals,
    RefusalsEnd,
    BadRecord,
    Spoil,
    Release,
    OtherTakes,
    OtherTakesOurs,
    OtherLeaves,
];

impl Fault {
    /// A part of all kinds, so that schedules differ in what they are about. What
    /// nobody tells of is found at an audit only.
    pub fn some(rng: &mut fastrand::Rng, audited: bool) -> Vec<Fault> {
        let share = rng.u8(15..=90);
        let mut kinds: Vec<_> = ALL.into_iter().filter(|_| rng.u8(..100) < share).collect();
        kinds.retain(|kind| *kind != Sysctl || audited);
        kinds.push(Meddle);
        kinds.extend([StoreBack, Mend, Start]);
        kinds
    }

    /// What it did, for a reader.
    pub fn strike(self, world: &mut World) -> String {
        let node = world.rng.usize(..world.nodes.len());
        match self {
            StoreRefuses => world.weather(Weather { reach: Reach::Refused, ..CALM }),
            StoreSilent => world.weather(Weather { reach: Reach::Silent, ..CALM }),
            StoreSlow => world.weather(Weather { delay: 3_000, ..CALM }),
            StoreBack => world.weather(CALM),
            Cut => world.link(node, Weather { reach: Reach::Silent, ..CALM }),
            Slow => world.link(node, Weather { delay: 4_000, ..CALM }),
            Lossy => world.link(node, Weather { loss: 40, ..CALM }),
            Forbidden => world.link(node, Weather { reach: Reach::Forbidden, ..CALM }),
            Mend => world.link(node, CALM),
            Kill => world.nodes[node].kill(),
            Start => world.start(node),
            Reboot => world.nodes[node].reboot(),
            KillInBatch => world.kill_in_batch(node),
            Meddle => return world.meddle(node),
            Burst => world.burst(node),
            MeddleUnheard => world.meddle_unheard(node),
            UplinkFlap | TunnelDown | TunnelGone | Sysctl => world.harm(node, self),
            Refusals => world.refuse(node),
            RefusalsEnd => world.nodes[node].fake.fail(|_| None),
            _ => return world.strike_store(self, node),
        }
        format!("node {node}")
    }
}

impl World {
    fn weather(&mut self, weather: Weather) {
        self.nodes.iter().for_each(|node| node.link.set(weather));
    }

    fn link(&mut self, node: usize, weather: Weather) {
        self.nodes[node].link.set(weather);
    }

    pub fn start(&mut self, node: usize) {
        if self.nodes[node].running.is_none() {
            self.nodes[node].start(&self.setting);
        }
    }

    fn kill_in_batch(&mut self, node: usize) {
        let ops = self.rng.i64(..12);
        if let Some(running) = &self.nodes[node].running {
            running.life.end_after(ops);
        }
        self.meddle(node);
    }

    fn refuse(&mut self, node: usize) {
        let errno = [libc::EPERM, libc::ENOMEM, libc::EEXIST, libc::EINVAL, libc::ENODEV, libc::ENOBUFS];
        let errno = errno[self.rng.usize(..errno.len())];
        let (share, mut rng) = (self.rng.u8(10..=100), self.rng.fork());
        self.nodes[node].fake.fail(move |_| (rng.u8(..100) < share).then_some(errno));
    }

    fn meddle(&mut self, node: usize) -> String {
        let op = self.nodes[node].fake.with(|have| random_op(have, &mut self.rng));
        let Some(op) = op else { return "nothing".to_owned() };
        let done = self.nodes[node].fake.meddle(&op);
        format!("node {node}: {op} {}", if done { "" } else { "refused" })
    }

    /// More than its socket holds.
    fn burst(&mut self, node: usize) {
        for _ in 0..80 {
            self.meddle(node);
        }
    }

    /// Changes whose notifications are lost with others.
    fn meddle_unheard(&mut self, node: usize) {
        for _ in 0..self.rng.u8(1..4) {
            self.meddle(node);
        }
        self.nodes[node].fake.overrun();
    }

    fn harm(&mut self, node: usize, fault: Fault) {
        let fake = &self.nodes[node].fake;
        let tunnels = fake.with(tunnels);
        match fault {
            UplinkFlap => {
                fake.set_up(uplink(), false);
                fake.set_up(uplink(), true);
            }
            TunnelDown => tunnels.into_iter().for_each(|name| fake.set_up(name, false)),
            TunnelGone => tunnels.into_iter().for_each(|name| {
                fake.meddle(&Op::DelLink { name });
            }),
            _ => tunnels.into_iter().for_each(|name| {
                fake.meddle(&Op::SetSysctl {
                    key: format!("net/ipv6/conf/{name}/accept_ra"),
                    value: "2".into(),
                });
            }),
        }
    }

    fn strike_store(&mut self, fault: Fault, node: usize) -> String {
        let number = self.rng.u64(..);
        let model = self.setting.model.clone();
        let ip = self.nodes[node].host.public_ip.v4.unwrap().to_string();
        let ours = |state: &super::store::State| {
            let mut leases = state.leases();
            leases
                .find(|(_, attrs, _)| attrs.public_ip.v4.is_some_and(|v4| v4.to_string() == ip))
                .map(|(.., r)| r.clone())
        };
        match fault {
            Election => model.update(|state| state.elect()),
            Compaction => model.update(|state| state.compact(state.now.revision - (number % 3) as i64)),
            Save => self.saved = Some(model.lock().now.clone()),
            Restore => {
                let Some(saved) = self.saved.clone() else { return "nothing saved".to_owned() };
                self.restore(saved);
            }
            Wipe => {
                self.restore(Contents::empty());
                self.put_config();
            }
            Expiry => model.update(|state| {
                let lease = ours(state).map_or(0, |record| record.kv.lease);
                state.expire_now(lease);
            }),
            BadRecord => {
                self.bad_records += 1;
                let (key, value) = bad_record(number);
                model.update(|state| state.put_by(Writer::Vandal, &key, &value, 0));
            }
            Spoil => {
                self.bad_records += 1;
                model.update(|state| {
                    if let Some(record) = ours(state) {
                        state.put_by(
                            Writer::Vandal,
                            &record.kv.key,
                            GARBAGE[number as usize % GARBAGE.len()],
                            0,
                        );
                    }
                });
            }
            Release => model.update(|state| {
                if let Some(record) = ours(state) {
                    state.delete_by(Writer::Other, &record.kv.key);
                }
            }),
            OtherTakes => {
                let key = key_of(&self.free_subnet(number));
                let value = self.others_value(number);
                model.update(|state| {
                    let subnet = subnet_of(&key).unwrap();
                    let taken = state.leases().any(|(key, ..)| key.overlaps(&subnet))
                        || state.spoilt().any(|key| key.overlaps(&subnet));
                    if !taken && !state.now.records.contains_key(&key) {
                        state.put_by(Writer::Other, &key, &value, 0);
                    }
                });
            }
            OtherTakesOurs => {
                let value = self.others_value(number);
                model.update(|state| {
                    if let Some(record) = ours(state) {
                        state.put_by(Writer::Other, &record.kv.key, &value, 0);
                    }
                });
            }
            _ => model.update(|state| {
                let others = state.leases().filter(|(.., record)| record.writer == Writer::Other);
                let key = others.map(|(.., record)| record.kv.key.clone()).next();
                if let Some(key) = key {
                    state.delete_by(Writer::Other, &key);
                }
            }),
        }
        format!("node {node}, revision {}", model.lock().now.revision)
    }

    /// The first time perhaps under the store's old identity. Of a second time a
    /// client would see no sign where the revisions have caught up.
    fn restore(&mut self, contents: Contents) {
        let as_itself = !std::mem::replace(&mut self.restored, true) && self.rng.bool();
        self.setting.model.update(|state| state.restore(contents, as_itself));
    }

    /// Inside the pool, also where nodes take theirs.
    fn free_subnet(&self, number: u64) -> String {
        let third = 1 + number % 24;
        match self.config.contains("EnableIPv6") {
            true => format!("10.5.{third}.0-24&fd00:5:0:{third:x}::-64"),
            false => format!("10.5.{third}.0-24"),
        }
    }

    /// A good lease of a machine that runs another program.
    fn others_value(&self, number: u64) -> Vec<u8> {
        let host = 200 + number % 20;
        let data = |mac: u8| format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{mac:02x}:{host:02x}"}}"#);
        let kind = if self.config.contains("host-gw") { "host-gw" } else { "vxlan" };
        let v6 = match self.config.contains("EnableIPv6") {
            true => format!(r#","PublicIPv6":"fd77::{host:x}","BackendV6Data":{}"#, data(0xbb)),
            false => String::new(),
        };
        let v4 =
            format!(r#""PublicIP":"192.168.7.{host}","BackendType":"{kind}","BackendData":{}"#, data(0xaa));
        format!("{{{v4}{v6}}}").into_bytes()
    }

    /// Every fault ends; what others wrote may stay.
    pub fn mend(&mut self) {
        self.weather(CALM);
        for index in 0..self.nodes.len() {
            self.nodes[index].fake.fail(|_| None);
            self.nodes[index].fake.set_up(uplink(), true);
            self.start(index);
        }
    }
}

fn tunnels(have: &Observed) -> Vec<IfName> {
    have.links.iter().filter(|(_, link)| link.kind.is_some()).map(|(name, _)| *name).collect()
}

/// Something that a person at the shell or another program might do to what is
/// ours.
fn random_op(have: &Observed, rng: &mut fastrand::Rng) -> Option<Op> {
    let tunnels = tunnels(have);
    let dev = rng.choice(tunnels).unwrap_or_else(uplink);
    let ours = |name: &IfName| name.as_str().starts_with("flannel");
    let mac = Mac::local(rng.u64(..).to_be_bytes()[..6].try_into().unwrap());
    let stray = format!("10.5.{}.0", rng.u8(..24));
    let neighbour = any(rng, have.neighbours.iter().filter(|((dev, _), _)| ours(dev)));
    let fdb = any(rng, have.fdb.iter());
    let route = any(rng, have.routes.iter().filter(|(_, route)| route.protocol == ROUTE_PROTOCOL));
    let nexthop = any(rng, have.nexthops.iter().filter(|(_, object)| object.protocol == ROUTE_PROTOCOL));
    let wrong = Nexthop { dev, via: "10.5.99.0".parse().unwrap(), onlink: true };
    Some(match rng.u8(..14) {
        0 => neighbour.map(|(&(dev, ip), _)| Op::DelNeighbour { dev, ip })?,
        1 => neighbour.map(|(&(dev, ip), _)| Op::SetNeighbour { dev, ip, mac })?,
        2 if ours(&dev) => Op::SetNeighbour { dev, ip: stray.parse().unwrap(), mac },
        3 => fdb.and_then(|(&(dev, mac), dsts)| Some(Op::DelFdb { dev, mac, dst: *dsts.iter().next()? }))?,
        4 => fdb.map(|(&(dev, mac), _)| Op::SetFdb { dev, mac, dst: "192.168.7.99".parse().unwrap() })?,
        5 if ours(&dev) => Op::SetFdb { dev, mac, dst: "192.168.7.98".parse().unwrap() },
        6 | 7 => route.map(|(dst, route)| Op::DelRoute { dst: *dst, protocol: route.protocol })?,
        8 => route.map(|(dst, _)| Op::SetRoute { dst: *dst, nexthop: wrong, id: None })?,
        9 => Op::SetRoute { dst: format!("{stray}/24").parse().unwrap(), nexthop: wrong, id: None },
        10 => nexthop.map(|(id, _)| Op::DelNexthop { id: *id })?,
        11 => nexthop.map(|(id, _)| Op::SetNexthop { id: *id, nexthop: wrong })?,
        12 => Op::SetLink { name: dev, spec: Box::new(changed(have, dev, mac, rng)?) },
        _ if ours(&dev) => {
            let addresses = have.addresses.iter().filter(|(on, _)| *on == dev);
            any(rng, addresses).map(|&(dev, addr)| Op::DelAddress { dev, addr })?
        }
        _ => return None,
    })
}

fn any<T>(rng: &mut fastrand::Rng, among: impl Iterator<Item = T>) -> Option<T> {
    let among: Vec<T> = among.collect();
    rng.choice(among)
}

fn changed(have: &Observed, dev: IfName, mac: Mac, rng: &mut fastrand::Rng) -> Option<LinkSpec> {
    let link = have.links.get(&dev)?;
    let (kind, old) = (link.kind.clone()?, link.mac?);
    let (mac, mtu) = if rng.bool() { (mac, link.mtu) } else { (old, 1280) };
    Some(LinkSpec { mac, mtu, kind, tx_checksum: None })
}

const GARBAGE: [&[u8]; 6] = [
    b"{",
    b"",
    b"null",
    b"\xff\xfe",
    br#"{"PublicIP":"nowhere","BackendType":"vxlan"}"#,
    br#"{"PublicIP":192,"BackendType":["vxlan"]}"#,
];

/// What is nobody's lease, in any of its parts.
fn bad_record(number: u64) -> (Vec<u8>, Vec<u8>) {
    let lease = |ip: &str, data: &str| {
        format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{data}}}"#).into_bytes()
    };
    let mac = r#"{"VNI":1,"VtepMAC":"02:00:00:00:cc:01"}"#;
    // Behind the pool, so that nobody waits for it.
    let key = || key_of(&format!("10.5.{}.0-24", 250 + number / 16 % 5));
    match number % 16 {
        0 => (key_of("hello"), lease("192.168.7.150", mac)),
        1 => (key_of("\u{202e}10.5.250.0-24"), GARBAGE[0].to_vec()),
        2 => ([key_of(""), vec![0xff, 0xfe, 0x0a]].concat(), lease("192.168.7.150", mac)),
        3 => (key_of(&"x".repeat(3_000)), lease("192.168.7.150", mac)),
        4 => (key(), vec![b' '; 100_000]),
        5 => (key(), lease("192.168.7.150", r#"{"VNI":9,"VtepMAC":"02:00:00:00:cc:01"}"#)),
        6 => (key(), lease("192.168.7.150", r#"{"VNI":1}"#)),
        7 => (key(), lease("192.168.7.150", r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#)),
        8 => (key(), lease("0.0.0.0", mac)),
        9 => (key(), lease("127.0.0.1", mac)),
        10 => (key(), lease("224.0.0.9", mac)),
        11 => (key(), lease("10.5.250.9", mac)),
        12 => (key_of("10.0.0.0-8"), lease("10.5.1.1", mac)),
        13 => (key_of("0.0.0.0-0"), lease("192.168.7.150", r#"{"VNI":1}"#)),
        14 => (key_of("192.168.0.0-16"), lease("192.168.7.150", mac)),
        _ => (key(), GARBAGE[(number / 16) as usize % GARBAGE.len()].to_vec()),
    }
}
