//! The lab: a switch, the hosts on it, their containers, and cuts between them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io, process};

use crate::cleanup::{self, Guard};
use crate::netns::{self, Netns};
use crate::{Error, tool, wait_until};

/// Where the labs' directories stand: a tmpfs on most machines.
pub(crate) const RUN_DIR: &str = "/run";
/// What the names of all labs begin with.
pub(crate) const PREFIX: &str = "weft-";

/// Hosts and containers around one switch. Clones are handles to the same lab;
/// it is removed with the last of them, or by [`Lab::remove`].
///
/// The switch is a namespace with a bridge `br0` (`br1`, … for further segments)
/// that routes between segments. Segment `n` is `192.168.(77+n).0/24` and
/// `fd77:n::/64`; the switch is `.254` and `::fe` in each and the hosts' default
/// route. A host's port on the switch is called as the host.
#[derive(Clone, Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What may differ between hosts.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// Segment on the switch, 0 to 9, made on first use. Hosts of one segment
    /// are neighbours; another segment is behind a router.
    pub segment: u8,
    /// MTU of `eth0`, in bytes.
    pub mtu: u32,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { segment: 0, mtu: 1500 }
    }
}

/// A host: a namespace with `eth0` on the switch, both families, forwarding on.
#[derive(Clone, Debug)]
pub struct Host {
    netns: Netns,
    port: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
}

