//! Beside the reference plugins: `make interop CNI_BIN=…`.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

use serde_json::json;

use crate::cases::{Recording, all, file, recorded};
use crate::stage::play;

/// What ours is held to is what they do. `RECORD=1` writes it anew, `CASE` is
/// the beginning of the names of those that are played.
#[test]
fn the_reference_plugins_are_as_recorded() {
    let record = env::var("RECORD").is_ok_and(|value| !value.is_empty());
    let only = env::var("CASE").unwrap_or_default();
    let mut faults = Vec::new();
    for case in all().iter().filter(|case| case.name.starts_with(&only)) {
        let seen = play(case, &cni_bin());
        if record {
            fs::write(file(case), text(&seen)).unwrap();
        } else if seen != recorded(case) {
            faults.push(format!("{}: {}", case.name, text(&seen)));
        }
    }
    assert!(faults.is_empty(), "RECORD=1 writes them anew: {}", faults.join("\n"));
}

/// One thing a line, so that a recording can be read and compared by eye.
pub fn text(recording: &Recording) -> String {
    let mut out = String::from("{");
    for (n, (step, seen)) in recording.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(out, "{comma}\n{}: {{", json!(step)).unwrap();
        for (n, (key, value)) in seen.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(out, "{comma}\n {}: {value}", json!(key)).unwrap();
        }
        out.push('}');
    }
    out + "\n}\n"
}

fn cni_bin() -> PathBuf {
    env::var("CNI_BIN").expect("CNI_BIN: the folder with the reference plugins").into()
}
