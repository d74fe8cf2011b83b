//! A sorted map of which many versions are alive at once: a clone shares all
//! its entries with the original, and a change copies one chunk of them.

use std::collections::HashSet;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// Entries in a chunk that is packed; twice as many split it.
const CHUNK: usize = 64;

type Chunk<K, V> = Vec<(K, V)>;

/// Entries lie sorted in full chunks, without room to spare between them. What
/// two versions have not in common is found without a look at what they share.
#[derive(Clone)]
pub struct SharedMap<K, V> {
    /// Each sorted, none empty, and every key of one below those of the next.
    chunks: Vec<Arc<Chunk<K, V>>>,
}

impl<K, V> SharedMap<K, V> {
    pub fn new() -> Self {
        SharedMap { chunks: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn clear(&mut self) {
        self.chunks.clear();
    }

    /// By ascending key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let (chunk, at) = self.find(key).ok()?;
        Some(&self.chunks[chunk][at].1)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// The keys under which `newer` has another value than this version, one
    /// more, or none; ascending. Costs what the chunks cost that the two do not
    /// share.
    pub fn changes<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = &'a K>
    where
        V: PartialEq,
    {
        let mut old = self.apart_from(newer).peekable();
        let mut new = newer.apart_from(self).peekable();
        std::iter::from_fn(move || {
            loop {
                let (old, new) = match (old.peek(), new.peek()) {
                    (Some((a, _)), Some((b, _))) if a < b => (old.next(), None),
                    (Some((a, _)), Some((b, _))) if a > b => (None, new.next()),
                    _ => (old.next(), new.next()),
                };
                match (old, new) {
                    (Some((_, old)), Some((_, new))) if old == new => {}
                    (old, new) => return old.or(new).map(|(key, _)| key),
                }
            }
        })
    }

    fn apart_from<'a>(&'a self, other: &Self) -> impl Iterator<Item = &'a (K, V)> {
        let shared: HashSet<_> = other.chunks.iter().map(Arc::as_ptr).collect();
        let own = self.chunks.iter().filter(move |chunk| !shared.contains(&Arc::as_ptr(chunk)));
        own.flat_map(|chunk| chunk.iter())
    }

    /// Where the key is, or where it belongs: in the first chunk that ends with
    /// it or after it.
    fn find(&self, key: &K) -> Result<(usize, usize), (usize, usize)> {
        let after = |chunk: &Arc<Chunk<K, V>>| chunk.last().is_some_and(|(last, _)| last < key);
        let at = self.chunks.partition_point(after);
        let Some(chunk) = self.chunks.get(at) else { return Err((at, 0)) };
        let found = chunk.binary_search_by(|(other, _)| other.cmp(key));
        found.map(|i| (at, i)).map_err(|i| (at, i))
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value that was there before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, i) = match self.find(&key) {
            Ok((at, i)) => {
                let old = &mut Arc::make_mut(&mut self.chunks[at])[i].1;
                return Some(std::mem::replace(old, value));
            }
            // After all others: at the end of the last chunk.
            Err((at, _)) if at > 0 && at == self.chunks.len() => (at - 1, self.chunks[at - 1].len()),
            Err(place) => place,
        };
        match self.chunks.get_mut(at) {
            None => self.chunks.push(Arc::new(vec![(key, value)])),
            Some(chunk) => Arc::make_mut(chunk).insert(i, (key, value)),
        }
        if self.chunks[at].len() > 2 * CHUNK {
            let half = Arc::make_mut(&mut self.chunks[at]).split_off(CHUNK);
            self.chunks.insert(at + 1, Arc::new(half));
        }
        None
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (at, i) = self.find(key).ok()?;
        let (_, value) = Arc::make_mut(&mut self.chunks[at]).remove(i);
        let next = self.chunks.get(at + 1).map_or(0, |next| next.len());
        if self.chunks[at].is_empty() {
            self.chunks.remove(at);
        } else if next > 0 && self.chunks[at].len() + next <= CHUNK {
            let next = self.chunks.remove(at + 1);
            Arc::make_mut(&mut self.chunks[at]).extend(next.iter().cloned());
        }
        Some(value)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let kept = self.iter().filter(|(key, value)| keep(key, value));
        *self = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    }
}

/// Of equal keys the last one counts.
impl<K: Ord, V> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut sorted: Vec<_> = entries.into_iter().collect();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut chunks: Vec<Arc<Chunk<K, V>>> = Vec::with_capacity(sorted.len().div_ceil(CHUNK));
        let mut entries = sorted.into_iter().peekable();
        let mut chunk = Vec::new();
        while let Some(entry) = entries.next() {
            if entries.peek().is_some_and(|(next, _)| *next == entry.0) {
                continue;
            }
            chunk.reserve_exact(if chunk.is_empty() { CHUNK.min(entries.len() + 1) } else { 0 });
            chunk.push(entry);
            if chunk.len() == CHUNK {
                chunks.push(Arc::new(std::mem::take(&mut chunk)));
            }
        }
        chunks.extend((!chunk.is_empty()).then(|| Arc::new(chunk)));
        SharedMap { chunks }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap::new()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.changes(other).next().is_none()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord, V> Index<&K> for SharedMap<K, V> {
    type Output = V;

    /// Panics where there is no such key.
    #[expect(clippy::expect_used, reason = "as every Index does")]
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("no entry for this key")
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_map_and_its_versions_differ_in_what_was_done(
            start in prop::collection::vec((0u16..2000, any::<u8>()), 0..1500),
            steps in prop::collection::vec((0u16..2000, prop::option::of(any::<u8>())), 0..1500),
        ) {
            let mut model: BTreeMap<_, _> = start.iter().copied().collect();
            let mut map: SharedMap<_, _> = start.into_iter().collect();
            let (first, before) = (map.clone(), model.clone());

            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
            }

            prop_assert_eq!(map.len(), model.len());
            prop_assert!(map.iter().eq(model.iter()));
            prop_assert!(first.iter().eq(before.iter()), "a version changed under another's hand");
            let expected = (0..2000).filter(|key| model.get(key) != before.get(key));
            prop_assert!(first.changes(&map).copied().eq(expected));
            prop_assert_eq!(map == first, model == before);
            prop_assert!(map.chunks.iter().all(|chunk| (1..=2 * CHUNK).contains(&chunk.len())));
        }
    }

    #[test]
    fn a_change_leaves_all_but_one_chunk_shared() {
        let map: SharedMap<_, _> = (0..10_000).map(|n| (n, n)).collect();
        let mut newer = map.clone();
        newer.insert(5_000, 0);

        let shared = map.chunks.iter().zip(&newer.chunks).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, map.chunks.len() - 1);
    }
}