impl Lab {
    /// An empty lab: the switch and one segment. `label` is for people (1 to 15
    /// of `a-z`, `0-9`, `-`) and need not be unique.
    pub fn new(label: &str) -> Result<Lab, Error> {
        check_name(label)?;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let name = claim_name(label)?;
        let dir = Path::new(RUN_DIR).join(&name);
        // The guard stands before the first namespace: from here on a crash at
        // any point is cleaned up after.
        let guard = match Guard::start(&name) {
            Ok(guard) => guard,
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                return Err(error);
            }
        };
        let switch = Netns::new(format!("{name}.switch"), dir.clone());
        let state = State { guard: Some(guard), segments: BTreeSet::new(), hosts: 0 };
        let lab = Lab { inner: Arc::new(Inner { name, dir, switch, state: Mutex::new(state) }) };
        lab.build_switch()?;
        Ok(lab)
    }

    /// `weft-LABEL.PID`: what the names of all its namespaces begin with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The lab's directory, for what its hosts share.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The switch's own namespace: a place for a server that every host reaches,
    /// at [`Lab::switch_ip4`].
    pub fn switch(&self) -> &Netns {
        &self.inner.switch
    }

    /// The switch's address in segment 0.
    pub fn switch_ip4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, 254)
    }

    /// A host on segment 0. Its name is 1 to 15 of `a-z`, `0-9`, `-`.
    pub fn host(&self, name: &str) -> Result<Host, Error> {
        self.host_with(name, HostOptions::default())
    }

    /// A host with other than the usual options.
    pub fn host_with(&self, name: &str, options: HostOptions) -> Result<Host, Error> {
        check_name(name)?;
        let mut state = self.open()?;
        let HostOptions { segment, mtu } = options;
        self.ensure_segment(&mut state, segment)?;
        if state.hosts >= 200 {
            return Err(Error::Full { what: format!("host {name}") });
        }
        state.hosts += 1;
        let number = state.hosts;
        let dir = self.inner.dir.join(name);
        fs::create_dir(&dir).map_err(Error::io(format!("host {name}: {}", dir.display())))?;
        let host = Host {
            netns: Netns::new(format!("{}.{name}", self.inner.name), dir),
            port: name.to_owned(),
            ip4: Ipv4Addr::new(192, 168, 77 + segment, number),
            ip6: Ipv6Addr::new(0xfd77, segment.into(), 0, 0, 0, 0, 0, number.into()),
        };
        self.wire(&host, segment, mtu)?;
        Ok(host)
    }

    /// A container's namespace, with nothing in it but loopback: what a runtime
    /// hands to a CNI plugin.
    pub fn pod(&self, host: &Host, name: &str) -> Result<Netns, Error> {
        check_name(name)?;
        let _state = self.open()?;
        let pod = Netns::new(format!("{}.{name}", host.name()), host.dir().to_owned());
        netns::ip_batch(&mut Command::new("ip"), &[format!("netns add {}", pod.name())])?;
        pod.ip_batch(&["link set lo up"])?;
        pod.sysctl("ipv4/ping_group_range", "0 2147483647")?;
        Ok(pod)
    }

    /// Pulls the host's cable: its `eth0` loses carrier.
    pub fn cut(&self, host: &Host) -> Result<(), Error> {
        self.switch().ip_batch(&[format!("link set {} down", host.port)])
    }

    /// Plugs the host's cable in again.
    pub fn mend(&self, host: &Host) -> Result<(), Error> {
        self.switch().ip_batch(&[format!("link set {} up", host.port)])
    }

    /// Drops every IP packet from one host's `eth0` to the other's addresses, in
    /// that direction only; neither sees its link change. Cut both ways for a
    /// partition.
    pub fn cut_one_way(&self, from: &Host, to: &Host) -> Result<(), Error> {
        self.one_way("add", from, to)
    }

    /// Takes back [`Lab::cut_one_way`].
    pub fn mend_one_way(&self, from: &Host, to: &Host) -> Result<(), Error> {
        self.one_way("delete", from, to)
    }

    /// Cuts two hosts off from each other, in both directions, and from nobody
    /// else.
    pub fn cut_between(&self, a: &Host, b: &Host) -> Result<(), Error> {
        self.cut_one_way(a, b)?;
        self.cut_one_way(b, a)
    }

    /// Takes back [`Lab::cut_between`].
    pub fn mend_between(&self, a: &Host, b: &Host) -> Result<(), Error> {
        self.mend_one_way(a, b)?;
        self.mend_one_way(b, a)
    }

    /// Removes processes, namespaces and the directory. Later calls on this lab
    /// or its nodes fail; removing twice is no error.
    pub fn remove(&self) -> Result<(), Error> {
        self.inner.remove()
    }

    /// Removes the labs whose process is gone and whose guard was killed too;
    /// returns their names.
    pub fn sweep() -> Result<Vec<String>, Error> {
        cleanup::sweep()
    }

    fn build_switch(&self) -> Result<(), Error> {
        let switch = self.switch();
        let mut state = self.open()?;
        netns::ip_batch(&mut Command::new("ip"), &[format!("netns add {}", switch.name())])?;
        switch.sysctl("ipv4/ip_forward", "1")?;
        switch.sysctl("ipv6/conf/all/forwarding", "1")?;
        switch.sysctl("ipv4/ping_group_range", "0 2147483647")?;
        // Without a wait for duplicates the router answers from its first second.
        switch.sysctl("ipv6/conf/default/accept_dad", "0")?;
        switch.ip_batch(&["link set lo up"])?;
        self.ensure_segment(&mut state, 0)
    }

    fn ensure_segment(&self, state: &mut State, segment: u8) -> Result<(), Error> {
        if segment > 9 {
            return Err(Error::Full { what: format!("segment {segment}") });
        }
        if !state.segments.insert(segment) {
            return Ok(());
        }
        self.switch().ip_batch(&[
            // A bridge without an address of its own changes it as ports join.
            format!(
                "link add br{segment} address 02:00:00:00:77:0{segment} type bridge forward_delay 0 mcast_snooping 0"
            ),
            format!("addr add 192.168.{}.254/24 dev br{segment}", 77 + segment),
            format!("addr add fd77:{segment}::fe/64 dev br{segment} nodad"),
            format!("link set br{segment} up"),
        ])
    }

    /// Makes the host's namespace and its cable, whose ends are never outside.
    fn wire(&self, host: &Host, segment: u8, mtu: u32) -> Result<(), Error> {
        let Host { netns, port, ip4, ip6 } = host;
        let (inside, switch) = (netns.name(), self.switch().name());
        netns::ip_batch(
            &mut Command::new("ip"),
            &[
                format!("netns add {inside}"),
                format!(
                    "link add {port} mtu {mtu} netns {switch} type veth peer name eth0 mtu {mtu} netns {inside}"
                ),
            ],
        )?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        netns.sysctl("ipv6/conf/all/forwarding", "1")?;
        netns.sysctl("ipv4/ping_group_range", "0 2147483647")?;
        netns.sysctl("ipv6/conf/eth0/accept_dad", "0")?;
        self.switch().ip_batch(&[format!("link set {port} addrgenmode none master br{segment} up")])?;
        netns.ip_batch(&[
            "link set lo up".to_owned(),
            format!("addr add {ip4}/24 dev eth0"),
            format!("addr add {ip6}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("route add default via 192.168.{}.254", 77 + segment),
            format!("route add default via fd77:{segment}::fe"),
        ])?;
        let router = [
            IpAddr::from([192, 168, 77 + segment, 254]),
            IpAddr::from([0xfd77, segment.into(), 0, 0, 0, 0, 0, 0xfe]),
        ];
        // The kernel brings a link into service in its own time.
        wait_until(Duration::from_secs(5), &format!("host {port} on the switch"), || {
            router.iter().all(|&address| netns.reaches(address))
        })
        .map(drop)
    }

    fn one_way(&self, verb: &str, from: &Host, to: &Host) -> Result<(), Error> {
        let (port, ip4, ip6) = (&from.port, to.ip4, to.ip6);
        let script = format!(
            "add table bridge lab
             add set bridge lab cut4 {{ type ifname . ipv4_addr; }}
             add set bridge lab cut6 {{ type ifname . ipv6_addr; }}
             add chain bridge lab cuts {{ type filter hook prerouting priority -300; }}
             flush chain bridge lab cuts
             add rule bridge lab cuts iifname . ip daddr @cut4 drop
             add rule bridge lab cuts iifname . ip6 daddr @cut6 drop
             {verb} element bridge lab cut4 {{ {port} . {ip4} }}
             {verb} element bridge lab cut6 {{ {port} . {ip6} }}\n"
        );
        let _state = self.open()?;
        tool::run(self.switch().command("nft").args(["-f", "-"]), &script).map(drop)
    }

    /// Holds the lab still while something is made in it.
    fn open(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.inner.lock();
        if state.guard.is_some() { Ok(state) } else { Err(Error::Gone { name: self.inner.name.clone() }) }
    }
}

