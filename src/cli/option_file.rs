//! The option file: flat TOML, one option a line, named as on the command line.

use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::de::{DeTable, DeValue};

/// One option as the file gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// As text, ready for the command line; several for an array.
    pub values: Vec<String>,
    /// Counted from 1.
    pub line: usize,
}

#[derive(Debug, Error)]
pub enum FileError {
    #[error("{}: {cause}", path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{} line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
}

/// Reads `path`. `known` are the names that may stand in it; any other is an
/// error.
///
/// # Errors
/// Where the file cannot be read, is not TOML, or has an unknown option, a table
/// or a date in it; all but the first name the line.
pub fn read(path: &Path, known: &[&str]) -> Result<Vec<Entry>, FileError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| FileError::Read { path: path.to_owned(), cause })?;
    parse(&text, known).map_err(|(line, reason)| FileError::Line { path: path.to_owned(), line, reason })
}

fn parse(text: &str, known: &[&str]) -> Result<Vec<Entry>, (usize, String)> {
    let line = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        (line(offset), error.message().to_owned())
    })?;
    let mut entries = Vec::new();
    for (name, value) in table.get_ref() {
        let (line, name) = (line(name.span().start), name.get_ref().to_string());
        if !known.contains(&name.as_str()) {
            return Err((line, unknown(&name, known)));
        }
        let values = texts(value.get_ref()).map_err(|reason| (line, format!("{name}: {reason}")))?;
        entries.push(Entry { name, values, line });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    Ok(match value {
        DeValue::String(text) => vec![text.to_string()],
        DeValue::Integer(number) => vec![number.to_string()],
        DeValue::Boolean(switch) => vec![switch.to_string()],
        DeValue::Array(array) => {
            let nested = array.iter().map(|value| texts(value.get_ref())).collect::<Result<Vec<_>, _>>()?;
            nested.into_iter().flatten().collect()
        }
        other => {
            return Err(format!(
                "a {}: options are texts, whole numbers, true or false, and lists of those",
                other.type_str()
            ));
        }
    })
}

fn unknown(name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, candidate)) if likeness > 0.7 => {
            format!("no option {name:?}: did you mean {candidate:?}?")
        }
        _ => format!("no option {name:?}: `weft daemon --help` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["iface", "etcd-endpoints", "audit-interval", "plain-routes"];

    #[test]
    fn values_come_with_their_lines() {
        let text = "# a comment\niface = \"eth0\"\n\netcd-endpoints = [\"http://a:1\",\n  'http://b:1']\naudit-interval = 1_0\nplain-routes = true\n";
        let entries = parse(text, &KNOWN).unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (e.line, e.name.as_str(), e.values.join(" "))).collect();
        assert_eq!(
            seen,
            [
                (2, "iface", "eth0".to_owned()),
                (4, "etcd-endpoints", "http://a:1 http://b:1".into()),
                (6, "audit-interval", "10".into()),
                (7, "plain-routes", "true".into()),
            ]
        );
    }

    #[test]
    fn mistakes_name_line_key_and_way_out() {
        for (text, line, says) in [
            ("\netcd_endpoint = 1", 2, "no option \"etcd_endpoint\": did you mean \"etcd-endpoints\"?"),
            ("zzz = 1", 1, "no option \"zzz\": `weft daemon --help` lists them"),
            ("[iface]\nname = 1", 1, "iface: a table: options are texts"),
            ("audit-interval = 1.5", 1, "audit-interval: a float"),
            ("iface = 'a'\niface = 'b'", 2, "duplicate key"),
            ("plain-routes = yes", 1, ""),
            ("iface", 1, ""),
        ] {
            let (at, reason) = parse(text, &KNOWN).unwrap_err();
            assert_eq!(at, line, "{text}: {reason}");
            assert!(!reason.is_empty() && reason.contains(says), "{text}: {reason}");
        }
    }
}
