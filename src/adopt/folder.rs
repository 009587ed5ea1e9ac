//! The layouts in a directory: of gcli2api-go's file and Git backends, and a directory of credential files.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::Deserializer;
use serde_json::Value;

use super::{
    directory::{Directory, Entry, EntryKind, NOT_A_FILE},
    layout::{Layout, NAME_LAYOUT, NOT_RECOGNIZED},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, MAX_VALUE_BYTES, Record, Result,
    codec::{decode_config_or_word, whole},
    model::{Members, Piece, Refused, Watched, unreadable, without_mark},
};

/// The largest file of one value. It may be larger than the compact JSON because of white space.
const MAX_FILE_BYTES: usize = 16 * MAX_VALUE_BYTES;

/// The largest `config/config.json`, which is read as a whole.
const MAX_CONFIGS_BYTES: usize = 4 * MAX_FILE_BYTES;

/// A file to read.
pub(super) struct Step {
    contents: Contents,
    root: Directory,
    path: PathBuf,
    /// The path, for remarks.
    place: String,
}

enum Contents {
    /// A credential, and whether it must have a well-known field: see [`has_credential_field`].
    Credential(Key, bool),
    /// All config values.
    Configs,
    Config(Key),
    Usage(Key),
}

/// The possible layouts of a directory.
pub(super) fn recognize(path: &Path) -> Result<Vec<Layout>> {
    let root = Directory::open(path)?;
    let entries = list(&root)?;
    let has =
        |name: &str, kind: EntryKind| entries.iter().any(|entry| entry.name == name && entry.kind == kind);
    let inside = |directory: &str| root.entries(directory.as_ref()).ok().flatten().unwrap_or_default();
    let is_ours = has("store.redb", EntryKind::File)
        || inside(".git").iter().any(|entry| entry.name == "gateway-storage");
    if is_ours {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            format!("{} holds a store of this crate: copy it instead", path.display()),
        ));
    }
    let configs = inside("config");
    let (map, others): (Vec<&Entry>, Vec<&Entry>) =
        configs.iter().filter(|entry| is_json(entry)).partition(|entry| entry.name == "config.json");
    let has_records = has("credentials", EntryKind::Directory) || has("config", EntryKind::Directory);
    let is_git = !others.is_empty() || has_records && entries.iter().any(|entry| entry.name == ".git");
    // Without these signs the two layouts do not differ, and the data counts as the file backend's.
    let is_file = !map.is_empty() || has("usage", EntryKind::Directory) || has_records && !is_git;
    let is_folder = entries.iter().any(is_json);
    let candidates = [(Layout::Directory, is_file), (Layout::WorkTree, is_git), (Layout::Folder, is_folder)];
    let found: Vec<Layout> = candidates.into_iter().filter_map(|(layout, is)| is.then_some(layout)).collect();
    match links_not_followed(&entries) {
        Some(links) if found.is_empty() => {
            Err(Error::new(ErrorKind::NotFound, format!("{NOT_RECOGNIZED}; {links}; {NAME_LAYOUT}")))
        }
        _ => Ok(found),
    }
}

