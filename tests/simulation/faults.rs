//! What befalls the store, the wires, the daemons, the kernels and the records.

mod hands;
mod records;
mod store;

use super::kernel::uplink;
use super::network::{CALM, Reach, Weather};
use super::world::World;

/// The kinds, and all of them.
macro_rules! faults {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $kind,)*
        }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$kind),*];
        }
    };
}

faults! {
    StoreRefuses,
    StoreSilent,
    StoreSlow,
    StoreBack,
    /// One of the store's machines.
    MachineDown,
    MachineDead,
    MachineAlone,
    MachinesBack,
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
    /// A new daemon that does not reach the store.
    StartAway,
    /// `SIGSTOP`, and a machine that sleeps or is moved.
    Stop,
    Continue,
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
    Liar,
    Spoil,
    /// Our record is spoilt, and another program takes it while we mend it.
    Snatch,
    Release,
    OtherTakes,
    OtherTakesOurs,
    OtherLeaves,
}

use Fault::*;

impl Fault {
    /// A part of all kinds, so that schedules differ in what they are about. What
    /// nobody tells of is found at an audit only.
    pub fn some(rng: &mut fastrand::Rng, audited: bool) -> Vec<Fault> {
        let share = rng.u8(15..=90);
        let mut kinds: Vec<_> = Fault::ALL.iter().copied().filter(|_| rng.u8(..100) < share).collect();
        kinds.retain(|kind| *kind != Sysctl || audited);
        kinds.push(Meddle);
        kinds.extend([StoreBack, MachinesBack, Mend, Start, Continue]);
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
            StartAway => world.start_away(node),
            Stop => world.stop(node),
            Continue => world.go_on(node),
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

    fn start_away(&mut self, node: usize) {
        self.link(node, Weather { reach: Reach::Refused, ..CALM });
        self.nodes[node].kill();
        self.start(node);
    }

    fn stop(&mut self, node: usize) {
        if let Some(running) = &self.nodes[node].running {
            running.life.stop();
        }
    }

    fn go_on(&mut self, node: usize) {
        if let Some(running) = &self.nodes[node].running {
            running.life.go_on();
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
        // Most often it is all of them: a permission is missing, or memory.
        let share = Some(self.rng.u8(10..=100)).filter(|share| *share < 60).unwrap_or(100);
        let mut rng = self.rng.fork();
        self.nodes[node].fake.fail(move |_| (rng.u8(..100) < share).then_some(errno));
    }

    /// Every fault ends; what others wrote may stay.
    pub fn mend(&mut self) {
        self.weather(CALM);
        self.machines_back();
        {
            let mut state = self.setting.model.lock();
            (state.snatch, state.overtake) = (None, None);
        }
        for index in 0..self.nodes.len() {
            self.nodes[index].fake.fail(|_| None);
            self.nodes[index].fake.set_up(uplink(), true);
            self.go_on(index);
            self.start(index);
        }
    }
}
