//! Which start of the machine this is, and when it was. No network namespace
//! outlives one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Drawn by the kernel anew at each start. `None` where it does not tell.
pub fn id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// Not after the start, by any clock the machine had since: what a file that was
/// written before has to be older than.
///
/// A machine without a battery-backed clock starts with an old time and is set
/// right later, by which files of this start would look older than it. So the
/// time of /proc's root counts, too: it was mounted early, by the clock as it
/// was then.
pub fn began() -> Option<SystemTime> {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::new(up.tv_sec.try_into().ok()?, up.tv_nsec.try_into().ok()?);
    let mounted = fs::metadata("/proc").ok()?.ctime();
    let mounted = SystemTime::UNIX_EPOCH + Duration::from_secs(mounted.try_into().ok()?);
    Some(SystemTime::now().checked_sub(up)?.min(mounted))
}
