//! The built-in store: it answers as Debian's etcd does, `etcdctl` works on it,
//! and what it has acknowledged outlives any death of its process.

#![cfg(test)]

mod etcdctl;
mod peers;
mod survival;
mod tls;
mod trace;
