//! Loads a directory of OAuth credential files into the store. A credential's id is its file's stem.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use gateway_storage::{Credential, CredentialStore, Key, MAX_VALUE_BYTES, Storage};
use serde_json::Value;

use crate::{
    Failure,
    credential::{OAuth, usage_key},
};

/// The fields that this gateway uses, each with its names in files of other programs. Other fields stay
/// unchanged.
const NAMES: [(&str, &[&str]); 4] = [
    ("access_token", &["accessToken", "AccessToken", "token"]),
    ("refresh_token", &["refreshToken", "RefreshToken"]),
    ("expiry", &["expires_at", "expiresAt", "ExpiresAt", "expiry_date"]),
    ("disabled", &["Disabled"]),
];

/// Reads every `*.json` in the directory. A file that is not a credential is skipped and named on stderr.
pub(crate) fn read_folder(folder: &Path) -> Result<Vec<(Key, Credential)>, Failure> {
    let unreadable = |error| Failure::Usage(format!("can't read the folder {folder:?}: {error}"));
    let entries =
        fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| path.extension() == Some(OsStr::new("json")));
    paths.sort();

    let mut credentials = Vec::new();
    for path in &paths {
        match read_file(path) {
            Ok(credential) => credentials.push(credential),
            // `Debug` of a file name escapes control characters.
            Err(problem) => eprintln!("skipped {:?}: {problem}", path.file_name().unwrap_or_default()),
        }
    }
    match (credentials.is_empty(), paths.is_empty()) {
        (false, _) => Ok(credentials),
        (true, true) => Err(Failure::Usage(format!("there are no .json files in {folder:?}"))),
        (true, false) => Err(Failure::Usage(format!("there are no usable credentials in {folder:?}"))),
    }
}

fn read_file(path: &Path) -> Result<(Key, Credential), String> {
    let name = path.file_stem().and_then(OsStr::to_str).ok_or("the name is not UTF-8")?;
    let id = Key::new(name).map_err(|error| error.to_string())?;
    usage_key(&id).map_err(|_| "the name is too long for the key of a usage record")?;

    // Checks the kind before opening the file, because opening a named pipe waits for its writer.
    if !fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() > MAX_VALUE_BYTES {
        return Err(format!("the file has more than {MAX_VALUE_BYTES} bytes"));
    }
    let credential = Credential::from_json(text).and_then(one_spelling).map_err(|error| error.to_string())?;
    match credential.to_typed::<OAuth>() {
        Err(error) => Err(error.to_string()),
        Ok(oauth) if !oauth.can_refresh() => Err("it has no refresh token".into()),
        Ok(_) => Ok((id, credential)),
    }
}

fn one_spelling(credential: Credential) -> gateway_storage::Result<Credential> {
    let mut fields = credential.fields().clone();
    for (name, others) in NAMES {
        // A `null` counts as missing.
        if fields.get(name).is_some_and(Value::is_null) {
            fields.remove(name);
        }
        for other in others {
            if !fields.contains_key(name)
                && let Some(value) = fields.remove(*other)
            {
                fields.insert(name.into(), value);
            }
        }
    }
    Credential::new(fields)
}

pub(crate) struct Loaded {
    added: usize,
    stored: usize,
}

/// Stores the credentials that the store does not have. A stored credential may be fresher than its file.
pub(crate) async fn store<B: CredentialStore>(
    storage: &Storage<B>,
    mut credentials: Vec<(Key, Credential)>,
) -> Result<Loaded, Failure> {
    let stored: BTreeSet<Key> = storage.list_credentials().await?.into_iter().collect();
    credentials.retain(|(id, _)| !stored.contains(id));
    let added = storage.set_credentials(credentials).await?.complete()?;
    Ok(Loaded { added, stored: stored.len() })
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, stored } = self;
        write!(f, "{added} {} loaded", if *added == 1 { "credential" } else { "credentials" })?;
        if *stored > 0 {
            write!(f, ", {stored} already stored")?;
        }
        writeln!(f)
    }
}
