//! Objects of one kind: by key, by whatever else they are found by, and with what has changed since the last commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Something that a [`Table`] can hold.
pub(crate) trait Row: Clone + PartialEq {
    type Key: Ord + Clone;

    fn key(&self) -> Self::Key;

    /// What it is found by besides its key. Several rows may share a term.
    fn terms(&self) -> Vec<IndexKey>;

    /// Its number, where DSM gives each new object the lowest free one.
    fn number(&self) -> Option<u32>;

    /// The LUNs, by uuid, that may take another space when this row comes, changes or goes.
    fn luns(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Something that rows are found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IndexKey {
    Name(String),
    Iqn(String),
    /// The uuid of a LUN that the row belongs to, maps, or is a clone of.
    Lun(String),
}

/// Objects of one kind. Nothing here takes time that grows with their number, but going through all of them.
#[derive(Clone, Debug)]
pub(crate) struct Table<R: Row> {
    rows: BTreeMap<R::Key, R>,
    index: HashMap<IndexKey, BTreeSet<R::Key>>,
    numbers: Numbers,
    /// What each changed row was at the last commit; `None`: it was not there.
    before: BTreeMap<R::Key, Option<R>>,
    /// The LUNs of all rows that came, changed or went since somebody asked.
    touched: BTreeSet<String>,
}

/// Rows that were put and rows that went: what turns the table of the last commit into this one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(
    serialize = "R: Serialize, R::Key: Serialize",
    deserialize = "R: Deserialize<'de>, R::Key: Deserialize<'de>"
))]
pub(crate) struct Change<R: Row> {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    put: Vec<R>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<R::Key>,
}

impl<R: Row> Change<R> {
    pub(crate) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }
}

impl<R: Row> Default for Change<R> {
    fn default() -> Self {
        Self {
            put: Vec::new(),
            gone: Vec::new(),
        }
    }
}

impl<R: Row> Table<R> {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn get(&self, key: &R::Key) -> Option<&R> {
        self.rows.get(key)
    }

    /// All rows, by key.
    pub(crate) fn values(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    /// The rows with this term, by key.
    pub(crate) fn find<'a>(&'a self, term: &IndexKey) -> impl Iterator<Item = &'a R> + use<'a, R> {
        let keys = self.index.get(term).into_iter().flatten();
        keys.filter_map(|key| self.rows.get(key))
    }

    /// The LUNs that may take another space since [`Table::untouch`].
    pub(crate) fn touched(&self) -> &BTreeSet<String> {
        &self.touched
    }

    /// The same, and from now on only what is touched later.
    pub(crate) fn untouch(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    /// The lowest number that no row has, from 1.
    pub(crate) fn free_number(&self) -> u32 {
        self.numbers.lowest_free()
    }

    /// Adds a row, or puts it in the place of the one with its key.
    pub(crate) fn put(&mut self, row: R) {
        let key = row.key();
        let old = self.set(&key, Some(row));
        self.before.entry(key).or_insert(old);
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, key: &R::Key) -> Option<R> {
        let old = self.set(key, None)?;
        self.before
            .entry(key.clone())
            .or_insert_with(|| Some(old.clone()));
        Some(old)
    }

    /// What has changed since the last commit.
    pub(crate) fn change(&self) -> Change<R> {
        let mut change = Change::default();
        for key in self.before.keys() {
            match self.rows.get(key) {
                Some(row) => change.put.push(row.clone()),
                None => change.gone.push(key.clone()),
            }
        }
        change
    }

    /// Makes what has changed permanent.
    pub(crate) fn commit(&mut self) {
        self.before.clear();
    }

    /// Takes back what has changed since the last commit; [`Table::change`] then names the same rows as they were.
    pub(crate) fn undo(&mut self) {
        let before = std::mem::take(&mut self.before);
        for (key, row) in before {
            let undone = self.set(&key, row);
            self.before.insert(key, undone);
        }
    }

    /// Applies a change that was committed in an earlier life.
    pub(crate) fn apply(&mut self, change: Change<R>) {
        for row in change.put {
            self.set(&row.key(), Some(row));
        }
        for key in change.gone {
            self.set(&key, None);
        }
    }

    /// The only place where rows change, so that index and numbers always follow.
    fn set(&mut self, key: &R::Key, row: Option<R>) -> Option<R> {
        let old = self.rows.remove(key);
        if let Some(old) = &old {
            for term in old.terms() {
                if let Some(keys) = self.index.get_mut(&term) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.index.remove(&term);
                    }
                }
            }
            old.number().into_iter().for_each(|n| self.numbers.free(n));
            self.touched.extend(old.luns());
        }
        if let Some(row) = row {
            for term in row.terms() {
                self.index.entry(term).or_default().insert(key.clone());
            }
            row.number().into_iter().for_each(|n| self.numbers.take(n));
            self.touched.extend(row.luns());
            self.rows.insert(key.clone(), row);
        }
        old
    }
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            index: HashMap::new(),
            numbers: Numbers::default(),
            before: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }
}

