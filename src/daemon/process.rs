//! This process as the kernel sees it (proc(5)), under the names that all
//! exporters give it.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use super::metrics::Out;

/// What the kernel did not tell is absent.
#[derive(Debug, Default)]
pub struct Process {
    /// Resident memory, in bytes.
    pub resident: Option<u64>,
    /// CPU time used, of user and system.
    pub cpu: Option<Duration>,
    /// Since it began, whatever was done to the clock meanwhile.
    pub age: Option<Duration>,
}

impl Process {
    pub fn read() -> Process {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name in parentheses may hold anything; field 3 follows it.
        let fields: Vec<u64> = match stat.rsplit_once(')') {
            Some((_, rest)) => rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect(),
            None => Vec::new(),
        };
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let of_ticks = |count: u64| Duration::from_millis(count.saturating_mul(1000) / ticks);
        Process {
            resident: field(24).map(|pages| pages.saturating_mul(rustix::param::page_size() as u64)),
            cpu: field(14).zip(field(15)).map(|(user, system)| of_ticks(user + system)),
            age: field(22).map(|after| since_boot().saturating_sub(of_ticks(after))),
        }
    }

    pub(super) fn encode(&self, out: &mut Out<'_>) -> fmt::Result {
        if let Some(bytes) = self.resident {
            out.bytes("process_resident_memory", "Resident memory.", bytes)?;
        }
        if let Some(cpu) = self.cpu {
            out.seconds_counted("process_cpu", "CPU time used, of user and system.", cpu.as_secs_f64())?;
        }
        if let Some(age) = self.age {
            out.timestamp("process_start_time", "When the process began.", SystemTime::now() - age)?;
        }
        Ok(())
    }
}

/// The clock that field 22 is of.
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
