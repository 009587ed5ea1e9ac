//! Finds the URL of a store. Other users can see the command line, so a URL with a password need not be on
//! it.

use std::{
    env, fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    io::input::{check_path, without_mark},
    term::{failure::Failure, output::say},
};

/// The largest file of URLs that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Resolves a URL, `env:NAME`, `@FILE`, or the name of a store.
pub(crate) fn resolve(given: &str) -> Result<String, Failure> {
    let given = given.trim();
    if let Some(name) = given.strip_prefix("env:") {
        return variable(name);
    }
    if let Some(path) = given.strip_prefix('@') {
        return in_file(Path::new(path));
    }
    if given.contains(':') || !is_name(given) {
        return Ok(given.to_owned());
    }
    named(given)
}

/// The URL of `--url`, of `STORAGE_URL` or `STORAGE_URL_FILE`, or of the store named `default`.
pub(crate) fn chosen(given: Option<&str>) -> Result<String, Failure> {
    if let Some(given) = given {
        return resolve(given);
    }
    match (set("STORAGE_URL")?, set("STORAGE_URL_FILE")?) {
        (Some(_), Some(_)) => {
            Err(Failure::usage("STORAGE_URL and STORAGE_URL_FILE are both set").hint("unset one of them"))
        }
        (Some(given), None) => resolve(&given),
        (None, Some(path)) => in_file(Path::new(path.trim())),
        (None, None) => default()?.ok_or_else(Failure::no_url),
    }
}

fn default() -> Result<Option<String>, Failure> {
    let Some(path) = path()?.filter(|path| path.exists()) else { return Ok(None) };
    Ok(find(&read_stores(&path)?, &path, "default")?.map(str::to_owned))
}

/// An environment variable, unless it is empty.
fn set(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    match value.into_string() {
        Ok(value) => Ok(Some(value).filter(|value| !value.trim().is_empty())),
        Err(_) => Err(Failure::usage(format!("the environment variable `{name}` is not UTF-8"))),
    }
}

fn variable(name: &str) -> Result<String, Failure> {
    // Not repeated: text put here by mistake can be a secret.
    if !is_name(name) {
        return Err(Failure::usage("`env:` must be followed by an environment variable name"));
    }
    match set(name)? {
        Some(url) => Ok(url.trim().to_owned()),
        None => Err(Failure::usage(format!("the environment variable `{name}` is not set or empty"))),
    }
}

/// The URL in a file that has nothing else in it.
fn in_file(path: &Path) -> Result<String, Failure> {
    let shown = format!("the file `{}`", path.display());
    let text = read(path, &shown)?;
    let url = text.trim();
    if url.is_empty() || url.contains(char::is_control) {
        let what = if url.is_empty() { "is empty" } else { "has more than one line" };
        return Err(
            Failure::usage(format!("{shown} {what}")).hint("the file must have one URL and nothing else")
        );
    }
    Ok(url.to_owned())
}

fn named(name: &str) -> Result<String, Failure> {
    let path = path()?;
    let unknown = |why: String| {
        let hint = format!(
            "a URL begins with its backend, as in `file:./data`; to name a store, write `{name} = URL` into"
        );
        Failure::usage(why).hint(match &path {
            Some(path) => format!("{hint} `{}`", path.display()),
            None => format!("{hint} the file that STORAGE_CONFIG names"),
        })
    };
    let Some(path) = path.as_deref().filter(|path| path.exists()) else {
        return Err(unknown(format!("`{name}` is not a URL, and there is no file of named stores")));
    };
    let text = read_stores(path)?;
    match find(&text, path, name)? {
        Some(url) => Ok(url.to_owned()),
        None => Err(unknown(format!("no store is named `{name}`"))),
    }
}

fn path() -> Result<Option<PathBuf>, Failure> {
    if let Some(path) = env::var_os("STORAGE_CONFIG").filter(|path| !path.is_empty()) {
        check_path(path.as_ref())?;
        return Ok(Some(path.into()));
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    Ok(directory.map(|directory| directory.join("gateway-storage").join("stores")))
}

fn read_stores(path: &Path) -> Result<String, Failure> {
    read(path, &format!("the file of named stores `{}`", path.display()))
}

/// Reads a file that may have passwords in it. If other users can read it, it is refused, unless this user
/// can't change its mode: a mounted secret belongs to root, or is read-only.
fn read(path: &Path, shown: &str) -> Result<String, Failure> {
    check_path(path)?;
    let read = || {
        let file = fs::File::open(path)?;
        let permissions = file.metadata()?.permissions();
        let mode = permissions.mode();
        // Setting the same mode changes nothing and shows whether this user could change it.
        let is_open = mode & 0o077 != 0;
        let is_refused = is_open && file.set_permissions(permissions).is_ok();
        let mut bytes = Vec::new();
        if !is_refused {
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        }
        Ok((mode, is_refused, bytes))
    };
    let (mode, is_refused, bytes) = read().map_err(|error| Failure::unreadable(shown, &error))?;
    let open = format!("{shown} may contain passwords, and other users can read it");
    if is_refused {
        return Err(Failure::usage(open).hint(format!("chmod 600 '{}'", path.display())));
    }
    // No warning for the group: secrets are commonly shared through it.
    if mode & 0o007 != 0 {
        say(&format!("warning: {open}"));
    }
    match std::str::from_utf8(without_mark(&bytes)) {
        Ok(text) if (bytes.len() as u64) < MAX_BYTES => Ok(text.to_owned()),
        Ok(_) => Err(Failure::usage(format!("{shown} is larger than 1 MiB"))),
        Err(_) => Err(Failure::usage(format!("{shown} is not UTF-8"))),
    }
}

/// Finds a name in lines of `NAME = URL`; `#` begins a comment.
fn find<'t>(text: &'t str, path: &Path, name: &str) -> Result<Option<&'t str>, Failure> {
    let mut found = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| Failure::usage(format!("line {number} of `{}` {why}", path.display()));
        let entry = line.split_once('=').map(|(name, url)| (name.trim(), url.trim()));
        let (known, url) = entry
            .filter(|(known, url)| is_name(known) && url.contains(':') && !url.starts_with("env:"))
            .ok_or_else(|| wrong("is not `NAME = URL`"))?;
        if known == name && found.replace(url).is_some() {
            return Err(wrong("repeats a name"));
        }
    }
    Ok(found)
}

fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_first = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    text.len() < 64 && text.bytes().all(is_part) && text.as_bytes().first().is_some_and(is_first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_have_names() {
        let text = "# ours\n\nprod = postgres://u:p=w@h/db?a=b#c\n  x=file:./x\r\n";
        let find = |name| find(text, Path::new("stores"), name).map_err(|failure| failure.chain);
        assert_eq!(find("prod"), Ok(Some("postgres://u:p=w@h/db?a=b#c")));
        assert_eq!(find("x"), Ok(Some("file:./x")));
        assert_eq!(find("y"), Ok(None));
    }

    #[test]
    fn errors_do_not_quote_the_file() {
        for (text, wanted) in [
            ("a = file:x\nprod postgres://u:secret@h\n", "line 2 of `stores` is not `NAME = URL`"),
            ("prod = secret\n", "line 1 of `stores` is not `NAME = URL`"),
            ("postgres://u:secret@h/?a=b\n", "line 1 of `stores` is not `NAME = URL`"),
            ("a = file:x\na = file:secret\n", "line 2 of `stores` repeats a name"),
        ] {
            let failure = find(text, Path::new("stores"), "a").unwrap_err();
            assert_eq!(failure.chain, [wanted]);
        }
    }
}
