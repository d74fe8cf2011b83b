use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// So many repairs in a row are made at once: people and tools touch an object a
/// few times, and mean no fight.
const FREE: u64 = 5;
/// The rest after the first repair that is not free; it doubles with each.
const MIN_REST: Duration = Duration::from_millis(100);
const MAX_REST: Duration = Duration::from_secs(10);
/// An object that needed no repair for so long is at peace.
const QUIET: Duration = Duration::from_secs(20);
/// So many objects are followed at once; what is beyond is repaired unfollowed.
const MAX_OBJECTS: usize = 1024;
/// So many repairs are told of, the newest.
const MAX_RECENT: usize = 30;

/// What was put right after others, for whoever shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healing {
    /// Since the start, by kind of object: `route`, `neighbour`, `link`, …
    pub repairs: BTreeMap<&'static str, u64>,
    /// What is undone again and again, for as long as that is so.
    pub fights: Vec<Fight>,
    /// The newest last.
    pub recent: VecDeque<Repair>,
}

/// What one pass put right of one kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    pub at: Instant,
    /// The first of them: `route 10.1.2.0/24`.
    pub object: String,
    /// How many there were.
    pub count: u64,
}

/// An object that something else keeps undoing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fight {
    /// `route 10.1.2.0/24`, `link flannel.1`
    pub object: String,
    /// When it was first put right.
    pub since: Instant,
    /// How often it has been put right since.
    pub count: u64,
    /// The least time between two repairs by now.
    pub rest: Duration,
    /// What runs on this host and is known to do such things, with what to do
    /// about it.
    pub suspects: Vec<String>,
}

impl Healing {
    /// Repairs of all kinds.
    pub fn total(&self) -> u64 {
        self.repairs.values().sum()
    }

    /// With those of another loop.
    pub fn and(mut self, other: &Healing) -> Healing {
        for (kind, count) in &other.repairs {
            *self.repairs.entry(kind).or_default() += count;
        }
        self.fights.extend(other.fights.iter().cloned());
        self.recent.extend(other.recent.iter().cloned());
        self.recent.make_contiguous().sort_by_key(|repair| repair.at);
        self
    }

    /// So many of one kind at once, the first of them named.
    pub(super) fn count(&mut self, kind: &'static str, object: &str, count: u64) {
        *self.repairs.entry(kind).or_default() += count;
        self.recent.push_back(Repair { at: Instant::now(), object: object.to_owned(), count });
        let old = self.recent.len().saturating_sub(MAX_RECENT);
        self.recent.drain(..old);
    }

    /// Of one pass: how many of each kind, and the first of each.
    pub(super) fn remember(
        &mut self,
        repairs: &BTreeMap<&'static str, u64>,
        examples: &BTreeMap<&'static str, String>,
    ) {
        for (kind, object) in examples {
            self.count(kind, object, repairs.get(kind).copied().unwrap_or(1));
        }
    }
}

/// How often each object was put right of late, and when it may be again. Pure:
/// the time is an argument.
#[derive(Debug, Default)]
pub struct Fights {
    by_object: BTreeMap<String, Repairs>,
}

#[derive(Debug)]
struct Repairs {
    first: Instant,
    last: Instant,
    count: u64,
    suspects: Vec<String>,
}

impl Fights {
    pub fn is_empty(&self) -> bool {
        self.by_object.is_empty()
    }

    /// `object` was put right at `now`. `true` where that is now a fight, which it
    /// was not before.
    pub fn repaired(&mut self, object: String, now: Instant) -> bool {
        if self.by_object.len() >= MAX_OBJECTS && !self.by_object.contains_key(&object) {
            return false;
        }
        let repairs = self.by_object.entry(object).or_insert_with(|| Repairs::new(now));
        repairs.last = now;
        repairs.count += 1;
        repairs.count == FREE
    }

    pub fn suspect(&mut self, object: &str, suspects: Vec<String>) {
        if let Some(repairs) = self.by_object.get_mut(object) {
            repairs.suspects = suspects;
        }
    }

