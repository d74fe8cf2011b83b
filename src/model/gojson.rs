//! JSON as Go's `encoding/json` takes it: keys match without regard to case,
//! unknown keys are ignored, `null` leaves a plain field as it was; of several
//! equal keys all must be well-formed and the last one wins.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Bounds the work that a hostile record can cause: etcd takes up to 1.5 MiB.
pub(crate) const MAX_TEXT: usize = 1 << 20;

/// No config or lease nests deeper than four.
const MAX_DEPTH: usize = 32;

/// The members of a JSON object, values as they stood.
#[derive(Debug)]
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FieldError {
    Json(String),
    Value { key: &'static str, value: String, expected: String },
}

impl Fields {
    /// Takes an object, or `null` for an empty one, of at most [`MAX_TEXT`] bytes.
    pub(crate) fn parse(text: &str) -> Result<Fields, FieldError> {
        if text.len() > MAX_TEXT {
            return Err(FieldError::Json(format!("{} bytes; expected at most {MAX_TEXT}", text.len())));
        }
        if depth(text) > MAX_DEPTH {
            return Err(FieldError::Json(format!("nested more than {MAX_DEPTH} deep")));
        }
        serde_json::from_str(text).map_err(|e| FieldError::Json(clip(&e.to_string())))
    }

    /// The value as it stood, `null` included; `None` where the key is missing.
    pub(crate) fn raw(&self, key: &str) -> Option<&RawValue> {
        self.all(key).last()
    }

    pub(crate) fn string(&self, key: &'static str) -> Result<Option<String>, FieldError> {
        self.scalar(key, "a string")
    }

    pub(crate) fn bool(&self, key: &'static str, default: bool) -> Result<bool, FieldError> {
        Ok(self.scalar(key, "true or false")?.unwrap_or(default))
    }

    /// A whole number that `T`, an unsigned type of up to 64 bits, can hold.
    pub(crate) fn uint<T: TryFrom<u64>>(&self, key: &'static str) -> Result<Option<T>, FieldError> {
        let max = u64::MAX >> (64 - 8 * size_of::<T>().clamp(1, 8));
        let expected = format!("a whole number from 0 to {max}");
        let Some(number) = self.scalar::<u64>(key, &expected)? else { return Ok(None) };
        let narrowed = T::try_from(number);
        narrowed.map(Some).map_err(|_| FieldError::value(key, &number.to_string(), expected))
    }

    /// A value whose type has a decoder of its own in Go, `parse`: even `null` is
    /// an error then, unless the field is a pointer.
    pub(crate) fn parsed<T>(
        &self,
        key: &'static str,
        pointer: bool,
        parse: impl Fn(&str) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, FieldError> {
        let mut value = None;
        for raw in self.all(key).map(RawValue::get) {
            if pointer && raw == "null" {
                value = None;
                continue;
            }
            let parsed = serde_json::from_str::<String>(raw).ok().and_then(|text| parse(&text));
            value = Some(parsed.ok_or_else(|| FieldError::value(key, raw, expected))?);
        }
        Ok(value)
    }

    fn scalar<'a, T: Deserialize<'a>>(
        &'a self,
        key: &'static str,
        expected: &str,
    ) -> Result<Option<T>, FieldError> {
        let mut value = None;
        for raw in self.all(key).map(RawValue::get).filter(|raw| *raw != "null") {
            value = Some(serde_json::from_str(raw).map_err(|_| FieldError::value(key, raw, expected))?);
        }
        Ok(value)
    }

    /// Every value of a key: all must be well-formed, and the last one wins.
    fn all(&self, key: &str) -> impl Iterator<Item = &RawValue> {
        self.0.iter().filter(move |(name, _)| same_name(name, key)).map(|(_, value)| &**value)
    }
}

impl FieldError {
    /// `value` is cut to a length fit for a log.
    pub(crate) fn value(key: &'static str, value: &str, expected: impl Into<String>) -> FieldError {
        FieldError::Value { key, value: clip(value), expected: expected.into() }
    }
}

/// Compact JSON as Go's `json.Marshal` writes it: no white space between tokens,
/// and `<`, `>`, `&`, U+2028 and U+2029 escaped. Takes well-formed JSON.
pub(crate) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for (c, in_string) in scan(json) {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            ' ' | '\t' | '\n' | '\r' if !in_string => {}
            _ => out.push(c),
        }
    }
    out
}

/// Text that came from outside, cut to a length fit for a log.
pub(crate) fn clip(text: &str) -> String {
    const MAX: usize = 120;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Fields, E> {
                Ok(Fields(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }

        d.deserialize_any(Members)
    }
}

/// Unicode simple folding as far as it reaches ASCII (Go's `foldName`): besides
/// the other case, `ſ` folds to `s` and the Kelvin sign to `k`.
fn same_name(a: &str, b: &str) -> bool {
    if a.is_ascii() {
        return a.eq_ignore_ascii_case(b);
    }
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        _ => c.to_ascii_lowercase(),
    };
    a.chars().map(fold).eq(b.chars().map(fold))
}

/// How deep arrays and objects nest.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for (c, in_string) in scan(json) {
        match c {
            '{' | '[' if !in_string => depth += 1,
            '}' | ']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Each character with whether it stands inside a string.
fn scan(json: &str) -> impl Iterator<Item = (char, bool)> {
    let (mut in_string, mut escaped) = (false, false);
    json.chars().map(move |c| {
        let inside = in_string;
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        (c, inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_fits_its_type_or_is_refused_with_the_range() {
        let fields = Fields::parse(r#"{"a":65535,"b":65536,"c":256,"d":-0,"e":null}"#).unwrap();
        let refused = |key, value: &str, max: u64| {
            FieldError::value(key, value, format!("a whole number from 0 to {max}"))
        };

        assert_eq!(fields.uint::<u16>("A"), Ok(Some(65535)));
        assert_eq!(fields.uint::<u16>("b"), Err(refused("b", "65536", 65535)));
        assert_eq!(fields.uint::<u8>("c"), Err(refused("c", "256", 255)));
        assert_eq!(fields.uint::<u64>("d"), Err(refused("d", "-0", u64::MAX)));
        assert_eq!(fields.uint::<u32>("e"), Ok(None));
        assert_eq!(fields.uint::<u32>("missing"), Ok(None));
    }

    #[test]
    fn the_last_of_equal_keys_wins_but_null_only_where_it_means_something() {
        let fields = Fields::parse(r#"{"Mtu":1,"mtu":2,"MTU":null,"\u212aey":"\u017f"}"#).unwrap();

        assert_eq!(fields.uint("mTU"), Ok(Some(2_u32)));
        assert_eq!(fields.raw("mTU").map(RawValue::get), Some("null"));
        assert_eq!(fields.string("key"), Ok(Some("\u{17f}".to_owned())));
    }
}
