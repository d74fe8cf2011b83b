//! weft beside a real flanneld: `make interop FLANNELD=… CNI_BIN=…`.

#![cfg(test)]

mod cluster;
#[path = "../common/golden.rs"]
mod golden;
mod mixed;
mod recordings;
#[path = "../common/stage.rs"]
mod stage;
mod store;
mod takeover;
