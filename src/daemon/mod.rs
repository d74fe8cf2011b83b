//! Composition: config, lease, reconciler, readiness, drain.
