//! The only writer of kernel state.
