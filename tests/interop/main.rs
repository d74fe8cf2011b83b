//! weft beside a real flanneld, and its plugin under the real libcni: `make interop
//! FLANNELD=… CNI_BIN=… CNITOOL=…`.

#![cfg(test)]

mod cluster;
mod cnitool;
#[path = "../common/golden.rs"]
mod golden;
mod mixed;
#[expect(dead_code, reason = "what it has for cgroups")]
#[path = "../common/node.rs"]
mod node;
mod recordings;
#[path = "../common/stage.rs"]
mod stage;
mod store;
mod takeover;
