use std::time::Duration;

/// How often something took how long: what a histogram of Prometheus says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// Of each of `BOUNDS`, and of what took longer, those that no lower one has.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

/// Upper bounds, in milliseconds: from one route on a quiet kernel to a device
/// made anew with ten thousand of them.
const BOUNDS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000];

impl Durations {
    pub fn add(&mut self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took <= Duration::from_millis(*bound));
        self.counts[bucket.unwrap_or(BOUNDS.len())] += 1;
        self.sum += took;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Each upper bound in seconds, the last without end, and how many took
    /// longer than the bound before and no longer than it.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(|bound| Duration::from_millis(*bound).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lies_in_the_lowest_bucket_that_holds_it() {
        let mut durations = Durations::default();
        for micros in [10, 1000, 1001, 60_000_000] {
            durations.add(Duration::from_micros(micros));
        }
        let filled: Vec<_> = durations.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.001, 2), (0.002, 1), (f64::INFINITY, 1)]);
        assert_eq!((durations.count(), durations.sum()), (4, Duration::from_micros(60_002_011)));
    }
}
