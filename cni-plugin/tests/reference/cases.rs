//! The cases of `cases.json`: a conflist and what is done with it, played by the
//! reference plugins once and kept, and by ours in every test.
//!
//! A recording says for each step what it answered and what it changed on the
//! host (`host …`, `iptables …`, `nft …`, `file …`) and in the containers, null
//! for what is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::snapshot::Snapshot;
use crate::stage::play;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    #[serde(default = "Case::usual_version")]
    pub version: String,
    /// With `DIR` for the host's folder and `"ipam": "v4"`, `"v6"` or `"dual"`
    /// for host-local with one range a family.
    pub plugins: Vec<Value>,
    #[serde(default)]
    pub runtime: Map<String, Value>,
    #[serde(default)]
    pub args: String,
    /// What is in DIR at the start.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// `VERB [CONTAINER [IFNAME]]` or `RUN` and a command on the host.
    #[serde(default = "Case::usual_steps")]
    pub steps: Vec<String>,
    /// Where ours differs, `*` standing for anything, and why.
    #[serde(default)]
    differs: BTreeMap<String, String>,
    /// `STEP: THING` and all that it may be, where the reference leaves it to
    /// chance, such as the order of a Go map. A recording has all of it.
    #[serde(default)]
    pub by_chance: BTreeMap<String, Vec<Value>>,
    /// The code of our error where ADD is to be refused. The reference has 999 for
    /// nearly all, so what is compared is that it refuses, too.
    refused: Option<i64>,
}

/// Differences that may be met in any case.
const EVERYWHERE: [(&str, &str); 4] = [
    (
        "*: host sysctl ipv6/conf/*/accept_dad",
        "the reference lets a bridge prove its link-local address for a second, in which no container \
         behind it can be reached by IPv6",
    ),
    ("*: file flannel/id-*:eth*", "flannel's cache knows one attachment of a container, ours each"),
    ("*: file networks/*/.weft.boot", "by it reservations do not outlive the machine's restart"),
    (
        "*DEL *: file networks/*",
        "the reference makes the folder and its lock when there is nothing to release",
    ),
];

/// What every step answered and changed, by its number and name.
pub type Recording = BTreeMap<String, Snapshot>;

pub fn all() -> Vec<Case> {
    serde_json::from_str(&fs::read_to_string(folder().join("cases.json")).unwrap()).unwrap()
}

pub fn file(case: &str) -> PathBuf {
    folder().join(format!("recordings/{case}.json"))
}

pub fn recorded(case: &Case) -> Recording {
    let path = file(&case.name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Ours against the recordings: every case whose name begins so.
pub fn compare(prefix: &str, links: &Path) {
    let cases: Vec<Case> = all().into_iter().filter(|case| case.name.starts_with(prefix)).collect();
    assert!(!cases.is_empty(), "no case {prefix}…");
    let faults: Vec<String> = thread::scope(|scope| {
        let judge = |case: &Case| {
            let (reference, ours) = (recorded(case), play(case, links));
            match case.refused {
                Some(code) => refused(case, code, &reference, &ours),
                None => differences(case, &reference, &ours),
            }
        };
        let run = |case| scope.spawn(move || judge(case));
        // Two at a time: more are slower, not faster.
        cases
            .chunks(2)
            .flat_map(|pair| {
                pair.iter().map(run).collect::<Vec<_>>().into_iter().flat_map(|t| t.join().unwrap())
            })
            .collect()
    });
    assert!(faults.is_empty(), "{} differences:\n{}", faults.len(), faults.join("\n"));
}

/// What differs and is not said to, and what is said to and does not.
fn differences(case: &Case, reference: &Recording, ours: &Recording) -> Vec<String> {
    let mut faults = Vec::new();
    let mut met = vec![false; case.differs.len()];
    let nothing = Snapshot::new();
    for step in reference.keys().chain(ours.keys().filter(|step| !reference.contains_key(*step))) {
        let (theirs, ours) = (reference.get(step).unwrap_or(&nothing), ours.get(step).unwrap_or(&nothing));
        for key in theirs.keys().chain(ours.keys().filter(|key| !theirs.contains_key(*key))) {
            let show = |value: Option<&Value>| value.map_or("as before".to_owned(), Value::to_string);
            if theirs.get(key) == ours.get(key) {
                continue;
            }
            let place = format!("{step}: {key}");
            let mut known = EVERYWHERE.iter().any(|(pattern, _)| matches(pattern, &place));
            for (pattern, met) in case.differs.keys().zip(&mut met) {
                *met |= matches(pattern, &place);
                known |= *met && matches(pattern, &place);
            }
            if !known {
                faults.push(format!(
                    "{}: {place}\n  reference {}\n  ours      {}",
                    case.name,
                    show(theirs.get(key)),
                    show(ours.get(key))
                ));
            }
        }
    }
    let stale = case.differs.keys().zip(met).filter(|(_, met)| !met);
    faults.extend(stale.map(|(pattern, _)| format!("{}: no longer differs: {pattern}", case.name)));
    faults
}

/// ADD is refused with that code, and after the DEL that a runtime then calls
/// nothing of the container is left.
fn refused(case: &Case, code: i64, reference: &Recording, ours: &Recording) -> Vec<String> {
    let mut faults = Vec::new();
    let mut left = Snapshot::new();
    for (step, seen) in ours {
        left.extend(seen.clone());
        let expected = if step.contains("ADD") { json!(code) } else { Value::Null };
        let answered = seen.get("error").cloned().unwrap_or_default();
        if answered != expected {
            faults.push(format!("{}: {step}: error {answered} instead of {expected}", case.name));
        }
    }
    // What the network's containers share stays: the bridge and host-local's folder.
    let shared = [
        "error",
        "host link cni0",
        "host addr cni0",
        "host route 10.",
        "iptables",
        "file networks/net/l",
        "file networks/net/.weft.boot",
    ];
    left.retain(|key, value| {
        !value.is_null()
            && !key.ends_with('/')
            && !key.contains(" sysctl ")
            && !shared.iter().any(|shared| key.starts_with(shared))
    });
    faults.extend(left.iter().map(|(key, value)| format!("{}: left over: {key}: {value}", case.name)));
    let by_reference = reference.values().any(|seen| seen.contains_key("error"));
    if by_reference != case.differs.is_empty() {
        faults.push(format!("{}: refused by the reference: {by_reference}", case.name));
    }
    faults
}

/// `*` is anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = "";
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        (rest, last) = (&rest[at + part.len()..], part);
    }
    rest.is_empty() || last.is_empty() && pattern.ends_with('*')
}

impl Case {
    fn usual_version() -> String {
        "1.0.0".into()
    }

    fn usual_steps() -> Vec<String> {
        ["ADD a", "ADD b", "CHECK a", "DEL a", "DEL b", "DEL b"].map(str::to_owned).into()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}
