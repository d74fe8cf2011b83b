//! Key ranges as etcd's requests spell them.

/// The keys from `start` up to, but not including, `end`; `None` has no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct KeyRange {
    pub start: Vec<u8>,
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// `range_end` empty: one key. One zero byte: everything from `key` on.
    pub fn new(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            [] => Some([key, b"\0"].concat()),
            [0] => None,
            end => Some(end.to_vec()),
        };
        Self { start: key.to_vec(), end }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && self.end.as_deref().is_none_or(|end| key < end)
    }

    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// A condition on `key` for parameters `?1` and `?2`; the latter is bound
    /// to null where the range has no end.
    pub(super) fn condition(&self) -> &'static str {
        match self.end {
            Some(_) => "key >= ?1 AND key < ?2",
            None => "key >= ?1 AND ?2 IS NULL",
        }
    }
}
