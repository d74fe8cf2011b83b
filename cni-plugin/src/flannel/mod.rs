//! flannel's plugin: from its fields and `subnet.env` the config of a delegate
//! (bridge, unless named otherwise) and its IPAM are rendered as flannel's own
//! plugin renders them (flannel.go, flannel_linux.go).

pub mod cache;
pub mod subnet;
pub mod template;

use std::path::PathBuf;
use std::time::Duration;

use crate::bridge::Bridge;
use crate::chain::{Plugin, Site, Valid};
use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::exec::{self, Program};
use crate::protocol::request::Command;
use crate::protocol::result::Attachment;
use cache::Cache;
use template::Template;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// A flannel config. What it says of the delegate is checked where it is needed:
/// DEL does without, as a runtime calls it after an ADD that was refused, too.
#[derive(Debug)]
pub struct Flannel {
    conf: Conf,
    subnet_file: PathBuf,
    /// How long ADD waits for that file.
    subnet_wait: Duration,
    data_dir: PathBuf,
}

impl Plugin for Flannel {
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()> {
        let template = Template::of(&self.conf)?;
        let delegate = template.render(&subnet::wait(&self.subnet_file, self.subnet_wait)?)?;
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
        let Some(delegate) = cache.load().or_else(|| self.guess()) else { return cache.remove() };
        match foreign(&delegate)? {
            Some(plugin) => drop(plugin.run(Command::Del, &delegate.with_prev_result(prev))?),
            None => Bridge::new(delegate).del(site, prev)?,
        }
        cache.remove()
    }

    fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        let now = self.render_for_now()?;
        let delegate = self.cache(site).load().unwrap_or(now);
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
        let delegate = Template::of(&self.conf)?.render(&subnet::status(&self.subnet_file)?)?;
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
        })
    }

    fn cache(&self, site: &Site) -> Cache {
        Cache::of(&self.data_dir, site)
    }

    /// What ADD would do now: the nearest to what it did when nothing was kept.
    fn render_for_now(&self) -> Result<Conf> {
        let template = Template::of(&self.conf)?;
        match subnet::read(&self.subnet_file) {
            Ok(env) => template.render(&env),
            Err(_) => template.render_without_subnet(),
        }
    }

    /// The same for DEL. With a config that ADD refuses nothing was ever made.
    fn guess(&self) -> Option<Conf> {
        self.render_for_now().inspect_err(|e| eprintln!("weft-cni: {e}: no container was added with it")).ok()
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
