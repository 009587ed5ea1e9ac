//! The layouts that are files: those of the backends `File` and `Git`, and a folder of credentials.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::Deserializer;
use serde_json::Value;

use super::{
    Layout, NAME_IT, NOTHING,
    directory::{Directory, Entry, Is, NO_FILE},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, MAX_VALUE_BYTES, Record, Result,
    codec::{decode_config_or_word, whole},
    model::{Members, Piece, Refused, Watched, unreadable, without_mark},
};

/// The largest file of one value: it may be wider than the compact JSON that counts.
const ONE: usize = 16 * MAX_VALUE_BYTES;

/// The largest `config/config.json`, which is read as a whole.
const ALL: usize = 4 * ONE;

/// A file to read, in the order in which records come.
pub(super) struct Step {
    of: Of,
    root: Directory,
    path: PathBuf,
    place: String,
}

enum Of {
    /// A credential, and whether it must look like one.
    Credential(Key, bool),
    /// All config values.
    Configs,
    Config(Key),
    Usage(Key),
}

/// Which layouts a directory may be of.
pub(super) fn recognise(path: &Path) -> Result<Vec<Layout>> {
    let root = Directory::open(path)?;
    let entries = list(&root)?;
    let has = |name: &str, is: Is| entries.iter().any(|entry| entry.name == name && entry.is == is);
    let inside = |folder: &str| root.entries(folder.as_ref()).ok().flatten().unwrap_or_default();
    let is_ours =
        has("store.redb", Is::File) || inside(".git").iter().any(|entry| entry.name == "gateway-storage");
    if is_ours {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            format!("{} holds a store of this crate: copy it instead", path.display()),
        ));
    }
    let configs = inside("config");
    let (map, others): (Vec<&Entry>, Vec<&Entry>) =
        configs.iter().filter(|entry| is_json(entry)).partition(|entry| entry.name == "config.json");
    let has_records = has("credentials", Is::Directory) || has("config", Is::Directory);
    let is_git = !others.is_empty() || has_records && entries.iter().any(|entry| entry.name == ".git");
    // Without a sign of either the layouts are the same.
    let is_file = !map.is_empty() || has("usage", Is::Directory) || has_records && !is_git;
    let is_folder = entries.iter().any(is_json);
    let candidates = [(Layout::Directory, is_file), (Layout::WorkTree, is_git), (Layout::Folder, is_folder)];
    let found: Vec<Layout> = candidates.into_iter().filter_map(|(layout, is)| is.then_some(layout)).collect();
    match unfollowed(&entries) {
        Some(links) if found.is_empty() => {
            Err(Error::new(ErrorKind::NotFound, format!("{NOTHING}; {links}; {NAME_IT}")))
        }
        _ => Ok(found),
    }
}

/// How many links are not followed, by reason.
fn unfollowed(entries: &[Entry]) -> Option<String> {
    let mut counts = BTreeMap::new();
    for entry in entries {
        if let Is::Link(why) = entry.is {
            *counts.entry(why).or_insert(0) += 1;
        }
    }
    let text = |(why, count): (&&str, &i32)| match count {
        1 => format!("found once: {why}"),
        _ => format!("found {count} times: {why}"),
    };
    let texts: Vec<String> = counts.iter().map(text).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// What is to be read of a directory, sorted, and what is there beside.
pub(super) fn plan(path: &Path, layout: Layout) -> Result<(Vec<Step>, Vec<Piece>)> {
    let root = Directory::open(path)?;
    let mut remarks = Vec::new();
    let mut steps = Vec::new();
    let top = list(&root)?;
    if layout == Layout::Folder {
        steps = files(&root, "", top, &mut remarks, |key| Of::Credential(key, true));
    } else {
        type Make = fn(Key) -> Of;
        let mut parts: Vec<(&str, Make)> = vec![("credentials", |id| Of::Credential(id, false))];
        match layout {
            Layout::WorkTree => parts.push(("config", Of::Config)),
            _ => parts.extend([("config", (|_| Of::Configs) as Make), ("usage", Of::Usage)]),
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
                        remarks.extend(beside("config/", others));
                    }
                    steps.extend(files(&root, &format!("{name}/"), entries, &mut remarks, make));
                }
            }
        }
        let known = |entry: &Entry| parts.iter().any(|(name, _)| entry.name == *name);
        remarks.extend(beside("", top.into_iter().filter(|entry| !known(entry)).collect()));
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
    entry.is == Is::File && stem(&entry.name).is_some()
}

fn stem(name: &OsString) -> Option<&[u8]> {
    name.as_encoded_bytes().strip_suffix(b".json")
}

