//! The parsed documents that are read often. A hit is what a read of the store would return.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::atomic::{AtomicU64, Ordering},
};

use foldhash::fast::RandomState;
use quick_cache::{
    Equivalent, OptionsBuilder, Weighter,
    sync::{Cache as Documents, DefaultLifecycle},
};
use serde_json::Value;

use crate::{ConfigValue, Credential, Key, Record, history::DocumentKind};

/// No document that takes more than this part of this cache is kept, which has three quarters of the memory.
const LARGEST_PART: u64 = 12;

/// The cache is divided into this many parts, each with a lock of its own. A part holds the largest document.
const SHARDS: usize = 8;

/// The number of versions. Keys share them by their hashes: a commit also hides the other documents of a
/// version until they are read again.
const VERSIONS: usize = 4096;

/// What a document of average size takes, in bytes.
const AVERAGE_WEIGHT: u64 = 2048;

/// A parsed document.
#[derive(Clone)]
pub(super) enum Parsed {
    Credential(Credential),
    Config(ConfigValue),
}

/// A bounded cache of parsed documents, which is exact.
///
/// Each document has a version, which is odd while a commit that changes the document is on its way. An entry
/// has the version that its reader saw before it looked into the store, and only counts while the version
/// is the same:
///
/// ```text
/// reader:     version, look into the store, add an entry with that version
/// committer:  version + 1, commit, publish the new state, version + 2
/// ```
///
/// So an entry of a read that began before the commit ended is never used afterwards, and a reader who has
/// seen one change of a commit finds no older value of another.
pub(super) struct Cache {
    documents: Documents<Name, Entry, Weight, Hashed, DefaultLifecycle<Name, Entry>>,
    versions: Box<[AtomicU64]>,
    hasher: RandomState,
    largest: u64,
}

/// A document's name, with its hash.
#[derive(PartialEq, Eq)]
struct Name(DocumentKind, Key, u64);

/// [`Name`] of a borrowed key.
struct NameRef<'k>(DocumentKind, &'k Key, u64);

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.2 == name.2 && self.0 == name.0 && *self.1 == name.1
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.2);
    }
}

impl Hash for NameRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.2);
    }
}

/// Passes on the hash of a [`Name`].
#[derive(Clone, Default)]
struct Hashed(u64);

impl BuildHasher for Hashed {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a name's hash is one number")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Clone)]
struct Entry {
    version: u64,
    generation: u64,
    weight: u64,
    parsed: Parsed,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Name, Entry> for Weight {
    fn weight(&self, _: &Name, entry: &Entry) -> u64 {
        entry.weight
    }
}

/// The place of the version of the documents with this hash.
const fn index(hash: u64) -> usize {
    hash as usize % VERSIONS
}

/// The version of a document when a reader came for it.
#[derive(Clone, Copy)]
pub(super) struct Version {
    number: u64,
    /// Of the document's name.
    hash: u64,
}

impl Cache {
    /// A cache of this size in bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity(usize::try_from(bytes / AVERAGE_WEIGHT).unwrap_or(usize::MAX).max(32))
            .weight_capacity(bytes)
            .build()
            .expect("both capacities are given");
        Self {
            documents: Documents::with_options(
                options,
                Weight,
                Hashed::default(),
                DefaultLifecycle::default(),
            ),
            versions: (0..VERSIONS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::default(),
            largest: bytes / LARGEST_PART,
        }
    }

    /// The bytes that the documents take.
    pub(super) fn used(&self) -> u64 {
        self.documents.weight()
    }

    fn hash(&self, kind: DocumentKind, key: &Key) -> u64 {
        self.hasher.hash_one((kind, key))
    }

    /// The document's version, which a reader needs before it looks into the cache and the store.
    pub(super) fn version(&self, kind: DocumentKind, key: &Key) -> Version {
        let hash = self.hash(kind, key);
        Version { number: self.versions[index(hash)].load(Ordering::Acquire), hash }
    }

