//! Everything the plugin reads that others wrote, each with what must hold of it
//! whatever the bytes are. `fuzz/` gives these to libFuzzer, a test below to
//! proptest. What does not hold is a panic.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft::model::SubnetEnv;

use crate::bandwidth::limits::Limits;
use crate::chain::{Site, Valid};
use crate::firewall::owners::{Owner, Owners};
use crate::flannel::cache::{self, Cache};
use crate::flannel::subnet;
use crate::flannel::template::Template;
use crate::ipam::ranges::{self, RangeSet};
use crate::ipam::store::{self, Store};
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};
use crate::protocol::fields::Fields;
use crate::protocol::request::{Args, Command, Request};
use crate::protocol::result::Attachment;
use crate::protocol::version::Version;
use crate::records::Records;
use crate::tuning::backup::{self, Backup};
use crate::{bridge, portmap, tuning};

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.17.1/24\n\
                          FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A network config on standard input, for every plugin at once.
pub fn config(bytes: &[u8]) {
    let Ok(conf) = Conf::parse(bytes, "config") else { return };
    let again = Conf::parse(&conf.to_bytes(), "the same config");
    assert!(again.is_ok_and(|again| (again.version, &again.network) == (conf.version, &conf.network)));

    let site = must(site(&conf.network));
    check_plugins(&conf, &site);
    for plugin in ["tuning", "bandwidth", "firewall", "portmap"] {
        if let Ok(section) = conf.section(plugin) {
            assert_eq!(section.network, conf.network);
            check_plugins(&section, &site);
        }
    }
    let Ok(env) = SubnetEnv::parse(SUBNET_ENV) else { unreachable!("a whole subnet.env") };
    let Ok(delegate) = Template::of(&conf).and_then(|template| template.render(&env)) else { return };
    assert_eq!(delegate.network, conf.network);
    let program = must(Conf::plugin_name(&delegate.fields(), "type"));
    assert!(!program.contains('/'), "{program}");
    check_plugins(&delegate, &site);
}

/// What another plugin answered, or the runtime kept, of any version.
pub fn result(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let Ok(attachment) = Attachment::parse(&value, "result") else { return };
    for version in Version::ALL {
        let again = must(Attachment::parse(&attachment.render(version), version.as_str()));
        assert!(version < Version::V0_3_0 || again == attachment, "{version}: {again:?}");
    }
}

/// The environment: a line each for CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS and
/// CNI_ARGS.
pub fn environment(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n').map(str::to_owned);
    let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
    let values = names.map(|name| (name, lines.next()));
    let var = |name: &str| values.iter().find(|(key, _)| *key == name)?.1.clone();
    let Ok(request) = Request::from_env(Command::Del, var) else { return };
    let ifname = request.ifname.as_str();
    for name in [&request.container_id, ifname] {
        assert!(!name.is_empty() && !name.contains(['/', ':', '\0']) && name != "." && name != "..");
    }
    assert!(ifname.len() < 16);
    assert!(request.args.mac.is_none_or(|mac| mac.is_unicast()));
}

/// Each kind of state file with these bytes in it. `dir` is an empty folder.
pub fn state(bytes: &[u8], dir: &Path) {
    let site = must(site("net"));
    must(reservations(bytes, &dir.join("networks")));
    must(flannel_cache(bytes, &dir.join("flannel"), &site));
    must(owners(bytes, &dir.join("firewall"), &site));
    must(backups(bytes, &dir.join("tuning"), &site));
    let env = dir.join("subnet.env");
    must(write(&env, bytes));
    let _ = subnet::read(&env);
}

fn check_plugins(conf: &Conf, site: &Site) {
    let _ = bridge::config::Config::parse(conf, &site.request);
    let _ = portmap::config::Config::parse(conf);
    let _ = Limits::parse(conf);
    let _ = tuning::Wanted::parse(conf, site);
    let _ = Valid::of(conf);
    let fields = conf.fields();
    let (Ok(Some(ipam)), Ok(runtime)) = (fields.object("ipam"), fields.object("runtimeConfig")) else {
        return;
    };
    for set in ranges::parse(&ipam, runtime.as_ref()).unwrap_or_default() {
        check_candidates(&set, None);
        let last = set.candidates(None).nth(2).map(|(ip, _)| ip);
        check_candidates(&set, last);
    }
}

fn check_candidates(set: &RangeSet, last: Option<IpAddr>) {
    for (ip, range) in set.candidates(last).take(16) {
        assert!(range.subnet.contains(ip) && ip != range.gateway, "{ip} of {set}");
        assert!(set.range_of(ip).is_some(), "{ip} of {set}");
    }
}

