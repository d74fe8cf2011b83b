//! The delegate's config, but for what only the node's subnet tells.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use weft::model::SubnetEnv;

use crate::ipam::parse_routes;
use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::fields::{Fields, Object};
use crate::protocol::result::Route;

/// What the network's config asks of the delegate, checked.
#[derive(Debug)]
pub struct Template<'a> {
    conf: &'a Conf,
    delegate: Object,
    ipam: Object,
}

impl Template<'_> {
    pub fn of(conf: &Conf) -> Result<Template<'_>> {
        let fields = conf.fields();
        let ipam = copy(fields.object("ipam")?.and_then(|_| fields.get("ipam")));
        Ok(Template { conf, delegate: delegate(&fields)?, ipam })
    }

    /// The delegate's config on this node.
    pub fn render(&self, env: &SubnetEnv) -> Result<Conf> {
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
    pub fn render_without_subnet(&self) -> Result<Conf> {
        let mut conf = self.delegate.clone();
        let mut ipam = self.ipam.clone();
        ipam.entry("type").or_insert_with(|| "host-local".into());
        conf.entry("ipMasq").or_insert_with(|| true.into());
        self.finish(conf, ipam)
    }

    fn finish(&self, mut conf: Object, ipam: Object) -> Result<Conf> {
        conf.insert("name".into(), self.conf.network.clone().into());
        if self.conf.has_version() {
            conf.insert("cniVersion".into(), self.conf.version.as_str().into());
        }
        if conf.entry("type").or_insert_with(|| "bridge".into()) == "bridge" {
            conf.entry("isGateway").or_insert_with(|| true.into());
        }
        conf.insert("ipam".into(), ipam.into());
        let fields = Fields::root(&conf);
        Conf::plugin_name(&fields, "type")?;
        fields.object("ipam")?.map(|ipam| Conf::plugin_name(&ipam, "type")).transpose()?;
        Conf::new(conf)
    }
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
        assert_eq!(render(&conf, ENV).unwrap(), expected);
    }

    #[test]
    fn what_the_conflist_says_wins_over_the_defaults() {
        let conf = json!({ "cniVersion": "1.0.0", "name": "n", "runtimeConfig": { "mac": "0e:00:00:00:00:01" },
            "ipam": { "type": "static", "foo": 1, "ranges": "overwritten",
                "routes": [{ "dst": "192.168.0.0/16", "gw": "10.5.17.9" }] },
            "delegate": { "type": "ptp", "mtu": 1400, "ipMasq": true } });
        let rendered = render(&conf, &ENV.replace("10.5.0.0/16", "10.5.0.0/16,10.6.0.0/16")).unwrap();
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
            let _ = Conf::parse(&bytes, "test");
            let _ = crate::protocol::request::Args::parse(&text);
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

    fn render(conf: &Value, env: &str) -> Result<Value> {
        let conf = Conf::parse(conf.to_string().as_bytes(), "test")?;
        let rendered = Template::of(&conf)?.render(&SubnetEnv::parse(env).unwrap())?;
        Ok(serde_json::from_slice(&rendered.to_bytes()).unwrap())
    }
}
