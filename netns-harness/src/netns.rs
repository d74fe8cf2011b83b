//! One network namespace: what runs in it and what is seen from it.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io, panic, thread};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Daemon, Error, tool};

/// Where iproute2 keeps named network namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A named network namespace and the private directory that goes with it: a
/// host, a container or the lab's switch. A cheap handle, valid until its lab
/// or the namespace itself is removed.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    dir: PathBuf,
}

impl Netns {
    /// A handle to the namespace `name`, which may not exist yet.
    pub(crate) fn new(name: String, dir: PathBuf) -> Netns {
        Netns { name, dir }
    }

    /// The name for `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace: `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// A directory of this node's own (subnet.env, CNI data, logs), removed with
    /// the lab. A container has its host's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that will run inside the namespace, as a direct child: its pid
    /// is the program's own. Only the network differs from the caller's view:
    /// `/sys/class/net` still shows the caller's devices (`ip netns exec` mounts
    /// another).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let path = CString::new(self.path().as_os_str().as_bytes());
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes two system calls and
        // allocates nothing.
        unsafe {
            command.pre_exec(move || match &path {
                Ok(path) => enter_thread(path),
                Err(_) => Err(io::ErrorKind::InvalidInput.into()),
            });
        }
        command
    }

    /// Runs a program inside to its end and returns its output; an exit status
    /// other than 0 is an error that carries what it printed.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<String, Error> {
        self.must_exist()?;
        tool::run(self.command(program).args(args), "")
    }

    /// `ip -j ARGS` inside, parsed: `ip_json("-d link show dev flannel.1")`.
    pub fn ip_json(&self, args: &str) -> Result<serde_json::Value, Error> {
        self.json("ip", args)
    }

    /// `bridge -j ARGS` inside, parsed: `bridge_json("fdb show dev flannel.1")`.
    pub fn bridge_json(&self, args: &str) -> Result<serde_json::Value, Error> {
        self.json("bridge", args)
    }

    /// Gives `ip -batch` its lines, inside.
    pub fn ip_batch<L: AsRef<str>>(&self, lines: &[L]) -> Result<(), Error> {
        self.must_exist()?;
        ip_batch(&mut self.command("ip"), lines)
    }

    /// Starts a program inside that goes on in the background until the returned
    /// guard is dropped. What it prints is appended to `DIR/NAME.log`.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Daemon, Error> {
        self.must_exist()?;
        Daemon::start(command, self.dir.join(format!("{name}.log")))
    }

    /// Runs a closure on a thread inside the namespace. Sockets it opens belong
    /// to the namespace for good, wherever they are used later.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let what = || format!("namespace {}", self.name);
        let path = CString::new(self.path().as_os_str().as_bytes())
            .map_err(|error| Error::Io { what: what(), source: error.into() })?;
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter_thread(&path)?;
                    Ok(inside())
                })
                .join()
        });
        match result {
            Ok(entered) => entered.map_err(Error::io(what())),
            Err(panicked) => panic::resume_unwind(panicked),
        }
    }

    /// Sets `/proc/sys/net/KEY`, such as `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| fs::write(path.as_str(), value))?.map_err(Error::io(path))
    }

    /// Removes the namespace, as a runtime does when a container is gone; what
    /// still runs inside keeps it alive unseen.
    pub fn remove(&self) -> Result<(), Error> {
        tool::run(Command::new("ip").args(["netns", "del", &self.name]), "").map(drop)
    }

    fn json(&self, program: &str, args: &str) -> Result<serde_json::Value, Error> {
        let args: Vec<&str> = std::iter::once("-j").chain(args.split_whitespace()).collect();
        let text = self.run(program, &args)?;
        // iproute2 prints nothing at all for an empty list of some objects.
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).map_err(|error| Error::Io {
            what: format!("{program} {}", args.join(" ")),
            source: error.into(),
        })
    }

    pub(crate) fn must_exist(&self) -> Result<(), Error> {
        if self.path().exists() { Ok(()) } else { Err(Error::Gone { name: self.name.clone() }) }
    }
}

/// `ip -batch -`, in whatever namespace `ip` starts.
pub(crate) fn ip_batch<L: AsRef<str>>(ip: &mut Command, lines: &[L]) -> Result<(), Error> {
    let text: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    tool::run(ip.args(["-batch", "-"]), &text).map(drop)
}

/// Moves the calling thread for good. Async-signal-safe.
fn enter_thread(path: &CString) -> io::Result<()> {
    let file = rustix::fs::open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}