impl Host {
    /// The address of `eth0`, a /24.
    pub fn ip4(&self) -> IpAddr {
        self.ip4.into()
    }

    /// The address of `eth0`, a /64.
    pub fn ip6(&self) -> IpAddr {
        self.ip6.into()
    }
}

impl Deref for Host {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    dir: PathBuf,
    switch: Netns,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Gone once the lab has been removed.
    guard: Option<Guard>,
    segments: BTreeSet<u8>,
    hosts: u8,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in one test's thread leaves nothing half written in here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self) -> Result<(), Error> {
        let Some(guard) = self.lock().guard.take() else { return Ok(()) };
        // If this fails the guard is dropped unreleased, and tries in its turn.
        cleanup::remove_lab(&self.name)?;
        guard.release()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("lab {}: {error}", self.name);
        }
    }
}

/// Makes the lab's directory; that nobody else can make it too is the claim.
fn claim_name(label: &str) -> Result<String, Error> {
    let pid = process::id();
    let labels = std::iter::once(label.to_owned()).chain((2..1000).map(|n| format!("{label}-{n}")));
    for label in labels {
        let name = format!("{PREFIX}{label}.{pid}");
        match fs::create_dir(Path::new(RUN_DIR).join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| name.clone()).map_err(Error::io(format!("{RUN_DIR}/{name}"))),
        }
    }
    Err(Error::Full { what: format!("lab {label}") })
}

/// Names end up in device names (15 bytes), file names and nft scripts.
fn check_name(name: &str) -> Result<(), Error> {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=15).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('-') {
        return Ok(());
    }
    Err(Error::Name { name: name.to_owned() })
}
