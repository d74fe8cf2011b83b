//! Sysctls of the container's namespace, and its interface's MAC, MTU, flags and
//! queue length (containernetworking/plugins plugins/meta/tuning).

pub mod backup;
mod sysctls;

use std::fmt::Display;

use weft::model::IfName;

use crate::chain::{Plugin, Site, Valid};
use crate::kernel::Kernel;
use crate::kernel::netns::NetNs;
use crate::kernel::settings::Settings;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Code, Error, Result};
use crate::protocol::fields::Fields;
use crate::protocol::result::Attachment;
use crate::records::Records;
use backup::Backup;
use sysctls::Sysctls;

const DATA_DIR: &str = "/run/cni/tuning";

#[derive(Debug)]
pub struct Tuning(Conf);

impl Tuning {
    pub fn new(conf: Conf) -> Tuning {
        Tuning(conf)
    }

    fn backups(&self) -> Result<Records> {
        Ok(Records::at(self.0.fields().text("dataDir")?.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR)))
    }
}

/// What a config asks for, checked.
#[derive(Debug)]
pub struct Wanted {
    sysctls: Sysctls,
    settings: Settings,
}

impl Wanted {
    /// `args.cni` is stronger than the plugin's own fields. Of MACs, that of
    /// `runtimeConfig` and before it that of `CNI_ARGS` come between.
    pub fn parse(conf: &Conf, site: &Site) -> Result<Wanted> {
        let own = &conf.fields();
        let args = own.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
        let runtime = own.object("runtimeConfig")?;
        let strongest = |key: &str| args.as_ref().filter(|args| args.get(key).is_some()).unwrap_or(own);
        let switch = |key: &str| {
            let fields = strongest(key);
            fields.get(key).map(|_| fields.bool(key)).transpose()
        };
        let mac = |fields: Option<&Fields<'_>>| {
            fields.map(|fields| fields.parsed("mac", "a MAC address")).transpose().map(Option::flatten)
        };
        let (own_mac, runtime_mac, args_mac) = (mac(Some(own))?, mac(runtime.as_ref())?, mac(args.as_ref())?);
        Ok(Wanted {
            sysctls: Sysctls::parse([Some(own), args.as_ref()].into_iter().flatten())?,
            settings: Settings {
                mac: args_mac.or(runtime_mac).or(site.request.args.mac).or(own_mac),
                promiscuous: switch("promisc")?.filter(|on| *on),
                mtu: strongest("mtu").number("mtu", 0..=u32::MAX)?.filter(|mtu| *mtu > 0),
                all_multicast: switch("allmulti")?,
                tx_queue_len: strongest("txQLen").number("txQLen", 0..=u32::MAX)?,
            },
        })
    }
}

impl Plugin for Tuning {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        if *result == Attachment::default() {
            let msg = "prevResult: missing: tuning goes after a plugin that makes the interface";
            return Err(Error::new(Code::NetworkConfig, msg));
        }
        let Wanted { sysctls, settings } = Wanted::parse(&self.0, site)?;
        sysctls.must_be_allowed()?;
        let (ifname, backups) = (site.request.ifname, self.backups()?);
        NetNs::of(&site.request)?.enter(|| {
            sysctls.write(ifname)?;
            if settings.is_empty() { Ok(()) } else { apply(ifname, &settings, &Backup::of(&backups, site)) }
        })?;
        for interface in result.interfaces.iter_mut().filter(|i| i.name == ifname.as_str()) {
            if let Some(mac) = settings.mac {
                interface.mac = mac.to_string();
            }
        }
        Ok(())
    }

    /// An interface outlives the container if another plugin moves it back to the
    /// host, so it gets its old settings back. What cannot be restored does not
    /// keep the container from going.
    fn del(&self, site: &Site, _: Option<&Attachment>) -> Result<()> {
        let backups = self.backups()?;
        let backup = Backup::of(&backups, site);
        let Some(settings) = backup.load()? else { return backup.remove() };
        let netns = NetNs::existing_of(&site.request)?;
        if let Some(netns) = netns
            && let Err(e) = netns.enter(|| restore(site.request.ifname, &settings))
        {
            eprintln!("weft-cni: {e}: not restored");
        }
        backup.remove()
    }

    fn check(&self, site: &Site, _: &Attachment) -> Result<()> {
        let Wanted { sysctls, settings } = Wanted::parse(&self.0, site)?;
        let ifname = site.request.ifname;
        NetNs::of(&site.request)?.enter(|| {
            sysctls.check(ifname)?;
            check_settings(ifname, &settings)
        })
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        backup::collect_garbage(&self.backups()?, network, valid)
    }
}

/// Inside the container. The backup stands before the first change.
fn apply(ifname: IfName, settings: &Settings, backup: &Backup<'_>) -> Result<()> {
    let mut kernel = Kernel::open()?;
    let before = settings.now(&kernel.existing_link(ifname)?);
    backup.save(&before)?;
    let done = kernel.set(ifname, settings);
    if done.is_err() {
        kernel.set(ifname, &before)?;
        backup.remove()?;
    }
    done
}

fn restore(ifname: IfName, settings: &Settings) -> Result<()> {
    let mut kernel = Kernel::open()?;
    if kernel.link(ifname)?.is_none() {
        return Ok(());
    }
    kernel.set(ifname, settings)
}

fn check_settings(ifname: IfName, expected: &Settings) -> Result<()> {
    // Not asked for is asked to be off, for the reference plugin.
    let expected = Settings { promiscuous: expected.promiscuous.or(Some(false)), ..*expected };
    let now = expected.now(&Kernel::open()?.existing_link(ifname)?);
    compare(ifname, "address", now.mac, expected.mac)?;
    compare(ifname, "promisc", now.promiscuous, expected.promiscuous)?;
    compare(ifname, "mtu", now.mtu, expected.mtu)?;
    compare(ifname, "allmulticast", now.all_multicast, expected.all_multicast)?;
    compare(ifname, "txqueuelen", now.tx_queue_len, expected.tx_queue_len)
}

fn compare<T: Display + PartialEq>(
    ifname: IfName,
    what: &str,
    now: Option<T>,
    expected: Option<T>,
) -> Result<()> {
    match (now, expected) {
        (Some(now), Some(expected)) if now != expected => {
            Err(Error::internal(format_args!("interface {ifname}: {what} is {now}, expected {expected}")))
        }
        (None, Some(expected)) => {
            Err(Error::internal(format_args!("interface {ifname}: has no {what}, expected {expected}")))
        }
        _ => Ok(()),
    }
}
