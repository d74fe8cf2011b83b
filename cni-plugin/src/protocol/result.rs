use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weft::model::{IfName, Mac};

use super::error::{Code, Error, Result};
use super::version::Version;

/// What ADD answers and CHECK and DEL get back as `prevResult` (SPEC.md,
/// "Success"), in the shape of version 1.1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// What another plugin answered beyond the specification: passed through.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(rename = "socketPath", default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    #[serde(rename = "pciID", default, skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Host bits set: the address itself and its subnet's prefix length.
    pub address: IpNetwork,
    #[serde(default, deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNetwork,
    #[serde(default, deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Interface {
    /// `sandbox` is the container's namespace, empty for the host.
    pub fn of(name: IfName, mac: Option<Mac>, sandbox: String) -> Interface {
        let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
        Interface { name: name.to_string(), mac, sandbox, ..Interface::default() }
    }
}

impl Route {
    pub fn to(dst: IpNetwork, gw: Option<IpAddr>) -> Route {
        Route { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

impl Attachment {
    /// As the config's version has it.
    pub fn render(&self, version: Version) -> Value {
        if version < Version::V0_3_0 {
            return self.render_by_family(version);
        }
        let mut out = json!(self);
        out["cniVersion"] = version.as_str().into();
        if version < Version::V1_0_0 {
            for (shown, ip) in out["ips"].as_array_mut().into_iter().flatten().zip(&self.ips) {
                shown["version"] = if ip.address.is_ipv4() { "4" } else { "6" }.into();
            }
            out["dns"] = json!(self.dns);
        }
        out
    }

    /// Before 0.3.0 there was one address a family and no interface.
    fn render_by_family(&self, version: Version) -> Value {
        let mut out = json!({ "cniVersion": version.as_str(), "dns": self.dns });
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
            let mut family = json!({ "ip": ip.address });
            if let Some(gateway) = ip.gateway {
                family["gateway"] = json!(gateway);
            }
            let routes = self.routes.iter().filter(|r| r.dst.is_ipv4() == v4);
            let routes: Vec<_> = routes.map(|r| Route::to(r.dst, r.gw)).collect();
            if !routes.is_empty() {
                family["routes"] = json!(routes);
            }
            out[key] = family;
        }
        out
    }

    /// A result of any version: `prevResult`, or what another plugin printed.
    /// `source` says which, for the error.
    pub fn parse(value: &Value, source: &str) -> Result<Attachment> {
        let wrong = |e: serde_json::Error| {
            Error::new(Code::Decoding, format!("{source}: not a CNI result: {e}")).details(value.to_string())
        };
        let mut out: Attachment = serde_json::from_value(value.clone()).map_err(wrong)?;
        for family in ["ip4", "ip6"].into_iter().filter_map(|key| value.get(key)) {
            let family: ByFamily = serde_json::from_value(family.clone()).map_err(wrong)?;
            out.ips.push(IpConfig { interface: None, address: family.ip, gateway: family.gateway });
            out.routes.extend(family.routes);
        }
        out.other.retain(|key, _| !matches!(key.as_str(), "cniVersion" | "ip4" | "ip6"));
        Ok(out)
    }
}

#[derive(Deserialize)]
struct ByFamily {
    ip: IpNetwork,
    #[serde(default, deserialize_with = "address")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<Route>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Go writes an empty list as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Go writes an address that is not there as an empty string.
fn address<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(d)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| serde::de::Error::custom(format!("{text:?} is not an IP address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_renders_its_own_shape_and_is_read_back() {
        let newest = json!({ "cniVersion": "1.1.0",
            "interfaces": [{ "name": "cni0", "mac": "0e:00:00:00:00:01" }, { "name": "eth0", "sandbox": "/n" }],
            "ips": [{ "interface": 1, "address": "10.5.1.2/24", "gateway": "10.5.1.1" }],
            "routes": [{ "dst": "10.5.0.0/16" }, { "dst": "0.0.0.0/0", "gw": "10.5.1.1" }] });
        let attachment = Attachment::parse(&newest, "test").unwrap();
        assert_eq!(attachment.render(Version::V1_1_0), newest);
        let old = attachment.render(Version::V0_3_1);
        assert_eq!((&old["ips"][0]["version"], &old["dns"]), (&json!("4"), &json!({})));
        assert_eq!(Attachment::parse(&old, "test").unwrap(), attachment);
        let oldest = attachment.render(Version::V0_2_0);
        assert_eq!(
            oldest,
            json!({ "cniVersion": "0.2.0", "dns": {},
            "ip4": { "ip": "10.5.1.2/24", "gateway": "10.5.1.1", "routes": newest["routes"] } })
        );
        assert_eq!(Attachment::parse(&oldest, "test").unwrap().routes, attachment.routes);
    }
}
