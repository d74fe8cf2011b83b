//! The examples in deploy/coreos hold the very units of deploy/.

#![cfg(test)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn ignition_has_the_units() {
    let ignition: Value = serde_json::from_str(&read("coreos/weft.ign")).unwrap();
    let units = &ignition["systemd"]["units"];
    assert_eq!(units[0]["contents"], read("weft.service"));
    assert_eq!(units[1]["dropins"][0]["contents"], read("docker.service.d/weft.conf"));
}

#[test]
fn cloud_config_has_the_units() {
    let config = read("coreos/cloud-config.yaml");
    for file in ["weft.service", "docker.service.d/weft.conf"] {
        let indent = |line: &str| if line.is_empty() { String::new() } else { format!("      {line}") };
        let block = read(file).lines().map(indent).collect::<Vec<_>>().join("\n");
        assert!(config.contains(&format!("/{file}\n    content: |\n{block}\n")), "{file}");
    }
}

#[test]
fn systemd_takes_the_units() {
    let dir = tempfile::tempdir().unwrap();
    // The program need not be installed where the test runs.
    for file in ["weft.service", "docker.service.d/weft.conf"] {
        let unit = read(file).replace("/usr/local/bin/weft", "/bin/true").replace("dockerd ", "/bin/true ");
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, unit).unwrap();
    }
    fs::write(dir.path().join("docker.service"), "[Service]\nExecStart=/bin/true\n").unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "weft.service", "docker.service"])
        .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let about_ours: Vec<_> =
        said.lines().filter(|line| line.contains("weft") || line.contains("docker")).collect();
    assert!(output.status.success() && about_ours.is_empty(), "{said}");
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}