    pub(super) fn get(
        &self,
        version: Version,
        generation: u64,
        kind: DocumentKind,
        key: &Key,
    ) -> Option<Parsed> {
        let found = self.documents.get(&NameRef(kind, key, version.hash))?;
        let counts = version.is_even() && found.version == version.number && found.generation == generation;
        counts.then_some(found.parsed)
    }

    /// Adds a document that was read from the store after its version.
    pub(super) fn put(&self, version: Version, generation: u64, key: &Key, parsed: Parsed) {
        if !version.is_even() {
            return;
        }
        let (kind, weight) = match &parsed {
            Parsed::Credential(credential) => {
                (DocumentKind::Credential, weight_of_fields(credential.fields()))
            }
            Parsed::Config(value) => (DocumentKind::Config, weight_of(value.value())),
        };
        let weight = (weight + ENTRY + piece(key.as_str().len())) as u64;
        if weight <= self.largest {
            let entry = Entry { version: version.number, generation, weight, parsed };
            self.documents.insert(Name(kind, key.clone(), version.hash), entry);
        }
    }

    /// Hides these documents until the commit is published. Only the committer calls this, one commit at a
    /// time.
    pub(super) fn begin<'c>(&'c self, changed: &[(DocumentKind, Key)]) -> Committing<'c> {
        let hashes: Vec<u64> = changed.iter().map(|(kind, key)| self.hash(*kind, key)).collect();
        let mut indices: Vec<usize> = hashes.iter().copied().map(index).collect();
        indices.sort_unstable();
        indices.dedup();
        for index in &indices {
            self.versions[*index].fetch_add(1, Ordering::SeqCst);
        }
        for ((kind, key), hash) in changed.iter().zip(hashes) {
            self.documents.remove(&NameRef(*kind, key, hash));
        }
        Committing { cache: self, indices }
    }
}

impl Version {
    /// Whether no commit that changes the document is on its way.
    const fn is_even(self) -> bool {
        self.number.is_multiple_of(2)
    }
}

/// A commit that is on its way. Dropped once its state is published, or once it has failed.
pub(super) struct Committing<'c> {
    cache: &'c Cache,
    indices: Vec<usize>,
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        for index in &self.indices {
            self.cache.versions[*index].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What an entry takes beside its document and its key's text, with the tables of the cache.
const ENTRY: usize = size_of::<(Name, Entry)>() + 128;

/// What a leaf of a `BTreeMap` with serde_json's fields takes, which has room for eleven.
const NODE: usize = piece(11 * (size_of::<String>() + size_of::<Value>()) + 16);

/// About what the allocator takes for this many bytes.
const fn piece(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=24 => 32,
        _ => (bytes + 8).next_multiple_of(16),
    }
}

/// About how many bytes of memory a value takes beside its own 32.
pub(super) fn weight_of(value: &Value) -> usize {
    match value {
        Value::String(text) => piece(text.capacity()),
        Value::Array(items) => {
            piece(items.capacity() * size_of::<Value>()) + items.iter().map(weight_of).sum::<usize>()
        }
        Value::Object(fields) => weight_of_fields(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// As [`weight_of`], of an object's fields.
pub(super) fn weight_of_fields(fields: &serde_json::Map<String, Value>) -> usize {
    let nodes = match fields.len() {
        count @ ..=11 => count.min(1),
        // A leaf that is full is divided.
        count => count.div_ceil(6),
    };
    let each = fields.iter().map(|(name, value)| piece(name.capacity()) + weight_of(value));
    nodes * NODE + each.sum::<usize>()
}

/// As [`weight_of`], of a record's document.
pub(super) fn weight_of_record(record: &Record) -> usize {
    match record {
        Record::Credential { credential, .. } => weight_of_fields(credential.fields()),
        Record::Config { value, .. } => weight_of(value),
        Record::Usage { .. } => 0,
    }
}
