use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::error::{Error, Result};

pub type Object = Map<String, Value>;

/// A JSON object of the config and its place in it, so that an error names the
/// field. Keys match as in Go's `encoding/json`, which flannel and the bridge
/// plugin read them with: without regard to case, `null` as if absent.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    at: String,
    object: &'a Object,
}

impl<'a> Fields<'a> {
    pub fn root(object: &'a Object) -> Fields<'a> {
        Fields { at: String::new(), object }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let exact = self.object.get(key);
        exact
            .or_else(|| self.object.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v))
            .filter(|v| !v.is_null())
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    pub fn bool(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string"))
    }

    pub fn number(&self, key: &str, range: RangeInclusive<u32>) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n));
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| self.wrong(key, expected()))
    }

    /// A string in some syntax. An empty one counts as absent.
    pub fn parsed<T: FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(text) = self.text(key)?.filter(|t| !t.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(key, expected))
    }

    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.inner(key, value).map(Some)
    }

    pub fn list(&self, key: &str) -> Result<&'a [Value]> {
        let Some(value) = self.get(key) else { return Ok(&[]) };
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(key, "a list"))
    }

    /// An object that stands somewhere below, as in a list.
    pub fn inner(&self, key: &str, value: &'a Value) -> Result<Fields<'a>> {
        let Value::Object(object) = value else {
            return Err(Error::field(self.place(key), value, "an object"));
        };
        Ok(Fields { at: self.place(key), object })
    }

    pub fn wrong(&self, key: &str, expected: impl Display) -> Error {
        let value = self.get(key).unwrap_or(&Value::Null);
        Error::field(self.place(key), value, expected)
    }

    pub fn place(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }
}
