//! Which plugins one process stands for.

use std::ffi::OsStr;
use std::path::Path;

use crate::bandwidth::Bandwidth;
use crate::bridge::Bridge;
use crate::chain::Chain;
use crate::firewall::Firewall;
use crate::flannel::Flannel;
use crate::ipam::HostLocalPlugin;
use crate::loopback::Loopback;
use crate::portmap::PortMap;
use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::version::Version;
use crate::tuning::Tuning;

/// Chosen by the name of the program, as a runtime finds it by the config's
/// `type`: one file is installed under all of them by links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything in one config, and any name not below.
    Weft,
    Flannel,
    Bridge,
    HostLocal,
    PortMap,
    Bandwidth,
    Firewall,
    Tuning,
    Loopback,
}

impl Kind {
    /// `program` is the process' first argument.
    pub fn of_program(program: &OsStr) -> Kind {
        match Path::new(program).file_name().and_then(OsStr::to_str) {
            Some("flannel") => Kind::Flannel,
            Some("bridge") => Kind::Bridge,
            Some("host-local") => Kind::HostLocal,
            Some("portmap") => Kind::PortMap,
            Some("bandwidth") => Kind::Bandwidth,
            Some("firewall") => Kind::Firewall,
            Some("tuning") => Kind::Tuning,
            Some("loopback") => Kind::Loopback,
            _ => Kind::Weft,
        }
    }

    /// The first version of the specification that the plugin is for.
    pub fn oldest(self) -> Version {
        match self {
            Kind::Bandwidth => Version::V0_3_0,
            Kind::Firewall => Version::V0_4_0,
            _ => Version::V0_1_0,
        }
    }

    pub fn chain(self, conf: &Conf) -> Result<Chain> {
        Ok(match self {
            Kind::Weft => integrated(conf)?,
            Kind::Flannel => Chain::of(Flannel::new(conf)?),
            Kind::Bridge => Chain::of(Bridge::new(conf.clone())),
            Kind::HostLocal => Chain::of(HostLocalPlugin::new(conf.clone())),
            Kind::PortMap => Chain::of(PortMap::new(conf.clone())),
            Kind::Bandwidth => Chain::of(Bandwidth::new(conf.clone())),
            Kind::Firewall => Chain::of(Firewall::new(conf.clone())),
            Kind::Tuning => Chain::of(Tuning::new(conf.clone())),
            Kind::Loopback => Chain::of(Loopback),
        })
    }
}

/// What one config asks for by a section for each plugin, in the order in which
/// they build on each other.
fn integrated(conf: &Conf) -> Result<Chain> {
    let fields = conf.fields();
    let mut chain = Chain::of(Flannel::new(conf)?);
    if fields.get("tuning").is_some() {
        chain = chain.then(Tuning::new(conf.section("tuning")?));
    }
    // The runtime asks for limits, as for ports, and need not ask again for DEL to
    // remove them.
    chain = chain.then(Bandwidth::new(conf.section("bandwidth")?));
    if fields.get("firewall").is_some() {
        chain = chain.then(Firewall::new(conf.section("firewall")?));
    }
    Ok(chain.then(PortMap::new(conf.section("portmap")?)))
}
