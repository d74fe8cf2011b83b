//! How the C library's allocator is to keep memory: a node's daemon is small
//! and seldom busy. Other C libraries have nothing to set.

/// One arena for all threads. By default each thread gets its own, and what one
/// of them frees another does not use: with ten thousand leases that was a fifth
/// of the peak. To be called before there are threads.
pub fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Give back to the system what was freed: after work that comes once.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks; frees only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
