//! What a person types.

pub mod store;
