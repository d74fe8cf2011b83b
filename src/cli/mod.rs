//! What a person types.

pub mod demo;
pub mod store;
