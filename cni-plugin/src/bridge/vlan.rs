use std::collections::BTreeSet;

use serde_json::Value;

use crate::kernel::vlan::PortVlan;
use crate::protocol::error::Result;
use crate::protocol::fields::Fields;

/// `vlan`, `vlanTrunk` and `preserveDefaultVlan` of a bridge config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// The container's own: untagged on its port. Its gateway is in it, too.
    pub access: Option<u16>,
    trunk: BTreeSet<u16>,
    preserves_default: bool,
    /// The bridge has to tell VLANs apart.
    pub filtering: bool,
}

impl Vlans {
    pub fn parse(fields: &Fields<'_>) -> Result<Vlans> {
        let access = fields.number("vlan", 0..=4094)?.unwrap_or(0) as u16;
        let mut trunk = BTreeSet::new();
        for (i, value) in fields.list("vlanTrunk")?.iter().enumerate() {
            trunk.extend(trunk_entry(&fields.inner(&format!("vlanTrunk[{i}]"), value)?)?);
        }
        Ok(Vlans {
            access: (access > 0).then_some(access),
            trunk,
            preserves_default: fields.bool("preserveDefaultVlan")?,
            filtering: access > 0 || fields.get("vlanTrunk").is_some_and(Value::is_array),
        })
    }

    /// Whether a new port has to lose the VLAN that bridges give to each.
    pub fn replace_default(&self) -> bool {
        !self.preserves_default && !self.of_port().is_empty()
    }

    /// What a container's port gets. A trunk without a VLAN of its own has VLAN 1
    /// untagged.
    pub fn of_port(&self) -> Vec<PortVlan> {
        let native = |id| PortVlan { first: id, last: id, native: true };
        let trunk = spans(&self.trunk);
        match self.access {
            Some(id) => [native(id)].into_iter().chain(trunk).collect(),
            None if trunk.is_empty() => Vec::new(),
            None => trunk.into_iter().chain([native(1)]).collect(),
        }
    }

    /// What the port gets behind which the gateway of VLAN `id` is.
    pub fn of_gateway(id: u16) -> [PortVlan; 1] {
        [PortVlan { first: id, last: id, native: true }]
    }
}

/// `{"minID": …, "maxID": …}`, `{"id": …}`, or both in one.
fn trunk_entry(entry: &Fields<'_>) -> Result<Vec<u16>> {
    let id = |key| -> Result<Option<u16>> { Ok(entry.number(key, 1..=4094)?.map(|id| id as u16)) };
    let mut ids: Vec<u16> = match (id("minID")?, id("maxID")?) {
        (Some(min), Some(max)) if min > max => {
            return Err(entry.wrong("maxID", format_args!("a number not below minID, which is {min}")));
        }
        (Some(min), Some(max)) => (min..=max).collect(),
        (None, None) => Vec::new(),
        (Some(_), None) => return Err(entry.wrong("maxID", "a number, since minID is one")),
        (None, Some(_)) => return Err(entry.wrong("minID", "a number, since maxID is one")),
    };
    ids.extend(id("id")?);
    Ok(ids)
}

fn spans(ids: &BTreeSet<u16>) -> Vec<PortVlan> {
    let mut spans: Vec<PortVlan> = Vec::new();
    for id in ids {
        match spans.last_mut() {
            Some(span) if span.last + 1 == *id => span.last = *id,
            _ => spans.push(PortVlan { first: *id, last: *id, native: false }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_get_what_the_bridge_plugin_gives_them() {
        let port = |conf: Value| {
            let vlans = Vlans::parse(&Fields::root(conf.as_object().unwrap())).unwrap();
            let shown: Vec<_> = vlans.of_port().iter().map(show).collect();
            (shown.join(" "), vlans.replace_default(), vlans.filtering)
        };
        let expected = |text: &str, replaced, filtering| (text.to_owned(), replaced, filtering);
        assert_eq!(port(json!({})), expected("", false, false));
        assert_eq!(port(json!({ "vlan": 0, "vlanTrunk": [] })), expected("", false, true));
        assert_eq!(port(json!({ "vlan": 100 })), expected("100u", true, true));
        assert_eq!(port(json!({ "vlan": 7, "preserveDefaultVlan": true })), expected("7u", false, true));
        let trunk = json!([{ "minID": 10, "maxID": 12, "id": 13 }, { "id": 20 }, {}]);
        assert_eq!(port(json!({ "vlanTrunk": trunk })), expected("10-13 20 1u", true, true));
        assert_eq!(port(json!({ "vlan": 20, "vlanTrunk": trunk })), expected("20u 10-13 20", true, true));
    }

    #[test]
    fn wrong_vlans_are_named() {
        for (conf, part) in [
            (json!({ "vlan": 4095 }), "vlan: 4095: expected a number from 0 to 4094"),
            (json!({ "vlanTrunk": [{ "id": 0 }] }), "vlanTrunk[0].id: 0: expected a number from 1 to 4094"),
            (json!({ "vlanTrunk": [{ "minID": 5 }] }), "vlanTrunk[0].maxID: null: expected a number, since"),
            (json!({ "vlanTrunk": [{}, { "minID": 5, "maxID": 4 }] }), "vlanTrunk[1].maxID: 4: expected"),
        ] {
            let error = Vlans::parse(&Fields::root(conf.as_object().unwrap())).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    fn show(vlan: &PortVlan) -> String {
        let range = if vlan.first == vlan.last { String::new() } else { format!("-{}", vlan.last) };
        format!("{}{range}{}", vlan.first, if vlan.native { "u" } else { "" })
    }
}
