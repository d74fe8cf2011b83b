//! When this node's lease is renewed. Pure: time and randomness are arguments.

use std::time::{Duration, Instant};

/// Between two tries of a renewal that fails, at most.
const MAX_RETRY: Duration = Duration::from_secs(60);
const MIN_RETRY: Duration = Duration::from_secs(1);

/// When to renew a lease, and when it is too late.
#[derive(Clone, Debug)]
pub struct Timer {
    margin: Duration,
    /// When the store forgets the lease; `None` for a reservation.
    expiry: Option<Instant>,
    /// `None`: nothing to do.
    next: Option<Instant>,
    failures: u32,
    renewed_at: Option<Instant>,
}

/// What is to be done about the lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this instant.
    At(Instant),
    Renew,
    /// The time is over: the subnet may become another node's at any moment.
    Acquire,
    /// A reservation needs no renewal.
    Never,
}

impl Timer {
    /// A lease of `ttl` from `now`, renewed `margin` before its end
    /// (`--subnet-lease-renew-margin`), but not before half its time is over.
    pub fn new(margin: Duration, now: Instant, ttl: Option<Duration>) -> Timer {
        let mut timer = Timer { margin, expiry: None, next: None, failures: 0, renewed_at: None };
        timer.renewed(now, ttl);
        timer.renewed_at = None;
        timer
    }

    /// The store answered at `now` that the lease is good for `ttl`.
    pub fn renewed(&mut self, now: Instant, ttl: Option<Duration>) {
        self.failures = 0;
        self.renewed_at = Some(now);
        self.expiry = ttl.map(|ttl| now + ttl);
        self.next = ttl.map(|ttl| now + ttl.saturating_sub(self.margin).max(ttl / 2));
    }

    /// A renewal failed at `now`: try again after a pause that doubles from a
    /// second to a minute, of which `random` (0 to 1) takes up to half away.
    pub fn failed(&mut self, now: Instant, random: f64) {
        let pause = MIN_RETRY.saturating_mul(1 << self.failures.min(10)).min(MAX_RETRY);
        self.failures += 1;
        let retry = now + pause.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0);
        let expiry = self.expiry.filter(|expiry| *expiry > now);
        self.next = Some(expiry.map_or(retry, |expiry| retry.min(expiry)));
    }

    /// Whatever was to come, renew now: the lease is in doubt. But not more than
    /// once a second: someone else may write our record as often as we do.
    pub fn hurry(&mut self, now: Instant) {
        let soon = self.renewed_at.map_or(now, |renewed| now.max(renewed + MIN_RETRY));
        self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
    }

    pub fn due(&self, now: Instant) -> Due {
        match self.next {
            None => Due::Never,
            Some(next) if now < next => Due::At(next),
            Some(_) if self.expiry.is_some_and(|expiry| now >= expiry) => Due::Acquire,
            Some(_) => Due::Renew,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_days_lease_is_renewed_an_hour_before_its_end() {
        let now = Instant::now();
        let timer = Timer::new(HOUR, now, Some(24 * HOUR));
        assert_eq!(timer.due(now), Due::At(now + 23 * HOUR));
        assert_eq!(timer.due(now + 23 * HOUR), Due::Renew);
        assert_eq!(timer.due(now + 24 * HOUR), Due::Acquire);
    }

    #[test]
    fn a_reservation_is_looked_at_only_in_doubt() {
        let now = Instant::now();
        let mut timer = Timer::new(HOUR, now, None);
        assert_eq!(timer.due(now + 1000 * HOUR), Due::Never);
        timer.hurry(now);
        assert_eq!(timer.due(now), Due::Renew);
        timer.renewed(now, None);
        assert_eq!(timer.due(now), Due::Never);
        timer.hurry(now);
        assert_eq!(timer.due(now), Due::At(now + MIN_RETRY), "a renewal of a moment ago will do");
    }

    proptest! {
        #[test]
        fn renewal_comes_in_the_second_half_and_before_the_end(ttl in 2u64..200_000, margin in 1u64..100_000) {
            let now = Instant::now();
            let ttl = Duration::from_secs(ttl);
            let timer = Timer::new(Duration::from_secs(margin), now, Some(ttl));
            let Due::At(next) = timer.due(now) else { return Err(TestCaseError::fail("due at once")) };
            prop_assert!(next >= now + ttl / 2 && next < now + ttl);
        }

        #[test]
        fn failures_are_tried_again_within_a_minute_until_the_time_is_over(
            jitter in prop::collection::vec(0.0f64..=1.0, 200)
        ) {
            let start = Instant::now();
            let mut timer = Timer::new(HOUR, start, Some(2 * HOUR));
            let mut now = start + HOUR;
            let mut tries = 0;
            for random in jitter {
                match timer.due(now) {
                    Due::Renew => {
                        tries += 1;
                        timer.failed(now, random);
                    }
                    Due::At(next) => {
                        prop_assert!(next > now && next <= now + MAX_RETRY && next <= start + 2 * HOUR);
                        now = next;
                    }
                    Due::Acquire => break,
                    Due::Never => return Err(TestCaseError::fail("given up")),
                }
            }
            prop_assert!(tries >= 60);
        }
    }
}
