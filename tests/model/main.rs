//! The formats shared with flannel: bytes as it writes them, and what is
//! refused with which words.

#![cfg(test)]

mod golden;
mod properties;
mod refusals;
