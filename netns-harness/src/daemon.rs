//! A program that runs in the background inside a namespace.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::{Error, tool};

/// A running program; dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// The program gets a process group of its own, so that Ctrl-C in the
    /// terminal reaches the owner of the lab and not its daemons.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Daemon, Error> {
        let shown = log.display().to_string();
        let file = File::options().create(true).append(true).open(&log).map_err(Error::io(shown.clone()))?;
        let second = file.try_clone().map_err(Error::io(shown))?;
        command.stdin(Stdio::null()).stdout(file).stderr(second).process_group(0);
        let child = command.spawn().map_err(|error| tool::cannot_start(command, error))?;
        Ok(Daemon { child, log })
    }

    /// The program's own process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where standard output and standard error go.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log, or why it cannot be read.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = match fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return format!("{}: {error}", self.log.display()),
        };
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(Error::io(format!("process {}", self.child.id())))
    }

    /// Stops the program where it is (SIGSTOP): a daemon that hangs or is slow.
    /// Returns when it stands.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.signal(Signal::STOP)?;
        let Some(pid) = self.live_pid()? else { return Ok(()) };
        // NOWAIT leaves the reaping of one that ends instead to `exited`.
        let events = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), events).map(drop).map_err(|errno| self.refused(errno))
    }

    /// Lets a paused program go on.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) -> Result<ExitStatus, Error> {
        self.signal(Signal::KILL)?;
        self.child.wait().map_err(Error::io(format!("process {}", self.child.id())))
    }

    /// SIGTERM, and waits for the end; a paused program goes on first.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT)?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err(Error::Timeout { what: format!("end of process {} after SIGTERM", self.pid()), limit })
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let Some(pid) = self.live_pid()? else { return Ok(()) };
        kill_process(pid, signal).map_err(|errno| self.refused(errno))
    }

    /// None once the process has ended: a reaped child's number may belong to
    /// another process by now.
    fn live_pid(&mut self) -> Result<Option<Pid>, Error> {
        match self.exited()? {
            Some(_) => Ok(None),
            None => Ok(i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)),
        }
    }

    fn refused(&self, errno: Errno) -> Error {
        Error::io(format!("process {}", self.child.id()))(errno.into())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only where the process has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
