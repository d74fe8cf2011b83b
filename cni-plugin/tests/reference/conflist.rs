//! A conflist, called as libcni calls it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use netns_harness::Netns;
use serde_json::{Map, Value, json};

/// Every name under which an existing conflist finds a plugin that ours stands
/// in for.
pub const CLASSIC: [&str; 8] =
    ["flannel", "bridge", "host-local", "portmap", "bandwidth", "firewall", "tuning", "loopback"];

#[derive(Debug)]
pub struct Conflist {
    pub name: String,
    pub version: String,
    pub plugins: Vec<Value>,
    /// What the runtime has to give to the capabilities that a plugin declares.
    pub runtime: Map<String, Value>,
    /// `CNI_ARGS`
    pub args: String,
    /// `CNI_PATH`, one folder
    pub path: PathBuf,
}

/// One network of one container.
#[derive(Debug)]
pub struct Attachment<'a> {
    pub id: &'a str,
    pub ifname: &'a str,
    /// None is a namespace that is gone.
    pub netns: Option<&'a Path>,
}

/// Result of the last plugin, or code and text of the error.
pub type Outcome = Result<Value, (i64, String)>;

impl Conflist {
    pub fn add(&self, host: &Netns, to: &Attachment<'_>) -> Outcome {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call(host, "ADD", plugin, Some(to), &result)?;
        }
        Ok(result)
    }

    pub fn check(&self, host: &Netns, to: &Attachment<'_>, result: &Value) -> Outcome {
        for plugin in &self.plugins {
            self.call(host, "CHECK", plugin, Some(to), result)?;
        }
        Ok(Value::Null)
    }

    pub fn del(&self, host: &Netns, to: &Attachment<'_>, result: &Value) -> Outcome {
        // Before 0.4.0 a DEL is told nothing of the result.
        let told = if self.version.as_str() < "0.4.0" { &Value::Null } else { result };
        for plugin in self.plugins.iter().rev() {
            self.call(host, "DEL", plugin, Some(to), told)?;
        }
        Ok(Value::Null)
    }

    pub fn status(&self, host: &Netns) -> Outcome {
        for plugin in &self.plugins {
            self.call(host, "STATUS", plugin, None, &Value::Null)?;
        }
        Ok(Value::Null)
    }

    /// Each plugin hears which attachments are valid.
    pub fn gc(&self, host: &Netns, valid: &[(&str, &str)]) -> Outcome {
        let valid: Vec<Value> =
            valid.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
        for plugin in &self.plugins {
            let mut plugin = plugin.clone();
            plugin["cni.dev/valid-attachments"] = json!(valid);
            plugin["cni.dev/attachments"] = json!(valid);
            self.call(host, "GC", &plugin, None, &Value::Null)?;
        }
        Ok(Value::Null)
    }

    fn call(
        &self,
        host: &Netns,
        verb: &str,
        plugin: &Value,
        to: Option<&Attachment<'_>>,
        prev: &Value,
    ) -> Outcome {
        let kind = plugin["type"].as_str().unwrap();
        let mut command = host.command(self.path.join(kind));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(to) = to {
            command
                .env("CNI_CONTAINERID", to.id)
                .env("CNI_IFNAME", to.ifname)
                .env("CNI_NETNS", to.netns.unwrap_or(Path::new("")))
                .env("CNI_ARGS", &self.args);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{kind}: {error}"));
        child.stdin.take().unwrap().write_all(self.config(plugin, prev).to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        if output.status.success() {
            return Ok(json);
        }
        let code = json["code"].as_i64().unwrap_or_else(|| {
            panic!(
                "{verb} {kind}: no error on its output: {text} {}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        Err((code, format!("{kind}: {} {}", json["msg"], json["details"])))
    }

    /// The plugin's entry as libcni gives it to the plugin: with the network's
    /// name and version, the result so far, and of the runtime's values those
    /// that the entry declares as its capabilities (api.go, buildOneConfig).
    fn config(&self, plugin: &Value, prev: &Value) -> Value {
        let mut config = plugin.clone();
        config["name"] = json!(self.name);
        config["cniVersion"] = json!(self.version);
        if !prev.is_null() {
            config["prevResult"] = prev.clone();
        }
        let mut given = self.runtime.clone();
        given.retain(|key, _| config["capabilities"][key] == true);
        if !given.is_empty() {
            config["runtimeConfig"] = given.into();
        }
        config
    }
}
