use std::net::IpAddr;

/// The destinations of one FDB entry: nearly always one, which a `BTreeSet` would
/// keep in a node with room for eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations(Vec<IpAddr>);

impl Destinations {
    pub fn of(dst: IpAddr) -> Destinations {
        Destinations(vec![dst])
    }

    pub fn contains(&self, dst: &IpAddr) -> bool {
        self.0.binary_search(dst).is_ok()
    }

    /// Whether `dst` is all there is.
    pub fn is(&self, dst: &IpAddr) -> bool {
        self.0 == [*dst]
    }

    /// Whether it was not there before.
    pub fn insert(&mut self, dst: IpAddr) -> bool {
        let place = self.0.binary_search(&dst);
        place.map_err(|i| self.0.insert(i, dst)).is_err()
    }

    pub fn remove(&mut self, dst: &IpAddr) {
        if let Ok(i) = self.0.binary_search(dst) {
            self.0.remove(i);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = &IpAddr> {
        self.0.iter()
    }
}

impl FromIterator<IpAddr> for Destinations {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(dsts: I) -> Destinations {
        let mut all = Destinations::default();
        for dst in dsts {
            all.insert(dst);
        }
        all
    }
}
