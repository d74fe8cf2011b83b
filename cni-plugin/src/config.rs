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
            ipam: copy(fields.object("ipam")?.and_then(|_| fields.get("ipam"))),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.17.1/24\n\
                       FLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_default_conflist_renders_as_flannel_renders_it() {
        let conf = json!({ "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel",
            "delegate": { "hairpinMode": true, "isDefaultGateway": true } });
        let expected = json!({ "cniVersion": "0.3.1", "hairpinMode": true, "ipMasq": false, "isDefaultGateway": true,
            "isGateway": true, "mtu": 1500, "name": "cbr0", "type": "bridge",
            "ipam": { "ranges": [[{ "subnet": "10.5.17.0/24" }]], "routes": [{ "dst": "10.5.0.0/16" }],
                "type": "host-local" } });
        assert_eq!(Value::Object(render(&conf, ENV).unwrap().conf), expected);
    }

    #[test]
    fn what_the_conflist_says_wins_over_the_defaults() {
        let conf = json!({ "cniVersion": "1.0.0", "name": "n", "runtimeConfig": { "mac": "0e:00:00:00:00:01" },
            "ipam": { "type": "static", "foo": 1, "ranges": "overwritten",
                "routes": [{ "dst": "192.168.0.0/16", "gw": "10.5.17.9" }] },
            "delegate": { "type": "ptp", "mtu": 1400, "ipMasq": true } });
        let rendered = Value::Object(
            render(&conf, &ENV.replace("10.5.0.0/16", "10.5.0.0/16,10.6.0.0/16")).unwrap().conf,
        );
        let expected = json!({ "cniVersion": "1.0.0", "name": "n", "type": "ptp", "mtu": 1400, "ipMasq": true,
            "runtimeConfig": { "mac": "0e:00:00:00:00:01" },
            "ipam": { "type": "static", "foo": 1, "ranges": [[{ "subnet": "10.5.17.0/24" }]],
                "routes": [{ "dst": "192.168.0.0/16", "gw": "10.5.17.9" },
                    { "dst": "10.5.0.0/16" }, { "dst": "10.6.0.0/16" }] } });
        assert_eq!(rendered, expected);
    }

    #[test]
    fn errors_name_the_field_its_value_and_what_is_accepted() {
        for (conf, part) in [
            (json!({ "name": "../x" }), "name: \"../x\": expected a letter or digit"),
            (
                json!({ "name": "n", "delegate": { "name": "x" } }),
                "delegate.name: \"x\": expected no such field",
            ),
            (json!({ "name": "n", "delegate": { "type": 7 } }), "delegate.type: 7: expected a string"),
            (
                json!({ "name": "n", "delegate": { "type": "../../bin/sh" } }),
                "type: \"../../bin/sh\": expected a plugin's name",
            ),
            (
                json!({ "name": "n", "ipam": { "type": "/bin/sh" } }),
                "ipam.type: \"/bin/sh\": expected a plugin's name",
            ),
            (
                json!({ "name": "n", "ipam": { "routes": [{ "dst": "x" }] } }),
                "ipam.routes[0]: {\"dst\":\"x\"}: expected {\"dst\"",
            ),
            (json!({ "name": "n", "cniVersion": "9.9" }), "cniVersion is \"9.9\", supported are 0.1.0"),
        ] {
            let error = render(&conf, ENV).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(
            bytes: Vec<u8>,
            text in "\\PC{0,80}",
            key in "(name|delegate|ipam|args|runtimeConfig|prevResult|dataDir)",
            value in json_value(),
        ) {
            let _ = Config::parse(&bytes);
            let _ = crate::request::Args::parse(&text);
            let _ = render(&json!({ "name": "n", key: value }), ENV);
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from)
        ];
        let keys = "(type|name|ipam|routes|ranges|dst|gw|ips|cni|mac|interfaces|ip4|dns)";
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(keys, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn render(conf: &Value, env: &str) -> Result<Delegate> {
        Config::parse(conf.to_string().as_bytes())?.render(&SubnetEnv::parse(env).unwrap())
    }
}
