//! The config of an attachment: flannel's fields, from which the config of a
//! delegate (bridge, unless named otherwise) and its IPAM are rendered as
//! flannel's own plugin renders them (flannel.go, flannel_linux.go).

use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};
use weft::model::SubnetEnv;

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, Object};
use crate::request::{IDENTIFIER, is_identifier};
use crate::result::{Attachment, Route};
use crate::version::Version;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// What came on standard input.
#[derive(Clone, Debug)]
pub struct Config {
    pub version: Version,
    /// `cniVersion` stood in the config, so the delegate's gets it too.
    has_version: bool,
    pub name: String,
    pub subnet_file: PathBuf,
    pub data_dir: PathBuf,
    pub prev_result: Option<Attachment>,
    delegate: Object,
    ipam: Object,
}

impl Config {
    pub fn parse(stdin: &[u8]) -> Result<Config> {
        let value: Value = serde_json::from_slice(stdin)
            .map_err(|e| Error::new(Code::Decoding, format!("network config on standard input: {e}")))?;
        let Value::Object(object) = &value else {
            return Err(Error::new(Code::Decoding, "network config on standard input: not a JSON object"));
        };
        let fields = Fields::root(object);
        let version = fields.text("cniVersion")?;
        let name = fields.text("name")?.unwrap_or_default();
        if !is_identifier(name) {
            return Err(Error::field("name", json!(name), IDENTIFIER));
        }
        Ok(Config {
            version: Version::of_config(version)?,
            has_version: version.is_some_and(|v| !v.is_empty()),
            name: name.to_owned(),
            subnet_file: fields.text("subnetFile")?.filter(|p| !p.is_empty()).unwrap_or(SUBNET_FILE).into(),
            data_dir: fields.text("dataDir")?.filter(|p| !p.is_empty()).unwrap_or(DATA_DIR).into(),
            prev_result: fields.get("prevResult").map(|v| Attachment::parse(v, "prevResult")).transpose()?,
            delegate: delegate(&fields)?,
            ipam: copy(fields.object("ipam")?.map(|_| fields.get("ipam")).flatten()),
        })
    }

    /// The delegate's config on this node.
    pub fn render(&self, env: &SubnetEnv) -> Result<Delegate> {
        let mut conf = self.delegate.clone();
        let mut ipam = self.ipam.clone();
        ipam.entry("type").or_insert_with(|| "host-local".into());
        let ranges: Vec<_> = env.subnet.iter().map(|(_, net)| json!([{ "subnet": masked(*net) }])).collect();
        ipam.insert("ranges".into(), ranges.into());
        let mut routes = parse_routes(&Fields::root(&self.ipam), "ipam.routes")?;
        routes
            .extend(env.networks.iter().flat_map(|(_, nets)| nets).map(|net| Route::to(masked(*net), None)));
        ipam.insert("routes".into(), json!(routes));

        conf.entry("ipMasq").or_insert_with(|| (!env.ip_masq).into());
        conf.entry("mtu").or_insert_with(|| env.mtu.into());
        self.finish(conf, ipam)
    }

    /// The delegate's config as far as it is known without `subnet.env`: all
    /// that DEL needs. Masquerading is taken to be on, so that it is looked for.
    pub fn render_without_subnet(&self) -> Result<Delegate> {
        let mut conf = self.delegate.clone();
        let mut ipam = self.ipam.clone();
        ipam.entry("type").or_insert_with(|| "host-local".into());
        conf.entry("ipMasq").or_insert_with(|| true.into());
        self.finish(conf, ipam)
    }

    fn finish(&self, mut conf: Object, ipam: Object) -> Result<Delegate> {
        conf.insert("name".into(), self.name.clone().into());
        if self.has_version {
            conf.insert("cniVersion".into(), self.version.as_str().into());
        }
        if conf.entry("type").or_insert_with(|| "bridge".into()) == "bridge" {
            conf.entry("isGateway").or_insert_with(|| true.into());
        }
        conf.insert("ipam".into(), ipam.into());
        Delegate::new(conf)
    }
}

/// A rendered config: what the bridge plugin would get on standard input. It is
/// saved for DEL, as flannel saves it.
#[derive(Clone, Debug, PartialEq)]
pub struct Delegate {
    pub conf: Object,
    /// `bridge`, or the name of a plugin in `CNI_PATH`.
    pub plugin: String,
    /// `host-local`, or the name of a plugin in `CNI_PATH`.
    pub ipam: String,
}

impl Delegate {
    pub fn new(conf: Object) -> Result<Delegate> {
        let fields = Fields::root(&conf);
        let plugin = plugin_name(&fields, "type")?;
        let ipam = fields.object("ipam")?.map(|ipam| plugin_name(&ipam, "type")).transpose()?;
        Ok(Delegate { plugin, ipam: ipam.unwrap_or_default(), conf })
    }

    pub fn parse(bytes: &[u8], path: &Path) -> Result<Delegate> {
        let conf = serde_json::from_slice(bytes)
            .map_err(|e| Error::new(Code::Decoding, format!("saved config {}: {e}", path.display())))?;
        Delegate::new(conf)
    }

    pub fn fields(&self) -> Fields<'_> {
        Fields::root(&self.conf)
    }

    pub fn name(&self) -> &str {
        self.conf.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        Value::Object(self.conf.clone()).to_string().into_bytes()
    }

    /// With the result of ADD, as CHECK and DEL of a plugin want it.
    pub fn with_prev_result(&self, prev: Option<&Attachment>, version: Version) -> Vec<u8> {
        let mut conf = self.conf.clone();
        if let Some(prev) = prev {
            conf.insert("prevResult".into(), prev.render(version));
        }
        Value::Object(conf).to_string().into_bytes()
    }
}

/// `routes` of an IPAM config; `at` is its place for errors.
pub fn parse_routes(ipam: &Fields<'_>, at: &str) -> Result<Vec<Route>> {
    let route = |(i, value): (usize, &Value)| {
        let expected = |e| format!("{{\"dst\":\"<subnet>\",\"gw\":\"<address>\"}} ({e})");
        Route::deserialize(value).map_err(|e| Error::field(format_args!("{at}[{i}]"), value, expected(e)))
    };
    ipam.list("routes")?.iter().enumerate().map(route).collect()
}

fn delegate(fields: &Fields<'_>) -> Result<Object> {
    let inner = fields.object("delegate")?;
    if let Some(inner) = &inner {
        inner.text("type")?;
        for key in ["name", "ipam"] {
            if inner.get(key).is_some() {
                return Err(inner.wrong(key, "no such field here: it is set from the network's own"));
            }
        }
    }
    let mut delegate = copy(inner.and(fields.get("delegate")));
    if let Some(runtime) = fields.object("runtimeConfig")?.and(fields.get("runtimeConfig")) {
        delegate.insert("runtimeConfig".into(), runtime.clone());
    }
    // flannel drops `args`, and with it `args.cni.ips` and `args.cni.mac`.
    if let Some(args) = fields.object("args")?.and(fields.get("args")) {
        delegate.entry("args").or_insert_with(|| args.clone());
    }
    Ok(delegate)
}

fn copy(value: Option<&Value>) -> Object {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// A `type` becomes the name of a program to run: never a path.
fn plugin_name(fields: &Fields<'_>, key: &str) -> Result<String> {
    let name = fields.text(key)?.unwrap_or_default();
    if name.contains('/') || name == "." || name == ".." {
        return Err(fields.wrong(key, "a plugin's name without path separators"));
    }
    Ok(name.to_owned())
}

fn masked(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}
