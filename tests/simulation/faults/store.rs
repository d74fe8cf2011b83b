//! What befalls the store, and what others write into it.

use super::Fault::{self, *};
use super::records::{GARBAGE, bad_record, free_subnet, liar, others_value};
use crate::store::{Contents, Machine, State, Writer, key_of, subnet_of};
use crate::world::World;

impl World {
    pub(super) fn strike_store(&mut self, fault: Fault, node: usize) -> String {
        let number = self.rng.u64(..);
        let model = self.setting.model.clone();
        let ip = self.nodes[node].host.public_ip.v4.unwrap().to_string();
        let ours = |state: &State| {
            let mut leases = state.leases();
            leases
                .find(|(_, attrs, _)| attrs.public_ip.v4.is_some_and(|v4| v4.to_string() == ip))
                .map(|(.., r)| r.clone())
        };
        match fault {
            MachineDown => self.machine(number, Machine::Down),
            MachineDead => self.machine(number, Machine::Dead),
            MachineAlone => self.machine(number, Machine::Alone),
            MachinesBack => self.machines_back(),
            Liar => model.update(|state| {
                let attrs: Vec<_> = state.leases().map(|(_, attrs, _)| attrs).collect();
                let choose = |number: u64| attrs.get(number as usize % attrs.len().max(1));
                if let (Some(of), Some(and)) = (choose(number / 15), choose(number / 1000)) {
                    let (key, value) = liar(self.config, number, of, and);
                    state.put_by(Writer::Vandal, &key, &value, 0);
                }
            }),
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
            Snatch => {
                self.bad_records += 1;
                let value = others_value(self.config, number);
                model.update(|state| {
                    let Some(record) = ours(state) else { return };
                    let garbage = GARBAGE[number as usize % GARBAGE.len()];
                    state.put_by(Writer::Vandal, &record.kv.key, garbage, 0);
                    state.snatch = Some((record.kv.lease, record.kv.key, value));
                });
            }
            Release => model.update(|state| {
                if let Some(record) = ours(state) {
                    state.delete_by(Writer::Other, &record.kv.key);
                }
            }),
            OtherTakes => {
                let key = key_of(&free_subnet(self.config, number));
                let value = others_value(self.config, number);
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
                let value = others_value(self.config, number);
                model.update(|state| {
                    if let Some(record) = ours(state) {
                        state.put_by(Writer::Other, &record.kv.key, &value, 0);
                    }
                    state.overtake = Some(value);
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

    fn machine(&mut self, number: u64, machine: Machine) {
        let model = &self.setting.model;
        model.update(|state| state.set_machine(number as usize % state.machines(), machine));
        self.nodes.iter().for_each(|node| node.link.stir());
    }

    pub(super) fn machines_back(&mut self) {
        let model = &self.setting.model;
        model.update(|state| (0..state.machines()).for_each(|i| state.set_machine(i, Machine::Up)));
        self.nodes.iter().for_each(|node| node.link.stir());
    }

    /// The first time perhaps under the store's old identity. Of a second time a
    /// client would see no sign where the revisions have caught up.
    fn restore(&mut self, contents: Contents) {
        let as_itself = !std::mem::replace(&mut self.restored, true) && self.rng.bool();
        self.setting.model.update(|state| state.restore(contents, as_itself));
    }
}
