use serde_json::{Value, json};

use super::error::{Code, Error, Result};
use super::fields::{Fields, Object};
use super::request::{IDENTIFIER, is_identifier};
use super::result::Attachment;
use super::version::Version;

/// A network config as a plugin gets it on standard input, checked as far as
/// every plugin needs it. What only some need they read from `fields`.
#[derive(Clone, Debug, PartialEq)]
pub struct Conf {
    pub version: Version,
    pub network: String,
    pub prev_result: Option<Attachment>,
    /// Without `prevResult`.
    object: Object,
}

impl Conf {
    /// `source` says where it is from, for the error.
    pub fn parse(bytes: &[u8], source: &str) -> Result<Conf> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::new(Code::Decoding, format!("{source}: {e}")))?;
        let Value::Object(object) = value else {
            return Err(Error::new(Code::Decoding, format!("{source}: not a JSON object")));
        };
        Conf::new(object)
    }

    pub fn new(mut object: Object) -> Result<Conf> {
        let fields = Fields::root(&object);
        let network = fields.text("name")?.unwrap_or_default();
        if !is_identifier(network) {
            return Err(Error::field("name", json!(network), IDENTIFIER));
        }
        let prev_result = fields.get("prevResult").map(|v| Attachment::parse(v, "prevResult")).transpose()?;
        let version = Version::of_config(fields.text("cniVersion")?)?;
        let network = network.to_owned();
        object.retain(|key, _| !key.eq_ignore_ascii_case("prevResult"));
        Ok(Conf { version, network, prev_result, object })
    }

    pub fn fields(&self) -> Fields<'_> {
        Fields::root(&self.object)
    }

    /// The config of another plugin that stands in this one under the plugin's
    /// name, with what all plugins share; an empty one if it is not there.
    pub fn section(&self, plugin: &str) -> Result<Conf> {
        let fields = self.fields();
        let inner = fields.object(plugin)?.and(fields.get(plugin)).and_then(Value::as_object);
        let mut object = inner.cloned().unwrap_or_default();
        for key in ["name", "cniVersion", "runtimeConfig", "args"] {
            if let Some(value) = fields.get(key) {
                object.insert(key.to_owned(), value.clone());
            }
        }
        object.insert("type".to_owned(), plugin.into());
        let conf = Conf::new(object)?;
        Ok(Conf { prev_result: self.prev_result.clone(), ..conf })
    }

    /// Whether `cniVersion` stood in it.
    pub fn has_version(&self) -> bool {
        self.fields().get("cniVersion").is_some_and(|v| v != "")
    }

    /// `key` becomes the name of a program to run: never a path.
    pub fn plugin_name(fields: &Fields<'_>, key: &str) -> Result<String> {
        let name = fields.text(key)?.unwrap_or_default();
        if name.contains('/') || name == "." || name == ".." {
            return Err(fields.wrong(key, "a plugin's name without path separators"));
        }
        Ok(name.to_owned())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        Value::Object(self.object.clone()).to_string().into_bytes()
    }

    /// With one more key, as another plugin is given it.
    pub fn with(&self, key: &str, value: Value) -> Conf {
        let mut conf = self.clone();
        conf.object.insert(key.to_owned(), value);
        conf
    }

    /// With the result of ADD, as CHECK and DEL of another plugin want it.
    pub fn with_prev_result(&self, prev: Option<&Attachment>) -> Vec<u8> {
        match prev {
            Some(prev) => self.with("prevResult", prev.render(self.version)).to_bytes(),
            None => self.to_bytes(),
        }
    }
}
