//! The kernel's part against real kernels: namespaces of our own. What came of
//! a change is read by `ip -j` and `bridge -j`, never by our own decoder.
#![allow(clippy::unwrap_used)] // in the helpers of tests, too

mod fabric;
mod heal;
mod ops;
mod scale;
