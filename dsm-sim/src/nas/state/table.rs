//! An indexed table with change tracking: rows by key, secondary index, lowest free number, changes since the last commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A row of a [`Table`].
pub(crate) trait Row: Clone + PartialEq {
    type Key: Ord + Clone;

    fn key(&self) -> Self::Key;

    /// The secondary index keys. Several rows may share one.
    fn index_keys(&self) -> Vec<IndexKey>;

    /// Its number, if DSM gives each new object of this kind the lowest free one.
    fn number(&self) -> Option<u32>;

    /// Uuids of the LUNs whose used space may change when this row is added, changed or removed.
    fn luns(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A key of the secondary index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IndexKey {
    Name(String),
    Iqn(String),
    /// The uuid of a LUN that the row belongs to, maps, or is a clone of.
    Lun(String),
}

/// Objects of one kind. Only iterating over all rows takes time linear in their number.
#[derive(Clone, Debug)]
pub(crate) struct Table<R: Row> {
    rows: BTreeMap<R::Key, R>,
    index: HashMap<IndexKey, BTreeSet<R::Key>>,
    numbers: Numbers,
    /// Each changed row as of the last commit; `None`: it did not exist.
    before: BTreeMap<R::Key, Option<R>>,
    /// The LUNs of all rows that were added, changed or removed since [`Table::take_touched`].
    touched: BTreeSet<String>,
}

/// Rows that were put and removed: the difference between the last commit and now.
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

    /// All rows, in order of key.
    pub(crate) fn values(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    /// The rows with this index key, in order of key.
    pub(crate) fn find<'a>(
        &'a self,
        index_key: &IndexKey,
    ) -> impl Iterator<Item = &'a R> + use<'a, R> {
        let keys = self.index.get(index_key).into_iter().flatten();
        keys.filter_map(|key| self.rows.get(key))
    }

    /// The LUNs whose used space may have changed since [`Table::take_touched`].
    pub(crate) fn touched(&self) -> &BTreeSet<String> {
        &self.touched
    }

    /// Returns the touched LUNs, and starts over with none.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    /// The lowest free number, from 1.
    pub(crate) fn free_number(&self) -> u32 {
        self.numbers.lowest_free()
    }

    /// Adds a row, or replaces the one with the same key.
    pub(crate) fn put(&mut self, row: R) {
        let key = row.key();
        let old = self.set(&key, Some(row));
        self.before.entry(key).or_insert(old);
    }

    /// Removes and returns a row.
    pub(crate) fn remove(&mut self, key: &R::Key) -> Option<R> {
        let old = self.set(key, None)?;
        self.before
            .entry(key.clone())
            .or_insert_with(|| Some(old.clone()));
        Some(old)
    }

    /// The changes since the last commit.
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

    /// Accepts the changes as committed.
    pub(crate) fn commit(&mut self) {
        self.before.clear();
    }

    /// Reverts to the last commit. [`Table::change`] then returns the same rows as they were.
    pub(crate) fn undo(&mut self) {
        let before = std::mem::take(&mut self.before);
        for (key, row) in before {
            let undone = self.set(&key, row);
            self.before.insert(key, undone);
        }
    }

    /// Replays a change that an earlier process committed.
    pub(crate) fn apply(&mut self, change: Change<R>) {
        for row in change.put {
            self.set(&row.key(), Some(row));
        }
        for key in change.gone {
            self.set(&key, None);
        }
    }

    /// The only place that changes rows, so that index, numbers and touched LUNs always match.
    fn set(&mut self, key: &R::Key, row: Option<R>) -> Option<R> {
        let old = self.rows.remove(key);
        if let Some(old) = &old {
            for index_key in old.index_keys() {
                if let Some(keys) = self.index.get_mut(&index_key) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.index.remove(&index_key);
                    }
                }
            }
            old.number().into_iter().for_each(|n| self.numbers.free(n));
            self.touched.extend(old.luns());
        }
        if let Some(row) = row {
            for index_key in row.index_keys() {
                self.index.entry(index_key).or_default().insert(key.clone());
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
    /// A table without uncommitted changes.
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

/// The numbers in use.
#[derive(Clone, Debug, Default)]
struct Numbers {
    /// Every number from 1 to this one is in use or in `free`.
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

        fn index_keys(&self) -> Vec<IndexKey> {
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

    fn ids_with_name(table: &Table<Thing>, name: &str) -> Vec<u8> {
        table
            .find(&IndexKey::Name(name.to_owned()))
            .map(|thing| thing.id)
            .collect()
    }

    #[test]
    fn the_index_follows_changes_of_rows() {
        let mut table = Table::default();
        table.put(thing(1, "a"));
        table.put(thing(2, "a"));
        assert_eq!(ids_with_name(&table, "a"), [1, 2]);
        table.put(thing(1, "b"));
        assert_eq!(
            (ids_with_name(&table, "a"), ids_with_name(&table, "b")),
            (vec![2], vec![1])
        );
        table.remove(&2);
        assert!(ids_with_name(&table, "a").is_empty());
    }

    #[test]
    fn undo_restores_the_commit_and_reports_the_reverse_change() {
        let mut table = Table::from_iter([thing(1, "a"), thing(2, "b")]);
        let old = table.clone();
        table.put(thing(1, "x"));
        table.put(thing(1, "y"));
        table.remove(&2);
        table.put(thing(3, "c"));
        let mut replica = old.clone();
        replica.apply(table.change());
        assert_eq!(replica, table);
        table.undo();
        assert_eq!(table, old);
        assert_eq!(
            (ids_with_name(&table, "a"), ids_with_name(&table, "b")),
            (vec![1], vec![2])
        );
        replica.apply(table.change());
        assert_eq!(replica, old);
        table.commit();
        assert!(table.change().is_empty());
    }

    proptest! {
        #[test]
        fn free_number_is_the_lowest_free_number(steps in proptest::collection::vec((1..20_u8, any::<bool>()), 0..60)) {
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