    /// When all of them may be put right.
    pub fn all_due(&self) -> Option<Instant> {
        self.by_object.values().map(|repairs| repairs.last + repairs.rest()).max()
    }

    /// When `object` may be put right: an instant that may have passed.
    pub fn due(&self, object: &str) -> Option<Instant> {
        self.by_object.get(object).map(|repairs| repairs.last + repairs.rest())
    }

    /// Forget what has been at peace for long; the fights that so ended.
    pub fn forget_quiet(&mut self, now: Instant) -> Vec<String> {
        let quiet = |repairs: &Repairs| now.duration_since(repairs.last) >= QUIET;
        let over = self.by_object.iter().filter(|(_, repairs)| quiet(repairs) && repairs.is_fight());
        let over = over.map(|(object, _)| object.clone()).collect();
        self.by_object.retain(|_, repairs| !quiet(repairs));
        over
    }

    /// When the next fight may be over.
    pub fn next_quiet(&self) -> Option<Instant> {
        let fights = self.by_object.values().filter(|repairs| repairs.is_fight());
        fights.map(|repairs| repairs.last + QUIET).min()
    }

    pub fn list(&self) -> Vec<Fight> {
        let fights = self.by_object.iter().filter(|(_, repairs)| repairs.is_fight());
        let fight = |(object, repairs): (&String, &Repairs)| Fight {
            object: object.clone(),
            since: repairs.first,
            count: repairs.count,
            rest: repairs.rest(),
            suspects: repairs.suspects.clone(),
        };
        fights.map(fight).collect()
    }
}

/// What to tell a person when a fight begins.
pub(super) fn warning(object: &str, suspects: &[String]) -> String {
    let who = match suspects {
        [] => "something else on this host".to_owned(),
        _ => format!("something else on this host, perhaps {}", suspects.join(" or ")),
    };
    format!("{object}: undone again and again by {who}: putting it right ever less often until that ends")
}

impl Repairs {
    fn new(now: Instant) -> Repairs {
        Repairs { first: now, last: now, count: 0, suspects: Vec::new() }
    }

    fn is_fight(&self) -> bool {
        self.count >= FREE
    }

    fn rest(&self) -> Duration {
        let Some(beyond) = self.count.checked_sub(FREE) else { return Duration::ZERO };
        MIN_REST.saturating_mul(1 << beyond.min(20)).min(MAX_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_repairs_are_free_then_each_waits_twice_as_long_until_peace() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        let (mut now, mut rests) = (start, Vec::new());
        for n in 1..=20 {
            assert_eq!(fights.repaired("route x".into(), now), n == 5, "told once");
            let due = fights.due("route x").unwrap();
            rests.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(rests[..8], [0, 0, 0, 0, 100, 200, 400, 800]);
        assert_eq!(rests[19], 10_000, "and no longer");
        let fight = &fights.list()[0];
        assert_eq!((fight.object.as_str(), fight.since, fight.count), ("route x", start, 20));
        assert!(fights.forget_quiet(now).is_empty());

        assert_eq!(fights.next_quiet(), Some(now - MAX_REST + QUIET));
        assert_eq!(fights.forget_quiet(now - MAX_REST + QUIET), ["route x"]);
        assert!(fights.is_empty() && fights.due("route x").is_none());
    }

    #[test]
    fn objects_do_not_wait_for_each_other_and_are_bounded() {
        let (mut fights, now) = (Fights::default(), Instant::now());
        for _ in 0..10 {
            fights.repaired("a".into(), now);
        }
        fights.repaired("b".into(), now);
        assert!(fights.due("a") > Some(now) && fights.due("b") == Some(now));
        assert_eq!(fights.list().len(), 1);
        for n in 0..10_000 {
            fights.repaired(n.to_string(), now);
        }
        assert_eq!(fights.by_object.len(), MAX_OBJECTS);
        assert_eq!(fights.forget_quiet(now + QUIET), ["a"]);
    }
}
