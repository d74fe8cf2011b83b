//! Removing a lab: by its owner, by the guard after the owner's death, by a sweep.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{PREFIX, RUN_DIR};
use crate::netns::{NETNS_DIR, ip_batch};
use crate::{Error, tool};

/// What the guard runs: a fixed text, the lab's name is its argument.
const SCRIPT: &str = include_str!("guard.sh");

/// A small process in a session of its own that outlives the owner by as long
/// as it takes to remove the lab.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
}

impl Guard {
    pub(crate) fn start(lab: &str) -> Result<Guard, Error> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "weft-lab-guard", lab]).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: setsid is one system call and async-signal-safe.
        unsafe {
            command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
        }
        let child = command.spawn().map_err(|error| tool::cannot_start(&command, error))?;
        Ok(Guard { child })
    }

    /// The lab is removed: nothing is left to guard.
    pub(crate) fn release(mut self) -> Result<(), Error> {
        let what = "the lab's guard";
        if let Some(mut pipe) = self.child.stdin.take() {
            pipe.write_all(b"done\n").map_err(Error::io(what))?;
        }
        self.child.wait().map(drop).map_err(Error::io(what))
    }
}

/// Ends all processes in the lab's namespaces, then removes namespaces and
/// directory. What is gone already is no error, and what another thread is just
/// making in there is removed in turn.
pub(crate) fn remove_lab(lab: &str) -> Result<(), Error> {
    let mut tries = 10;
    loop {
        match remove_once(lab) {
            Err(_) if tries > 1 => tries -= 1,
            result => return result,
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_once(lab: &str) -> Result<(), Error> {
    let namespaces = namespaces(lab)?;
    // Held open, no other namespace takes over their identities meanwhile.
    let open = |name: &String| File::open(Path::new(NETNS_DIR).join(name)).ok();
    let files: Vec<File> = namespaces.iter().filter_map(open).collect();
    let inside: HashSet<Identity> =
        files.iter().filter_map(|file| file.metadata().ok()).map(|meta| identity(&meta)).collect();
    kill_inside(&inside)?;
    let lines: Vec<String> = namespaces.iter().map(|name| format!("netns del {name}")).collect();
    let deleted = ip_batch(Command::new("ip").arg("-force"), &lines);
    // The guard may be at it as well: what counts is that they are gone.
    if !self::namespaces(lab)?.is_empty() {
        deleted?;
    }
    // Whoever was on the way in has arrived by now, and nobody can follow.
    kill_inside(&inside)?;
    let dir = Path::new(RUN_DIR).join(lab);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(dir.display().to_string())(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn sweep() -> Result<Vec<String>, Error> {
    let mut labs = HashSet::new();
    for place in [NETNS_DIR, RUN_DIR] {
        labs.extend(entries(place)?.iter().filter_map(|name| lab_of_dead_owner(name)));
    }
    for lab in &labs {
        remove_lab(lab)?;
    }
    Ok(labs.into_iter().collect())
}

/// `weft-LABEL.PID[.NODE…]` of a process that is no more, as `weft-LABEL.PID`.
fn lab_of_dead_owner(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '.');
    let (label, pid) = (parts.next()?, parts.next()?);
    let pid: u32 = pid.parse().ok()?;
    (!Path::new(&format!("/proc/{pid}")).exists()).then(|| format!("{PREFIX}{label}.{pid}"))
}

fn namespaces(lab: &str) -> Result<Vec<String>, Error> {
    let prefix = format!("{lab}.");
    Ok(entries(NETNS_DIR)?.into_iter().filter(|name| name.starts_with(&prefix)).collect())
}

/// `kill -9` until nothing runs inside any more: a process may just be starting
/// another one.
fn kill_inside(inside: &HashSet<Identity>) -> Result<(), Error> {
    let limit = Duration::from_secs(5);
    let deadline = Instant::now() + limit;
    loop {
        let pids = processes_in(inside)?;
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: format!("end of processes {pids:?}"), limit });
        }
        for pid in pids {
            // It may have ended by itself in between.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The processes whose network namespace is one of these, but for our own.
fn processes_in(inside: &HashSet<Identity>) -> Result<Vec<Pid>, Error> {
    let own = process::id();
    let pids = entries("/proc")?.into_iter().filter_map(|name| name.parse::<u32>().ok());
    // A zombie is in no namespace.
    let netns = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| identity(&meta));
    let within = pids.filter(|&pid| pid != own && netns(pid).is_ok_and(|netns| inside.contains(&netns)));
    Ok(within.filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw)).collect())
}

/// What tells namespaces apart: device and inode of the file that stands for it.
type Identity = (u64, u64);

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino())
}

/// The names in a directory, empty where there is none.
fn entries(dir: &str) -> Result<Vec<String>, Error> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(dir)(error)),
    }
}