/// The links that are not followed, counted by reason.
fn links_not_followed(entries: &[Entry]) -> Option<String> {
    let mut counts = BTreeMap::new();
    for entry in entries {
        if let EntryKind::Link(why) = entry.kind {
            *counts.entry(why).or_insert(0) += 1;
        }
    }
    let text = |(why, count): (&&str, &i32)| match count {
        1 => format!("1 entry was skipped: {why}"),
        _ => format!("{count} entries were skipped: {why}"),
    };
    let texts: Vec<String> = counts.iter().map(text).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// The files to read, in the order of their records, and remarks about everything else.
pub(super) fn plan(path: &Path, layout: Layout) -> Result<(Vec<Step>, Vec<Piece>)> {
    let root = Directory::open(path)?;
    let mut remarks = Vec::new();
    let mut steps = Vec::new();
    let top = list(&root)?;
    if layout == Layout::Folder {
        steps = files(&root, "", top, &mut remarks, |key| Contents::Credential(key, true));
    } else {
        type Make = fn(Key) -> Contents;
        let mut parts: Vec<(&str, Make)> = vec![("credentials", |id| Contents::Credential(id, false))];
        match layout {
            Layout::WorkTree => parts.push(("config", Contents::Config)),
            _ => parts.extend([("config", (|_| Contents::Configs) as Make), ("usage", Contents::Usage)]),
        }
        for (name, make) in &parts {
            match root.entries(name.as_ref()) {
                Ok(None) => {}
                Err(reason) => remarks.push(Piece::not_understood(*name, reason)),
                Ok(Some(mut entries)) => {
                    if *name == "config" && layout == Layout::Directory {
                        let (map, others) =
                            entries.into_iter().partition(|entry| entry.name == "config.json");
                        entries = map;
                        remarks.extend(unrelated("config/", others));
                    }
                    steps.extend(files(&root, &format!("{name}/"), entries, &mut remarks, make));
                }
            }
        }
        let known = |entry: &Entry| parts.iter().any(|(name, _)| entry.name == *name);
        remarks.extend(unrelated("", top.into_iter().filter(|entry| !known(entry)).collect()));
    }
    Ok((steps, remarks))
}

fn list(root: &Directory) -> Result<Vec<Entry>> {
    match root.entries(Path::new("")) {
        Ok(entries) => Ok(entries.unwrap_or_default()),
        Err(why) => Err(Error::new(ErrorKind::Unavailable, format!("the directory can't be listed: {why}"))),
    }
}

fn is_json(entry: &Entry) -> bool {
    entry.kind == EntryKind::File && stem(&entry.name).is_some()
}

fn stem(name: &OsString) -> Option<&[u8]> {
    name.as_encoded_bytes().strip_suffix(b".json")
}

/// Remarks about entries that are no part of the layout.
fn unrelated(directory: &str, entries: Vec<Entry>) -> Vec<Piece> {
    let remark = |entry: Entry| {
        let place = format!("{directory}{}", entry.name.to_string_lossy());
        if is_json(&entry) {
            Piece::not_understood(place, "a JSON file that is no part of the layout")
        } else if place == ".git" {
            Piece::left_out(place, "the history; files are read from the work tree, committed or not")
        } else {
            Piece::left_out(place, "no part of the layout")
        }
    };
    entries.into_iter().map(remark).collect()
}

/// The files of a directory whose names are keys, sorted by key.
fn files(
    root: &Directory,
    directory: &str,
    entries: Vec<Entry>,
    remarks: &mut Vec<Piece>,
    make: impl Fn(Key) -> Contents,
) -> Vec<Step> {
    let mut found = BTreeMap::new();
    for entry in entries {
        let place = format!("{directory}{}", entry.name.to_string_lossy());
        let is_hidden = entry.name.as_encoded_bytes().starts_with(b".");
        let Some(stem) = stem(&entry.name) else {
            remarks.push(match entry.kind {
                EntryKind::Directory if !is_hidden => {
                    Piece::not_understood(place, "a directory, which is not searched")
                }
                _ => Piece::left_out(place, "its name does not end with `.json`"),
            });
            continue;
        };
        match entry.kind {
            EntryKind::Link(why) => remarks.push(Piece::not_understood(place, why)),
            EntryKind::Directory | EntryKind::Other => remarks.push(Piece::not_understood(place, NOT_A_FILE)),
            EntryKind::File => match std::str::from_utf8(stem).ok().map(Key::new) {
                Some(Ok(key)) => {
                    if is_encoded(key.as_str()) {
                        remarks.push(Piece::changed(place.clone(), ENCODED));
                    }
                    found.insert(key, (entry.name, place));
                }
                Some(Err(error)) => remarks.push(Piece::unreadable(place, &error)),
                None => remarks.push(Piece::not_understood(place, "its name is not UTF-8")),
            },
        }
    }
    let step = |(key, (name, place))| {
        let path = Path::new(directory).join::<OsString>(name);
        Step { contents: make(key), root: root.clone(), path, place }
    };
    found.into_iter().map(step).collect()
}

/// Whether a text begins like UTF-16, which some Windows programs write.
fn is_utf16(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff")
}

const ENCODED: &str = "its name is adopted unchanged, but looks like a file of a Git store of this crate: copy that store instead";

/// Whether a name is like `Alice~8` or `a%20b`. gcli2api-go never chose such names itself.
fn is_encoded(name: &str) -> bool {
    let is_hex = |text: &[u8]| text.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    let has_capitals = name.rsplit_once('~').is_some_and(|(_, bits)| {
        !bits.is_empty() && bits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    });
    has_capitals || name.as_bytes().windows(3).any(|part| part[0] == b'%' && is_hex(&part[1..]))
}

impl Step {
    /// Reads the file.
    pub(super) fn read(&self) -> Vec<Piece> {
        let place = || self.place.clone();
        let limit =
            if matches!(self.contents, Contents::Configs) { MAX_CONFIGS_BYTES } else { MAX_FILE_BYTES };
        let text = match self.root.read(&self.path, limit) {
            Ok(text) if is_utf16(&text) => {
                return vec![Piece::not_understood(place(), "it is UTF-16: save it as UTF-8")];
            }
            // Some editors write a byte order mark, mostly on Windows.
            Ok(mut text) => {
                text.drain(..text.len() - without_mark(&text).len());
                text
            }
            Err(reason) => return vec![Piece::not_understood(place(), reason)],
        };
        let read = match &self.contents {
            Contents::Credential(id, must_have_field) => match Credential::from_json(&text) {
                Ok(credential) if *must_have_field && !has_credential_field(&credential) => {
                    return vec![Piece::not_understood(
                        place(),
                        "a JSON object without any field of a credential",
                    )];
                }
                read => read.map(|credential| Record::Credential { id: id.clone(), credential }),
            },
            // gcli2api-go wrote strings without quotes, so text that is not JSON is a string. It never wrote
            // an empty file.
            Contents::Config(_) if text.is_empty() => {
                return vec![Piece::not_understood(place(), "the file is empty")];
            }
            Contents::Config(key) => {
                decode_config_or_word(&text).map(|value| Record::Config { key: key.clone(), value })
            }
            Contents::Configs => return self.members(&text, config),
            Contents::Usage(key) => {
                return self.members(&text, |field, count| counter(key, field, &count.value));
            }
        };
        vec![read.map_or_else(|error| Piece::unreadable(place(), &error), Piece::Record)]
    }

    /// Reads each member of a JSON object, sorted by name.
    fn members(&self, text: &[u8], read: impl Fn(Key, Member) -> Result<Record, Reason>) -> Vec<Piece> {
        let seen = Cell::new(None);
        let mut members = BTreeMap::new();
        let each = |name: String, value, refused| drop(members.insert(name, Member { value, refused }));
        let mut parser = serde_json::Deserializer::from_reader(Watched::new(text, &seen));
        let parsed = parser.deserialize_map(Members { seen: &seen, each }).and_then(|()| parser.end());
        if let Err(error) = parsed {
            return vec![Piece::unreadable(self.place.clone(), &unreadable(text, &error))];
        }
        let piece = |(name, member): (String, Member)| {
            let read = Key::new(&name).map_err(Reason::Error).and_then(|key| read(key, member));
            let place = || format!("{} {name}", self.place);
            match read {
                Ok(record) => Piece::Record(record),
                Err(Reason::Error(error)) => Piece::unreadable(place(), &error),
                Err(Reason::NotACounter) => {
                    Piece::not_understood(place(), "the counter is not an integer of 64 bits")
                }
            }
        };
        members.into_iter().map(piece).collect()
    }
}

/// The value of an object's member, and why it can't be stored, if so.
struct Member {
    value: Value,
    refused: Option<Refused>,
}

enum Reason {
    Error(Error),
    NotACounter,
}

fn config(key: Key, Member { value, refused }: Member) -> Result<Record, Reason> {
    let value = refused.map_or_else(|| ConfigValue::new(value), |refused| Err(refused.into()));
    let value = value.map_err(Reason::Error)?;
    Ok(Record::Config { key, value })
}

fn counter(key: &Key, field: Key, count: &Value) -> Result<Record, Reason> {
    let count = count.as_i64().or_else(|| count.as_f64().and_then(whole)).ok_or(Reason::NotACounter)?;
    Ok(Record::Usage { key: key.clone(), field, count })
}

/// Whether an object has a field of a credential, in either of the two casings that gcli2api-go wrote.
fn has_credential_field(credential: &Credential) -> bool {
    const NAMES: [&str; 12] = [
        "access_token",
        "api_key",
        "client_id",
        "client_secret",
        "private_key",
        "refresh_token",
        "token",
        "AccessToken",
        "APIKey",
        "ClientID",
        "ClientSecret",
        "RefreshToken",
    ];
    NAMES.iter().any(|name| credential.get(name).is_some())
}
