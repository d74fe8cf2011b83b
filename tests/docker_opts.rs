//! `weft docker-opts` beside what flannel's mk-docker-opts.sh made of the same
//! cases (recorded by tests/golden/docker-opts/record.sh).

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use netns_harness::{Host, Lab};

#[test]
fn every_case_is_as_flannels_script_has_it() {
    let lab = Lab::new("docker-opts").unwrap();
    for (number, case) in cases().iter().enumerate() {
        let host = lab.host(&format!("h{number}")).unwrap();
        let (code, said) = run(&host, case);
        let name = case.file_name().unwrap().display();
        let succeeds = read(&case.join("exit")).as_deref() == Some("0\n");
        assert_eq!(code == Some(0), succeeds, "{name}: {code:?}: {said}");
        if succeeds || name.to_string() == "routed-away" {
            assert_eq!(
                read(&host.dir().join("docker_opts.env")),
                read(&case.join("docker_opts.env")),
                "{name}"
            );
        } else {
            assert_eq!(read(&host.dir().join("docker_opts.env")), None, "{name}: nothing is written");
        }
    }
}

#[test]
fn the_script_of_that_name_does_the_same() {
    let lab = Lab::new("docker-script").unwrap();
    let host = lab.host("h1").unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_weft")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let out = host.dir().join("out");
    let subnet_env = golden().join("both/subnet.env");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/mk-docker-opts.sh");
    let mut command = host.command(script);
    let output = command.env("PATH", path).arg("-f").arg(subnet_env).arg("-d").arg(&out).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read(&out), read(&golden().join("both/docker_opts.env")));
}

#[test]
fn what_is_refused_says_why() {
    let lab = Lab::new("docker-refused").unwrap();
    let host = lab.host("h1").unwrap();
    let file = host.dir().join("subnet.env");
    for (env, says) in [
        ("FLANNEL_SUBNET=10.5.41.1/24;reboot", "expected a form as 10.5.41.1/24"),
        ("FLANNEL_MTU=lots", "FLANNEL_MTU"),
        ("FLANNEL_IPMASQ=maybe", "expected true or false"),
    ] {
        fs::write(&file, env).unwrap();
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command.args(["docker-opts", "-d"]).arg(host.dir().join("out")).arg("-f").arg(&file);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{env}: {said}");
        assert!(said.contains(says) && said.contains("subnet.env"), "{env}: {said}");
    }
}

fn run(host: &Host, case: &Path) -> (Option<i32>, String) {
    if let Some(routes) = read(&case.join("routes")) {
        host.ip_batch(&routes.lines().collect::<Vec<_>>()).unwrap();
    }
    if let Some(env) = read(&case.join("subnet.env")) {
        fs::write(host.dir().join("subnet.env"), env).unwrap();
    }
    let (args, environment) = (read(&case.join("args")).unwrap(), read(&case.join("environment")));
    let environment = environment.unwrap_or_default();
    let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
    command
        .args(["docker-opts", "-f", "subnet.env", "-d", "docker_opts.env"])
        .args(args.split_whitespace())
        .env_clear()
        .envs(environment.lines().filter_map(|line| line.split_once('=')))
        .current_dir(host.dir());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let cases: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    assert!(cases.len() > 10, "{cases:?}");
    cases
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/docker-opts")
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
