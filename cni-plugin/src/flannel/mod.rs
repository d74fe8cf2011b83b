//! flannel's plugin: from its fields and `subnet.env` the config of a delegate
//! (bridge, unless named otherwise) and its IPAM are rendered as flannel's own
//! plugin renders them (flannel.go, flannel_linux.go).

mod cache;
mod subnet;

use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use weft::model::SubnetEnv;

use crate::bridge::Bridge;
use crate::chain::{Plugin, Site, Valid};
use crate::ipam::parse_routes;
use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::exec::{self, Program};
use crate::protocol::fields::{Fields, Object};
use crate::protocol::request::Command;
use crate::protocol::result::{Attachment, Route};
use cache::Cache;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// A flannel config, checked.
#[derive(Debug)]
pub struct Flannel {
    conf: Conf,
    subnet_file: PathBuf,
    /// How long ADD waits for that file.
    subnet_wait: Duration,
    data_dir: PathBuf,
    delegate: Object,
    ipam: Object,
}

impl Plugin for Flannel {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        let delegate = self.render(&subnet::wait(&self.subnet_file, self.subnet_wait)?)?;
        let cache = self.cache(site);
        // Saved first: whatever happens from here on, DEL knows what to undo. But
        // a repeated ADD, which fails, leaves the first one's.
        let fresh = !cache.exists();
        if fresh {
            cache.save(&delegate)?;
        }
        let added = match foreign(&delegate)? {
            Some(plugin) => add_by(&plugin, &delegate, result),
            None => Bridge::for_flannel(delegate.clone(), fresh).add(site, result),
        };
        match added {
            Ok(()) if !fresh => cache.save(&delegate)?,
            Err(_) if fresh => cache.remove()?,
            _ => {}
        }
        added
    }

    fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()> {
        let cache = self.cache(site);
        let delegate = cache.load().map_or_else(|| self.render_for_now(), Ok)?;
        match foreign(&delegate)? {
            Some(plugin) => drop(plugin.run(Command::Del, &delegate.with_prev_result(prev))?),
            None => Bridge::new(delegate).del(site, prev)?,
        }
        cache.remove()
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        let delegate = self.cache(site).load().map_or_else(|| self.render_for_now(), Ok)?;
        match foreign(&delegate)? {
            Some(plugin) => plugin.run(Command::Check, &delegate.with_prev_result(Some(prev))).map(drop),
            None => Bridge::new(delegate).check(site, prev),
        }
    }

    fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        let delegate = self.render_for_now()?;
        let done = match foreign(&delegate)? {
            Some(plugin) => plugin.run(Command::Gc, &valid.put_into(&delegate)).map(drop),
            None => Bridge::new(delegate).gc(network, valid),
        };
        done.and(cache::collect(&self.data_dir, network, valid))
    }

    fn status(&self) -> Result<()> {
        let delegate = self.render(&subnet::status(&self.subnet_file)?)?;
        match foreign(&delegate)? {
            Some(plugin) => plugin.run(Command::Status, &delegate.to_bytes()).map(drop),
            None => Bridge::new(delegate).status(),
        }
    }
}

impl Flannel {
    pub fn new(conf: &Conf) -> Result<Flannel> {
        let fields = conf.fields();
        let path = |key, default: &str| -> Result<PathBuf> {
            Ok(fields.text(key)?.filter(|p| !p.is_empty()).unwrap_or(default).into())
        };
        Ok(Flannel {
            conf: conf.clone(),
            subnet_file: path("subnetFile", SUBNET_FILE)?,
            subnet_wait: Duration::from_secs(fields.number("subnetWait", 0..=600)?.unwrap_or(3).into()),
            data_dir: path("dataDir", DATA_DIR)?,
            delegate: delegate(&fields)?,
            ipam: copy(fields.object("ipam")?.and_then(|_| fields.get("ipam"))),
        })
    }

    fn cache(&self, site: &Site) -> Cache {
        Cache::of(&self.data_dir, site)
    }

    /// The delegate's config on this node.
    fn render(&self, env: &SubnetEnv) -> Result<Conf> {
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

    /// What ADD would do now: the nearest to what it did when nothing was kept.
    fn render_for_now(&self) -> Result<Conf> {
        match subnet::read(&self.subnet_file) {
            Ok(env) => self.render(&env),
            Err(_) => self.render_without_subnet(),
        }
    }

    /// The delegate's config as far as it is known without `subnet.env`: all
    /// that DEL needs. Masquerading is taken to be on, so that it is looked for.
    fn render_without_subnet(&self) -> Result<Conf> {
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

/// The program that does the delegate's work; none for the bridge, which is
/// done here.
fn foreign(delegate: &Conf) -> Result<Option<Program>> {
    match Conf::plugin_name(&delegate.fields(), "type")?.as_str() {
        "bridge" => Ok(None),
        other => Program::find(other).map(Some),
    }
}

fn add_by(plugin: &Program, delegate: &Conf, result: &mut Attachment) -> Result<()> {
    let output = exec::json(&plugin.run(Command::Add, &delegate.to_bytes())?, plugin)?;
    *result = Attachment::parse(&output, plugin.name())?;
    Ok(())
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
        let flannel = Flannel::new(&Conf::parse(conf.to_string().as_bytes(), "test")?)?;
        let rendered = flannel.render(&SubnetEnv::parse(env).unwrap())?;
        Ok(serde_json::from_slice(&rendered.to_bytes()).unwrap())
    }
}
