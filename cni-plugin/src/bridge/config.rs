use serde_json::json;
use weft::model::{IfName, Mac};

use super::masq::Backend;
use super::vlan::Vlans;
use crate::kernel::Port;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::fields::Fields;
use crate::protocol::request::Request;
use crate::protocol::result::Dns;

/// A bridge config, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: IfName,
    pub is_gateway: bool,
    pub is_default_gateway: bool,
    pub force_address: bool,
    pub promiscuous: bool,
    pub mtu: Option<u32>,
    pub port: Port,
    pub vlans: Vlans,
    /// Frames from the container must have its interface's MAC.
    pub checks_mac: bool,
    /// The container's interface is left to others: down, without addresses.
    pub interface_disabled: bool,
    /// Of the container's interface.
    pub mac: Option<Mac>,
    pub detects_duplicates: bool,
    pub masq: Option<Backend>,
    pub dns: Dns,
}

impl Config {
    pub fn parse(conf: &Conf, request: &Request) -> Result<Config> {
        let fields = conf.fields();
        let (hairpin, promiscuous) = (fields.bool("hairpinMode")?, fields.bool("promiscMode")?);
        if hairpin && promiscuous {
            return Err(fields.wrong("promiscMode", "false, since hairpinMode is true"));
        }
        let is_default_gateway = fields.bool("isDefaultGateway")?;
        let name = fields.parsed("bridge", "an interface name of at most 15 bytes")?;
        let dns = fields.get("dns").map_or_else(|| json!({}), Clone::clone);
        Ok(Config {
            name: name.map_or_else(|| "cni0".parse(), Ok).map_err(Error::internal)?,
            is_gateway: fields.bool("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: fields.bool("forceAddress")?,
            promiscuous,
            mtu: mtu(&fields)?,
            port: Port { hairpin, isolated: fields.bool("portIsolation")? },
            vlans: Vlans::parse(&fields)?,
            checks_mac: fields.bool("macspoofchk")?,
            interface_disabled: interface_disabled(&fields)?,
            mac: container_mac(conf, request)?,
            detects_duplicates: fields.bool("enabledad")?,
            masq: if fields.bool("ipMasq")? { Some(Backend::parse(&fields)?) } else { None },
            dns: serde_json::from_value(dns)
                .map_err(|e| fields.wrong("dns", format_args!("CNI's dns ({e})")))?,
        })
    }
}

fn interface_disabled(fields: &Fields<'_>) -> Result<bool> {
    let ipam = fields.object("ipam")?.map(|ipam| ipam.text("type")).transpose()?.flatten();
    match fields.bool("disableContainerInterface")? {
        true if ipam.is_some_and(|name| !name.is_empty()) => {
            Err(fields.wrong("disableContainerInterface", "false, since ipam.type is given"))
        }
        disabled => Ok(disabled),
    }
}

/// runtimeConfig.mac, then args.cni.mac, then MAC of CNI_ARGS.
fn container_mac(conf: &Conf, request: &Request) -> Result<Option<Mac>> {
    let fields = conf.fields();
    let cni = fields.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
    for place in [fields.object("runtimeConfig")?, cni].into_iter().flatten() {
        let expected = "a unicast MAC address such as 0e:2a:00:00:00:01";
        let Some(mac) = place.parsed::<Mac>("mac", expected)? else { continue };
        return if mac.is_unicast() { Ok(Some(mac)) } else { Err(place.wrong("mac", expected)) };
    }
    Ok(request.args.mac)
}

/// 0 leaves it to the kernel, as no value does.
fn mtu(fields: &Fields<'_>) -> Result<Option<u32>> {
    match fields.number("mtu", 0..=65535)? {
        None | Some(0) => Ok(None),
        Some(1..68) => Err(fields.wrong("mtu", "0 or a number from 68 to 65535")),
        mtu => Ok(mtu),
    }
}
