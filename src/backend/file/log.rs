//! The log of a store that is watched and that several processes share: what each commit has changed.
//!
//! It is in the table `changed`, by the number of the commit; a compaction has its names there, under other
//! numbers. Each commit has one entry that begins it: [`COMMIT`] and the handle that made it. One entry for
//! each document follows: [`DOCUMENT`] and its name. A commit of too many documents has [`MANY`] only.
//!
//! A commit of a process that does not log, because it does not know yet that the store is watched or because
//! it is of an older version, counts and leaves a gap. So do a compaction and the removal of old entries.

use std::collections::BTreeSet;

use redb::{ReadTransaction, TableError, WriteTransaction};

use super::tables::CHANGED;
use crate::{Key, backend::feed::Change, codec::RecordKey, history::DocumentKind};

/// The number of commits that are kept.
const KEPT: u64 = 1024;

/// A commit that changes more documents does not name them.
const MOST_NAMES: usize = 256;

const COMMIT: u8 = b'c';
const DOCUMENT: u8 = b'd';
const MANY: u8 = b'm';

/// Logs what a commit changes.
pub(super) fn write(
    transaction: &WriteTransaction,
    commit: u64,
    writer: u64,
    changed: &[(DocumentKind, Key)],
) -> Result<(), redb::Error> {
    let mut log = transaction.open_table(CHANGED)?;
    let mut add = |part: u8, name: &[u8]| {
        let name = [&[part], name].concat();
        log.insert((commit, name.as_slice()), ()).map(drop)
    };
    let names = if changed.len() > MOST_NAMES { None } else { Some(changed) };
    add(if names.is_some() { COMMIT } else { MANY }, &writer.to_be_bytes())?;
    for (kind, key) in names.into_iter().flatten() {
        let name = match kind {
            DocumentKind::Credential => RecordKey::Credential(key.clone()),
            DocumentKind::Config => RecordKey::Config(key.clone()),
        };
        add(DOCUMENT, &name.encode())?;
    }
    Ok(log.retain_in((0, &[][..])..(commit.saturating_sub(KEPT), &[][..]), |_, ()| false)?)
}

/// What the commits from `then` to `now` have changed, but not those of one handle. None: they are not all
/// in the log.
pub(super) fn read(
    from: &ReadTransaction,
    then: u64,
    now: u64,
    but: u64,
) -> Result<Option<BTreeSet<Change>>, redb::Error> {
    let (mut changes, mut commits, mut is_left_out) = (BTreeSet::new(), 0, false);
    if then == now {
        return Ok(Some(changes));
    }
    let log = match from.open_table(CHANGED) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        log => log?,
    };
    for entry in log.range((then + 1, &[][..])..(now + 1, &[][..]))? {
        let entry = entry?.0;
        match entry.value().1.split_first() {
            Some((part @ &(COMMIT | MANY), writer)) => {
                commits += 1;
                is_left_out = writer == but.to_be_bytes();
                if *part == MANY && !is_left_out {
                    return Ok(None);
                }
            }
            Some((&DOCUMENT, name)) if !is_left_out => drop(changes.insert(change_of(name))),
            _ => {}
        }
    }
    Ok((then + commits == now).then_some(changes))
}

/// The change of the document with this name. If that can't be read, any of its kind.
fn change_of(name: &[u8]) -> Change {
    match RecordKey::decode(name) {
        Ok(RecordKey::Credential(id)) => (DocumentKind::Credential, Some(id)),
        Ok(RecordKey::Config(key)) => (DocumentKind::Config, Some(key)),
        _ if RecordKey::configs().contains(&name.to_vec()) => (DocumentKind::Config, None),
        _ => (DocumentKind::Credential, None),
    }
}
