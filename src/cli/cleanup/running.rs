//! Whether a daemon serves this network namespace.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The daemon that answers at `admin_socket`, or one of weft's or flannel's that
/// runs in this network namespace; for messages.
pub fn daemon(admin_socket: &Path) -> Option<String> {
    if UnixStream::connect(admin_socket).is_ok() {
        return Some(format!("the daemon at {}", admin_socket.display()));
    }
    let here = fs::read_link("/proc/self/ns/net").ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|process| daemon_in(&process.path(), &here)).next()
}

/// A process that ends meanwhile is none.
fn daemon_in(process: &Path, netns: &PathBuf) -> Option<String> {
    let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let cmdline = fs::read(process.join("cmdline")).ok()?;
    let first = cmdline.split(|byte| *byte == 0).nth(1);
    let is_daemon = match name.trim() {
        "flanneld" | "weftd" => true,
        "weft" => first == Some(b"daemon"),
        _ => false,
    };
    let is_here = is_daemon && fs::read_link(process.join("ns/net")).ok()? == *netns;
    is_here.then(|| format!("{} (process {pid})", name.trim()))
}
