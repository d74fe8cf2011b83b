//! A kernel whose bridges tell VLANs apart, where this machine's has none such:
//! user-mode Linux (Debian's package user-mode-linux) boots in two seconds on
//! this machine's files, read-only, and runs the very test that asks for it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

use netns_harness::Lab;

const MODULES: [&str; 6] = ["bridge", "veth", "8021q", "af_packet", "ifb", "nf_tables"];

/// What a test may be told, as far as it is told.
const VARIABLES: [&str; 3] = ["CNI_BIN", "RECORD", "CASE"];

/// `test` is the name of the calling test, `writable` the folder of this machine
/// that it may write to.
pub fn with_vlans(test: &str, writable: Option<&Path>, body: impl FnOnce()) {
    if filters_vlans() {
        return body();
    }
    let lab = Lab::new("uml").unwrap();
    // Not in /run, which the other kernel has for itself.
    let dir = tempfile::tempdir().unwrap();
    let init = dir.path().join("init");
    fs::write(&init, script(test, writable)).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let mut kernel = lab.switch().command("linux.uml");
    kernel.args([
        "mem=512M",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        "quiet",
        "con=null",
        "con0=fd:0,fd:1",
    ]);
    kernel.arg(format!("init={}", init.display()));
    let output =
        kernel.output().expect("linux.uml: is user-mode-linux installed (deploy/install-deps.sh test)?");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed; 0 failed"), "{said}");
}

fn filters_vlans() -> bool {
    let lab = Lab::new("vlans").unwrap();
    lab.switch().ip_batch(&["link add br9 type bridge vlan_filtering 1"]).is_ok()
}

/// What the other kernel runs as its first process.
fn script(test: &str, writable: Option<&Path>) -> String {
    let load: String = modules().iter().map(|file| format!("busybox insmod {}\n", file.display())).collect();
    let told = |name: &str| Some(format!("export {name}='{}'\n", env::var(name).ok()?));
    let told: String = VARIABLES.into_iter().filter_map(told).collect();
    let mount = |path: &Path| format!("mount -t hostfs -o {0} none {0}\n", path.display());
    let mount = writable.map(mount).unwrap_or_default();
    let (exe, path) = (env::current_exe().unwrap(), env::var("PATH").unwrap());
    format!(
        "#!/bin/sh\nexport PATH={path}:/usr/sbin:/sbin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run\n\
         export TMPDIR=/run\n{told}{mount}{load}ip link set lo up\n\
         {} --exact {test} --nocapture 2>&1\n\
         echo o >/proc/sysrq-trigger; sleep 9\n",
        exe.display()
    )
}

/// Files of the modules, what each needs before it.
fn modules() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/uml/modules").unwrap().next().unwrap().unwrap().path();
    let needs = fs::read_to_string(versions.join("modules.dep")).unwrap();
    let mut files = Vec::new();
    for module in MODULES {
        let line = needs.lines().find(|line| {
            let file = Path::new(line.split(':').next().unwrap());
            file.file_stem().is_some_and(|stem| stem == module)
        });
        // Others are built in.
        let Some((file, needed)) = line.and_then(|line| line.split_once(':')) else { continue };
        for file in needed.split_whitespace().rev().chain([file]) {
            let file = versions.join(file);
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    files
}