/// What is no part of the layout.
fn beside(folder: &str, entries: Vec<Entry>) -> Vec<Piece> {
    let remark = |entry: Entry| {
        let place = format!("{folder}{}", entry.name.to_string_lossy());
        if is_json(&entry) {
            Piece::not_understood(place, "a JSON file that is no part of the layout")
        } else if place == ".git" {
            Piece::left_out(
                place,
                "the history; files are read as they are in the work tree, committed or not",
            )
        } else {
            Piece::left_out(place, "no part of the layout")
        }
    };
    entries.into_iter().map(remark).collect()
}

/// The files of a directory whose names are keys, sorted by these.
fn files(
    root: &Directory,
    folder: &str,
    entries: Vec<Entry>,
    remarks: &mut Vec<Piece>,
    make: impl Fn(Key) -> Of,
) -> Vec<Step> {
    let mut found = BTreeMap::new();
    for entry in entries {
        let place = format!("{folder}{}", entry.name.to_string_lossy());
        let is_hidden = entry.name.as_encoded_bytes().starts_with(b".");
        let Some(stem) = stem(&entry.name) else {
            remarks.push(match entry.is {
                Is::Directory if !is_hidden => {
                    Piece::not_understood(place, "a folder, which is not looked into")
                }
                _ => Piece::left_out(place, "its name does not end with `.json`"),
            });
            continue;
        };
        match entry.is {
            Is::Link(why) => remarks.push(Piece::not_understood(place, why)),
            Is::Directory | Is::Other => remarks.push(Piece::not_understood(place, NO_FILE)),
            Is::File => match std::str::from_utf8(stem).ok().map(Key::new) {
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
        let path = Path::new(folder).join::<OsString>(name);
        Step { of: make(key), root: root.clone(), path, place }
    };
    found.into_iter().map(step).collect()
}

/// Whether it begins as what some programs on Windows write.
fn is_wide(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff")
}

const ENCODED: &str =
    "its name is adopted as it is, but is one that a Git store of this crate gives: copy that store instead";

/// Whether a name is like `Alice~8` or `a%20b`. The Go program never wrote such names by itself.
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
        let limit = if matches!(self.of, Of::Configs) { ALL } else { ONE };
        let text = match self.root.read(&self.path, limit) {
            Ok(text) if is_wide(&text) => {
                return vec![Piece::not_understood(place(), "it is UTF-16: save it as UTF-8")];
            }
            // Editors put a mark before it, mostly on Windows.
            Ok(mut text) => {
                text.drain(..text.len() - without_mark(&text).len());
                text
            }
            Err(reason) => return vec![Piece::not_understood(place(), reason)],
        };
        let read = match &self.of {
            Of::Credential(id, must_look_like_one) => match Credential::from_json(&text) {
                Ok(credential) if *must_look_like_one && !looks_like_one(&credential) => {
                    return vec![Piece::not_understood(
                        place(),
                        "a JSON object without a field of a credential",
                    )];
                }
                read => read.map(|credential| Record::Credential { id: id.clone(), credential }),
            },
            // The Go program wrote strings as they are, so text that is no JSON is one. It never wrote nothing.
            Of::Config(_) if text.is_empty() => {
                return vec![Piece::not_understood(place(), "the file is empty")];
            }
            Of::Config(key) => {
                decode_config_or_word(&text).map(|value| Record::Config { key: key.clone(), value })
            }
            Of::Configs => return self.members(&text, config),
            Of::Usage(key) => return self.members(&text, |field, count| counter(key, field, &count.value)),
        };
        vec![read.map_or_else(|error| Piece::unreadable(place(), &error), Piece::Record)]
    }

    /// What the members of a JSON object are, sorted by their names.
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
                Err(Reason::NoCounter) => {
                    Piece::not_understood(place(), "the counter is not an integer of 64 bits")
                }
            }
        };
        members.into_iter().map(piece).collect()
    }
}

/// A member of an object, and what its value has that can't be stored.
struct Member {
    value: Value,
    refused: Option<Refused>,
}

enum Reason {
    Error(Error),
    NoCounter,
}

fn config(key: Key, Member { value, refused }: Member) -> Result<Record, Reason> {
    let value = refused.map_or_else(|| ConfigValue::new(value), |refused| Err(refused.into()));
    let value = value.map_err(Reason::Error)?;
    Ok(Record::Config { key, value })
}

fn counter(key: &Key, field: Key, count: &Value) -> Result<Record, Reason> {
    let count = count.as_i64().or_else(|| count.as_f64().and_then(whole)).ok_or(Reason::NoCounter)?;
    Ok(Record::Usage { key: key.clone(), field, count })
}

/// Whether an object has a field that credentials have. The Go program wrote them in two casings.
fn looks_like_one(credential: &Credential) -> bool {
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
