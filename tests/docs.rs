//! The tests that docs/compat.md calls to witness are there.

#![cfg(test)]

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/compat.md")).unwrap();
    let named = text.split('`').skip(1).step_by(2).filter_map(|word| word.split_once("::"));
    let mut count = 0;
    for (binary, name) in named.filter(|(_, name)| *name != "…") {
        let place = match binary {
            "cni" | "reference" => root.join("cni-plugin/tests").join(binary),
            "weft-cni" => root.join("cni-plugin/src"),
            "weft" => root.join("src"),
            _ if root.join(format!("tests/{binary}.rs")).exists() => root.join(format!("tests/{binary}.rs")),
            _ => root.join("tests").join(binary),
        };
        assert!(is_in(&place, &format!("fn {name}(")), "{binary}::{name} in {}", place.display());
        count += 1;
    }
    assert!(count > 50, "only {count} tests are named");
}

fn is_in(place: &Path, text: &str) -> bool {
    if place.is_dir() {
        return fs::read_dir(place).unwrap().any(|entry| is_in(&entry.unwrap().path(), text));
    }
    fs::read_to_string(place).is_ok_and(|source| source.contains(text))
}
