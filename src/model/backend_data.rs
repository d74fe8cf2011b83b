use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;

use super::gojson::{FieldError, Fields, clip, compact};
use super::{LeaseError, Mac};

/// What a lease says for its backend, a JSON value as it stood. VXLAN's, in the
/// one spelling that flannel and weft write, is kept as the two values it
/// holds: a tenth of its text, and read once.
#[derive(Clone, Debug)]
pub enum BackendData {
    Vtep(Vtep),
    Text(Box<RawValue>),
}

/// VXLAN's data: a tunnel endpoint (flannel pkg/backend/vxlan/vxlan.go,
/// `vxlanLeaseAttrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    pub vni: u32,
    pub mac: Mac,
}

impl BackendData {
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            BackendData::Vtep(vtep) => Cow::Owned(vtep.to_string()),
            BackendData::Text(text) => Cow::Borrowed(text.get()),
        }
    }

    /// Read as VXLAN's, with Go's leniency; what is wrong with it otherwise.
    pub fn vtep(&self) -> Result<Vtep, String> {
        let text = match self {
            BackendData::Vtep(vtep) => return Ok(*vtep),
            BackendData::Text(text) => text.get(),
        };
        let describe = |e: FieldError| LeaseError::from(e).to_string();
        let fields = Fields::parse(text).map_err(describe)?;
        let vni = fields.uint("VNI").map_err(describe)?.ok_or("VNI is missing")?;
        let mac = fields.string("VtepMAC").map_err(describe)?.ok_or("VtepMAC is missing")?;
        Ok(Vtep { vni, mac: clip(&mac).parse().map_err(|e| format!("VtepMAC: {e}"))? })
    }
}

impl From<&RawValue> for BackendData {
    fn from(raw: &RawValue) -> BackendData {
        match Vtep::spelt_as_usual(raw.get()) {
            Some(vtep) => BackendData::Vtep(vtep),
            None => BackendData::Text(raw.to_owned()),
        }
    }
}

impl From<Box<RawValue>> for BackendData {
    fn from(raw: Box<RawValue>) -> BackendData {
        BackendData::from(&*raw)
    }
}

impl From<Vtep> for BackendData {
    fn from(vtep: Vtep) -> BackendData {
        BackendData::Vtep(vtep)
    }
}

/// White space makes no difference.
impl PartialEq for BackendData {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (BackendData::Vtep(a), BackendData::Vtep(b)) => a == b,
            (a, b) => compact(&a.text()) == compact(&b.text()),
        }
    }
}

impl Eq for BackendData {}

impl fmt::Display for BackendData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Vtep {
    /// Only what `Display` gives back byte for byte.
    fn spelt_as_usual(text: &str) -> Option<Vtep> {
        let (vni, mac) = text.strip_prefix(r#"{"VNI":"#)?.split_once(r#","VtepMAC":""#)?;
        let vtep = Vtep { vni: vni.parse().ok()?, mac: mac.strip_suffix(r#""}"#)?.parse().ok()? };
        (vtep.to_string() == text).then_some(vtep)
    }
}

/// As flannel writes it.
impl fmt::Display for Vtep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"{{"VNI":{},"VtepMAC":"{}"}}"#, self.vni, self.mac)
    }
}
