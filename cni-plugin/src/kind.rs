//! Which plugins one process stands for.

use std::ffi::OsStr;
use std::path::Path;

use crate::bridge::Bridge;
use crate::chain::Chain;
use crate::flannel::Flannel;
use crate::ipam::HostLocalPlugin;
use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::version::Version;

/// Chosen by the name of the program, as a runtime finds it by the config's
/// `type`: one file is installed under all of them by links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything in one config, and any name not below.
    Weft,
    Flannel,
    Bridge,
    HostLocal,
}

impl Kind {
    /// `program` is the process' first argument.
    pub fn of_program(program: &OsStr) -> Kind {
        match Path::new(program).file_name().and_then(OsStr::to_str) {
            Some("flannel") => Kind::Flannel,
            Some("bridge") => Kind::Bridge,
            Some("host-local") => Kind::HostLocal,
            _ => Kind::Weft,
        }
    }

    /// The first version of the specification that the plugin is for.
    pub fn oldest(self) -> Version {
        Version::V0_1_0
    }

    pub fn chain(self, conf: &Conf) -> Result<Chain> {
        Ok(match self {
            Kind::Weft | Kind::Flannel => Chain::of(Flannel::new(conf)?),
            Kind::Bridge => Chain::of(Bridge::new(conf.clone())),
            Kind::HostLocal => Chain::of(HostLocalPlugin::new(conf.clone())),
        })
    }
}
