//! [`ListOptions`]: which records a stream returns.

use std::{fmt, ops::Bound};

use gateway_storage_macros::Setters;
use smol_str::SmolStr;

use crate::Key;

/// Which records a stream returns: by default all.
///
/// ```
/// # use gateway_storage::{Memory, Storage, list::ListOptions};
/// # use futures_util::TryStreamExt;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?;
/// for key in ["acme/a", "acme/b", "acme/c", "globex/a"] {
///     storage.increment_usage(key, "requests", 1).await?;
/// }
/// // The first page of acme's records, and the second.
/// let page = ListOptions::default().with_prefix("acme/").with_limit(2);
/// let first: Vec<_> = storage.stream_usage(page.clone()).try_collect().await?;
/// let last = first.last().map(|(key, _)| key.clone()).unwrap();
/// let second: Vec<_> = storage.stream_usage(page.with_after(last)).try_collect().await?;
/// assert_eq!((first.len(), second.len()), (2, 1));
/// # Ok(()) }
/// ```
#[derive(Clone, Default, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct ListOptions {
    /// Only records whose keys begin with this text. Empty: all keys.
    pub prefix: String,
    /// Only records whose keys sort after this key, by their bytes. No record needs to have it. Pass the last
    /// key of a page to get the next page.
    pub after: Option<Key>,
    /// At most this number of records.
    pub limit: Option<usize>,
}

/// Prints no key.
impl fmt::Debug for ListOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListOptions")
            .field("prefix", &format_args!("{} bytes", self.prefix.len()))
            .field("after", &self.after)
            .field("limit", &self.limit)
            .finish()
    }
}

/// A text that sorts after every key: longer than a key, of the last character.
pub(crate) const BEHIND_ALL: &str = {
    const LAST: [u8; 256] = {
        let (mut bytes, mut at) = ([0; 256], 0);
        while at < bytes.len() {
            [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] = [0xf4, 0x8f, 0xbf, 0xbf];
            at += 4;
        }
        bytes
    };
    match std::str::from_utf8(&LAST) {
        Ok(text) => text,
        Err(_) => "",
    }
};

/// The keys that begin with a prefix and sort after a key. There is at least one such text.
#[derive(Clone)]
pub(crate) struct KeyRange {
    /// The first key, or the key before it. No key is empty.
    from: Bound<SmolStr>,
    /// The text that sorts after all of them.
    end: SmolStr,
}

impl KeyRange {
    /// All keys with this prefix.
    pub(crate) fn of_prefix(prefix: &str) -> Self {
        Self { from: Bound::Included(SmolStr::new(prefix)), end: end_of(prefix) }
    }

    /// None: no key is in the range.
    pub(crate) fn of(options: &ListOptions) -> Option<Self> {
        let mut range = Self::of_prefix(&options.prefix);
        match &options.after {
            Some(after) => range.begin_after(after).then_some(range),
            None => Some(range),
        }
    }

    /// Begins after this key. False: no key is left.
    pub(crate) fn begin_after(&mut self, key: &Key) -> bool {
        if key.as_str() >= self.first() {
            self.from = Bound::Excluded(key.text().clone());
        }
        key.as_str() < self.end()
    }

    /// The first key that could be in the range, which may be excluded from it: see
    /// [`has_first`](Self::has_first).
    pub(crate) fn first(&self) -> &str {
        match &self.from {
            Bound::Included(first) | Bound::Excluded(first) => first,
            Bound::Unbounded => "",
        }
    }

    pub(crate) fn has_first(&self) -> bool {
        matches!(self.from, Bound::Included(_))
    }

    /// The text that sorts after all of them.
    pub(crate) fn end(&self) -> &str {
        &self.end
    }

    /// For the ranges of a map without its end, which costs a search of its own.
    pub(crate) fn start(&self) -> (Bound<&str>, Bound<&str>) {
        (self.from.as_ref().map(SmolStr::as_str), Bound::Unbounded)
    }

    /// For the ranges of a map.
    pub(crate) fn bounds(&self) -> (Bound<&str>, Bound<&str>) {
        (self.from.as_ref().map(SmolStr::as_str), Bound::Excluded(&self.end))
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        let is_behind =
            if self.has_first() { key.as_str() >= self.first() } else { key.as_str() > self.first() };
        is_behind && key.as_str() < self.end()
    }
}

/// The first text after all that begin with this prefix. In UTF-8 the order of the bytes is that of the
/// characters.
fn end_of(prefix: &str) -> SmolStr {
    let mut rest = prefix;
    while let Some(last) = rest.chars().next_back() {
        rest = &rest[..rest.len() - last.len_utf8()];
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            return [rest, next.encode_utf8(&mut [0; 4])].into_iter().collect();
        }
    }
    SmolStr::new_static(BEHIND_ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn a_range_has_the_keys_with_its_prefix() {
        let long = "\u{10ffff}".repeat(63);
        let names = ["a", "a/", "a/b", "a0", "a\u{7f}x", "b", "\u{d7ff}", "\u{e000}", "\u{10ffff}", &long];
        let names = names.into_iter().filter_map(|name| Key::new(name).ok()).collect::<Vec<_>>();
        for prefix in ["", "a", "a/", "b", "c", "\u{d7ff}", "\u{10ffff}", "x\ny", &"x".repeat(300)] {
            for after in std::iter::once(None).chain(names.iter().cloned().map(Some)) {
                let options = ListOptions { prefix: prefix.to_owned(), after: after.clone(), limit: None };
                let range = KeyRange::of(&options);
                for name in &names {
                    let is_meant =
                        name.as_str().starts_with(prefix) && after.as_ref().is_none_or(|after| name > after);
                    let is_found = range.as_ref().is_some_and(|range| range.contains(name));
                    assert_eq!(is_found, is_meant, "{:?} {prefix:?} {:?}", name.as_str(), after);
                }
            }
        }
    }

    #[test]
    fn ranges_are_valid_for_maps() {
        let map: std::collections::BTreeMap<Key, ()> = [(key("a"), ()), (key("b"), ())].into();
        for (prefix, after, wanted) in
            [("a", Some("a"), 0), ("a", Some("b"), 0), ("b", Some("a"), 1), ("", Some("a"), 1), ("", None, 2)]
        {
            let options = ListOptions { prefix: prefix.to_owned(), after: after.map(key), limit: None };
            let found = KeyRange::of(&options).map_or(0, |range| map.range::<str, _>(range.bounds()).count());
            assert_eq!(found, wanted, "{prefix} {after:?}");
        }
    }

    #[test]
    fn debug_prints_no_key() {
        let options = ListOptions::default().with_prefix("secret").with_after(key("secret"));
        assert!(!format!("{options:?}").contains("secret"));
    }
}
