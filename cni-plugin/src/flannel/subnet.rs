use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use weft::model::SubnetEnv;

use crate::protocol::error::{Code, Error, Result};

const STEP: Duration = Duration::from_millis(20);

/// For a daemon that is starting, `limit` at most: the runtime tries again later,
/// so this only bridges the race.
pub fn wait(path: &Path, limit: Duration) -> Result<SubnetEnv> {
    let deadline = Instant::now() + limit;
    loop {
        match read(path) {
            Err(e) if e.code == Code::TryAgainLater as u64 && Instant::now() < deadline => {
                thread::sleep(STEP);
            }
            result => return result,
        }
    }
}

/// Whether ADD could work now.
pub fn status(path: &Path) -> Result<SubnetEnv> {
    read(path).map_err(|e| Error { code: Code::NotAvailable as u64, ..e })
}

pub fn read(path: &Path) -> Result<SubnetEnv> {
    let place = path.display();
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            Code::TryAgainLater,
            format!("subnet file {place} is not there yet: weft's (or flannel's) daemon writes it"),
        )
        .details("is the daemon running on this node, and does it reach its store? See its log."),
        _ => Error::io("read subnet file", path, &e),
    })?;
    SubnetEnv::parse(&text).map_err(|e| Error::new(Code::Decoding, format!("subnet file {place}: {e}")))
}