impl<R: Row> FromIterator<R> for Table<R> {
    /// A table in which nothing counts as changed.
    fn from_iter<I: IntoIterator<Item = R>>(rows: I) -> Self {
        let mut table = Self::default();
        for row in rows {
            table.set(&row.key(), Some(row));
        }
        table
    }
}

impl<R: Row> PartialEq for Table<R> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl<R: Row + Serialize> Serialize for Table<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows.values())
    }
}

impl<'de, R: Row + Deserialize<'de>> Deserialize<'de> for Table<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from_iter)
    }
}

/// Which numbers are taken.
#[derive(Clone, Debug, Default)]
struct Numbers {
    /// Every number from 1 to here is taken or in `free`.
    highest: u32,
    free: BTreeSet<u32>,
}

impl Numbers {
    fn lowest_free(&self) -> u32 {
        self.free.first().copied().unwrap_or(self.highest + 1)
    }

    fn take(&mut self, number: u32) {
        self.free.extend(self.highest + 1..number);
        self.highest = self.highest.max(number);
        self.free.remove(&number);
    }

    fn free(&mut self, number: u32) {
        self.free.insert(number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        id: u8,
        name: String,
    }

    impl Row for Thing {
        type Key = u8;

        fn key(&self) -> u8 {
            self.id
        }

        fn terms(&self) -> Vec<IndexKey> {
            vec![IndexKey::Name(self.name.clone())]
        }

        fn number(&self) -> Option<u32> {
            Some(self.id.into())
        }
    }

    fn thing(id: u8, name: &str) -> Thing {
        Thing {
            id,
            name: name.to_owned(),
        }
    }

    fn named(table: &Table<Thing>, name: &str) -> Vec<u8> {
        table
            .find(&IndexKey::Name(name.to_owned()))
            .map(|thing| thing.id)
            .collect()
    }

    #[test]
    fn rows_are_found_by_their_terms_as_they_are_now() {
        let mut table = Table::default();
        table.put(thing(1, "a"));
        table.put(thing(2, "a"));
        assert_eq!(named(&table, "a"), [1, 2]);
        table.put(thing(1, "b"));
        assert_eq!((named(&table, "a"), named(&table, "b")), (vec![2], vec![1]));
        table.remove(&2);
        assert!(named(&table, "a").is_empty());
    }

    #[test]
    fn an_undo_is_as_if_nothing_had_been_and_says_what_it_took_back() {
        let mut table = Table::from_iter([thing(1, "a"), thing(2, "b")]);
        let old = table.clone();
        table.put(thing(1, "x"));
        table.put(thing(1, "y"));
        table.remove(&2);
        table.put(thing(3, "c"));
        let mut elsewhere = old.clone();
        elsewhere.apply(table.change());
        assert_eq!(elsewhere, table);
        table.undo();
        assert_eq!(table, old);
        assert_eq!((named(&table, "a"), named(&table, "b")), (vec![1], vec![2]));
        elsewhere.apply(table.change());
        assert_eq!(elsewhere, old);
        table.commit();
        assert!(table.change().is_empty());
    }

    proptest! {
        #[test]
        fn the_lowest_free_number_is_given(steps in proptest::collection::vec((1..20_u8, any::<bool>()), 0..60)) {
            let mut table = Table::default();
            for (id, put) in steps {
                if put {
                    table.put(thing(id, "x"));
                } else {
                    table.remove(&id);
                }
                let taken = |n: u32| table.values().any(|thing| u32::from(thing.id) == n);
                let lowest = (1..100).find(|&n| !taken(n)).unwrap();
                prop_assert_eq!(table.free_number(), lowest);
            }
        }
    }
}
