//! Records of others: good ones, broken ones, and lies.

use weft::model::{LeaseAttrs, PerFamily};

use crate::store::key_of;

/// Subnets in a pool, as far as nodes and others take from it.
const POOL: u64 = 24;

/// Inside the pool, also where nodes take theirs.
pub fn free_subnet(config: &str, number: u64) -> String {
    subnet(config, 1 + number % POOL)
}

fn subnet(config: &str, third: u64) -> String {
    match config.contains("EnableIPv6") {
        true => format!("10.5.{third}.0-24&fd00:5:0:{third:x}::-64"),
        false => format!("10.5.{third}.0-24"),
    }
}

/// A good lease of a machine that runs another program.
pub fn others_value(config: &str, number: u64) -> Vec<u8> {
    let host = 200 + number % 20;
    let data = |mac: u8| format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{mac:02x}:{host:02x}"}}"#);
    let kind = if config.contains("host-gw") { "host-gw" } else { "vxlan" };
    let v6 = match config.contains("EnableIPv6") {
        true => format!(r#","PublicIPv6":"fd77::{host:x}","BackendV6Data":{}"#, data(0xbb)),
        false => String::new(),
    };
    let v4 = format!(r#""PublicIP":"192.168.7.{host}","BackendType":"{kind}","BackendData":{}"#, data(0xaa));
    format!("{{{v4}{v6}}}").into_bytes()
}

/// A lease behind the pool that is well formed and claims to be another node: to
/// have its MAC, its address, or one's address and the other's MAC.
pub fn liar(config: &str, number: u64, of: &LeaseAttrs, and: &LeaseAttrs) -> (Vec<u8>, Vec<u8>) {
    let nowhere = PerFamily {
        v4: Some("192.168.7.150".parse().unwrap()),
        v6: of.public_ip.v6.map(|_| "fd77::150".parse().unwrap()),
    };
    let lie = match number % 3 {
        0 => LeaseAttrs { public_ip: nowhere, ..of.clone() },
        1 => of.clone(),
        _ => LeaseAttrs { public_ip: of.public_ip, ..and.clone() },
    };
    (key_of(&subnet(config, 250 + number / 3 % 5)), lie.to_json().into_bytes())
}

pub const GARBAGE: [&[u8]; 6] = [
    b"{",
    b"",
    b"null",
    b"\xff\xfe",
    br#"{"PublicIP":"nowhere","BackendType":"vxlan"}"#,
    br#"{"PublicIP":192,"BackendType":["vxlan"]}"#,
];

/// What is nobody's lease, in any of its parts.
pub fn bad_record(number: u64) -> (Vec<u8>, Vec<u8>) {
    let lease = |ip: &str, data: &str| {
        format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{data}}}"#).into_bytes()
    };
    let mac = r#"{"VNI":1,"VtepMAC":"02:00:00:00:cc:01"}"#;
    // Behind the pool, so that nobody waits for it.
    let key = || key_of(&format!("10.5.{}.0-24", 250 + number / 16 % 5));
    match number % 16 {
        0 => (key_of("hello"), lease("192.168.7.150", mac)),
        1 => (key_of("\u{202e}10.5.250.0-24"), GARBAGE[0].to_vec()),
        2 => ([key_of(""), vec![0xff, 0xfe, 0x0a]].concat(), lease("192.168.7.150", mac)),
        3 => (key_of(&"x".repeat(3_000)), lease("192.168.7.150", mac)),
        4 => (key(), vec![b' '; 100_000]),
        5 => (key(), lease("192.168.7.150", r#"{"VNI":9,"VtepMAC":"02:00:00:00:cc:01"}"#)),
        6 => (key(), lease("192.168.7.150", r#"{"VNI":1}"#)),
        7 => (key(), lease("192.168.7.150", r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#)),
        8 => (key(), lease("0.0.0.0", mac)),
        9 => (key(), lease("127.0.0.1", mac)),
        10 => (key(), lease("224.0.0.9", mac)),
        11 => (key(), lease("10.5.250.9", mac)),
        12 => (key_of("10.0.0.0-8"), lease("10.5.1.1", mac)),
        13 => (key_of("0.0.0.0-0"), lease("192.168.7.150", r#"{"VNI":1}"#)),
        14 => (key_of("192.168.0.0-16"), lease("192.168.7.150", mac)),
        _ => (key(), GARBAGE[(number / 16) as usize % GARBAGE.len()].to_vec()),
    }
}
