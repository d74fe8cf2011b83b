//! What one call does: the plugins this process stands for, one after another.

use std::collections::HashSet;
use std::fmt::Debug;

use serde_json::json;

use crate::protocol::conf::Conf;
use crate::protocol::error::Result;
use crate::protocol::request::Request;
use crate::protocol::result::Attachment;

/// One interface of one container in one network: what ADD, CHECK and DEL are
/// about.
#[derive(Clone, Debug)]
pub struct Site {
    pub network: String,
    pub request: Request,
}

/// One plugin's part in an attachment.
pub trait Plugin: Debug {
    /// Make it. `result` is what the plugins before made and is completed in
    /// place. After an error nothing of this part is left.
    fn add(&self, site: &Site, result: &mut Attachment) -> Result<()>;

    /// Remove all that `add` may have made, as much of it as there is: called
    /// after any crash, any number of times, with or without ADD's result.
    fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()>;

    /// That it still is as `add` left it.
    fn check(&self, site: &Site, prev: &Attachment) -> Result<()>;

    /// Remove what belongs to no valid attachment of the network.
    fn gc(&self, network: &str, valid: &Valid) -> Result<()>;

    /// Whether `add` could work now.
    fn status(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub struct Chain(Vec<Box<dyn Plugin>>);

impl Chain {
    pub fn of(plugin: impl Plugin + 'static) -> Chain {
        Chain(vec![Box::new(plugin)])
    }

    /// One more, which completes what those before it made.
    pub fn then(mut self, plugin: impl Plugin + 'static) -> Chain {
        self.0.push(Box::new(plugin));
        self
    }

    pub fn add(&self, site: &Site, prev: Option<&Attachment>) -> Result<Attachment> {
        let mut result = prev.cloned().unwrap_or_default();
        for (i, plugin) in self.0.iter().enumerate() {
            if let Err(e) = plugin.add(site, &mut result) {
                undo(&self.0[..i], site, &result);
                return Err(e);
            }
        }
        Ok(result)
    }

    /// All of them, in reverse, and the first error of any.
    pub fn del(&self, site: &Site, prev: Option<&Attachment>) -> Result<()> {
        first_error(self.0.iter().rev().map(|plugin| plugin.del(site, prev)))
    }

    pub fn check(&self, site: &Site, prev: &Attachment) -> Result<()> {
        self.0.iter().try_for_each(|plugin| plugin.check(site, prev))
    }

    pub fn gc(&self, network: &str, valid: &Valid) -> Result<()> {
        first_error(self.0.iter().rev().map(|plugin| plugin.gc(network, valid)))
    }

    pub fn status(&self) -> Result<()> {
        self.0.iter().try_for_each(|plugin| plugin.status())
    }
}

pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The attachments of a network that are in use: `cni.dev/valid-attachments` of
/// a GC.
#[derive(Clone, Debug, Default)]
pub struct Valid(HashSet<(String, String)>);

impl Valid {
    /// Older libcni sends them as `cni.dev/attachments` alone. A Go runtime sends
    /// none as `null`. None is neither key, as `cnitool gc` calls: not an empty
    /// list, by which containers of other runtimes would lose their network.
    pub fn of(conf: &Conf) -> Result<Option<Valid>> {
        let fields = conf.fields();
        let keys = [VALID_ATTACHMENTS, "cni.dev/attachments"];
        let Some(key) = keys.into_iter().find(|key| fields.keys().any(|there| there == *key)) else {
            return Ok(None);
        };
        let attachment = |(i, value)| {
            let entry = fields.inner(&format!("{key}[{i}]"), value)?;
            let text = |name| {
                let text = entry.text(name)?.filter(|t| !t.is_empty());
                text.map(str::to_owned).ok_or_else(|| entry.wrong(name, "a string"))
            };
            Ok((text("containerID")?, text("ifname")?))
        };
        fields
            .list(key)?
            .iter()
            .enumerate()
            .map(attachment)
            .collect::<Result<_>>()
            .map(|list| Some(Valid(list)))
    }

    pub fn contains(&self, container_id: &str, ifname: &str) -> bool {
        self.0.contains(&(container_id.to_owned(), ifname.to_owned()))
    }

    /// Each as (container ID, interface name).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(id, ifname)| (id.as_str(), ifname.as_str()))
    }

    /// What another plugin is given for its GC.
    pub fn put_into(&self, conf: &Conf) -> Vec<u8> {
        let list = self.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
        conf.with(VALID_ATTACHMENTS, list).to_bytes()
    }
}

fn undo(done: &[Box<dyn Plugin>], site: &Site, result: &Attachment) {
    for plugin in done.iter().rev() {
        if let Err(e) = plugin.del(site, Some(result)) {
            eprintln!("weft-cni: while undoing a failed ADD: {e}");
        }
    }
}

fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.fold(Ok(()), Result::and)
}