/// host-local's: an address is either given or known to be taken, and GC gets
/// rid of anything.
fn reservations(bytes: &[u8], dir: &Path) -> Result<()> {
    let store = Store::open(dir)?;
    let ipam = json!({ "subnet": "10.1.2.0/30" });
    let Value::Object(ipam) = &ipam else { return Ok(()) };
    let sets = ranges::parse(&Fields::root(ipam), None)?;
    let file = dir.join("10.1.2.2");
    for name in ["10.1.2.2", "last_reserved_ip.0", ".weft.boot", "no-address"] {
        write(&dir.join(name), bytes)?;
    }
    let owner = store::Owner { container_id: "mine".into(), ifname: "eth0".into() };
    let held = store.of(&owner)?;
    let given = store.next(&owner, 0, &sets[0])?.map(|(ip, _)| ip);
    assert!(held.is_empty() || given.is_none(), "given twice");
    let released = store.release(&owner, &[])?;
    assert_eq!(released.len(), held.len() + given.iter().count());
    store.retain(|_, _| false)?;
    assert!(!file.exists());
    Ok(())
}

/// What is loaded is of this network, and DEL and GC leave no file of it.
fn flannel_cache(bytes: &[u8], dir: &Path, site: &Site) -> Result<()> {
    let cache = Cache::of(dir, site);
    let own = dir.join("mine:eth0");
    for remove in [true, false] {
        write(&own, bytes)?;
        write(&dir.join("mine"), bytes)?;
        assert!(cache.load().is_none_or(|conf| conf.network == site.network));
        if remove {
            cache.remove()?;
            assert!(!own.exists());
        } else {
            cache::collect(dir, &site.network, &none_valid()?)?;
        }
    }
    Ok(())
}

fn owners(bytes: &[u8], dir: &Path, site: &Site) -> Result<()> {
    let owners = Owners::at(&dir.display().to_string())?;
    let address = IpAddr::from([10, 1, 2, 2]);
    owners.put(address, &Owner::of(site, None))?;
    for path in files(dir)? {
        write(&path, bytes)?;
    }
    let owner = owners.get(address)?;
    assert_eq!(owners.of(site)?.len(), owner.iter().filter(|owner| owner.is(site)).count());
    owners.stale(&site.network, &none_valid()?)?;
    owners.put(address, &Owner::of(site, None))?;
    assert_eq!(owners.get(address)?, Some(Owner::of(site, None)));
    Ok(())
}

fn backups(bytes: &[u8], dir: &Path, site: &Site) -> Result<()> {
    let records = Records::at(dir);
    let backup = Backup::of(&records, site);
    write(&dir.join("mine_eth0.json"), bytes)?;
    if let Some(settings) = backup.load()? {
        backup.save(&settings)?;
        assert_eq!(backup.load()?, Some(settings));
    }
    backup::collect_garbage(&records, &site.network, &none_valid()?)
}

fn site(network: &str) -> Result<Site> {
    let request = Request {
        container_id: "mine".into(),
        ifname: "eth0".parse().map_err(Error::internal)?,
        netns: None,
        args: Args::default(),
        own_netns_allowed: false,
    };
    Ok(Site { network: network.to_owned(), request })
}

fn none_valid() -> Result<Valid> {
    let conf = Conf::parse(br#"{"name":"net","cni.dev/valid-attachments":[]}"#, "no attachment")?;
    Ok(Valid::of(&conf)?.unwrap_or_default())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, bytes))
        .map_err(|e| Error::io("write", path, &e))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io("read directory", dir, &e))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    #[test]
    fn any_config_is_read_or_refused() {
        run("config", config);
    }

    #[test]
    fn any_result_is_read_or_refused() {
        run("result", result);
    }

    #[test]
    fn any_environment_is_read_or_refused() {
        run("environment", environment);
    }

    #[test]
    fn any_state_file_is_used_or_got_rid_of() {
        run("state", |bytes| state(bytes, tempfile::tempdir().unwrap().path()));
    }

    /// The fuzz target's seeds, with bytes changed, cut out and put in.
    fn run(target: &str, check: impl Fn(&[u8])) {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let seeds: Vec<_> = files(&seeds).unwrap().iter().map(|path| fs::read(path).unwrap()).collect();
        seeds.iter().for_each(|seed| check(seed));
        let change = (any::<prop::sample::Index>(), 0..24_usize, prop::collection::vec(any::<u8>(), 0..12));
        let mut runner =
            TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
        runner
            .run(&(prop::sample::select(seeds), change), |(mut bytes, (at, cut, put))| {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..(at + cut).min(bytes.len()), put);
                check(&bytes);
                Ok(())
            })
            .unwrap();
    }
}
