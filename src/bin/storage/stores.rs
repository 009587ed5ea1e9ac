//! Where a URL is found, so that its password need not stand on the line, which other users can see.

use std::{
    env, fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    failure::Failure,
    input::{check_path, without_mark},
    output::say,
};

/// The most that is read of a file with URLs.
const MAX_BYTES: u64 = 1 << 20;

/// The URL that is meant: itself, `env:NAME`, `@FILE`, or the name of a store in the file of stores.
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

/// The URL that is meant: the one on the line, or that of `STORAGE_URL` or `STORAGE_URL_FILE`, or the store called `default`.
pub(crate) fn chosen(given: Option<String>) -> Result<String, Failure> {
    if let Some(given) = given {
        return resolve(&given);
    }
    match (set("STORAGE_URL")?, set("STORAGE_URL_FILE")?) {
        (Some(_), Some(_)) => {
            Err(Failure::line("STORAGE_URL and STORAGE_URL_FILE are both set").hint("unset one of them"))
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

/// A variable of the environment, if there is something in it.
fn set(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    match value.into_string() {
        Ok(value) => Ok(Some(value).filter(|value| !value.trim().is_empty())),
        Err(_) => Err(Failure::line(format!("the variable `{name}` is not UTF-8"))),
    }
}

fn variable(name: &str) -> Result<String, Failure> {
    // What stands behind `env:` by mistake can be a secret.
    if !is_name(name) {
        return Err(Failure::line("what stands behind `env:` is not the name of a variable"));
    }
    match set(name)? {
        Some(url) => Ok(url.trim().to_owned()),
        None => Err(Failure::line(format!("the environment has no variable `{name}`, or an empty one"))),
    }
}

/// The URL that a file holds, and nothing else.
fn in_file(path: &Path) -> Result<String, Failure> {
    let shown = format!("the file `{}`", path.display());
    let text = read(path, &shown)?;
    let url = text.trim();
    if url.is_empty() || url.contains(char::is_control) {
        let what = if url.is_empty() { "is empty" } else { "has more than one line" };
        return Err(Failure::line(format!("{shown} {what}")).hint("it holds one URL, and nothing else"));
    }
    Ok(url.to_owned())
}

fn named(name: &str) -> Result<String, Failure> {
    let path = path()?;
    let unknown = |why: String| {
        let hint = format!(
            "a URL begins with its backend, as `file:./data` does; for a name write `{name} = URL` into"
        );
        Failure::line(why).hint(match &path {
            Some(path) => format!("{hint} `{}`", path.display()),
            None => format!("{hint} the file that STORAGE_CONFIG names"),
        })
    };
    let Some(path) = path.as_deref().filter(|path| path.exists()) else {
        return Err(unknown(format!("`{name}` is no URL, and there is no file of named stores")));
    };
    let text = read_stores(path)?;
    match find(&text, path, name)? {
        Some(url) => Ok(url.to_owned()),
        None => Err(unknown(format!("no store is called `{name}`"))),
    }
}

fn path() -> Result<Option<PathBuf>, Failure> {
    if let Some(path) = env::var_os("STORAGE_CONFIG").filter(|path| !path.is_empty()) {
        check_path(path.as_ref())?;
        return Ok(Some(path.into()));
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    Ok(folder.map(|folder| folder.join("gateway-storage").join("stores")))
}

fn read_stores(path: &Path) -> Result<String, Failure> {
    read(path, &format!("the file of stores `{}`", path.display()))
}

/// Reads a file that may hold passwords. One that others can read is refused where its mode is the user's own doing; a secret
/// that was mounted belongs to root, or can't be changed.
fn read(path: &Path, shown: &str) -> Result<String, Failure> {
    check_path(path)?;
    let read = || {
        let file = fs::File::open(path)?;
        let permissions = file.metadata()?.permissions();
        let mode = permissions.mode();
        // Set to what it is already, so that nothing changes where this is allowed.
        let is_open = mode & 0o077 != 0;
        let is_refused = is_open && file.set_permissions(permissions).is_ok();
        let mut bytes = Vec::new();
        if !is_refused {
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        }
        Ok((mode, is_refused, bytes))
    };
    let (mode, is_refused, bytes) = read().map_err(|error| Failure::unreadable(shown, &error))?;
    let open = format!("{shown} can be read by other users, and it may hold passwords");
    if is_refused {
        return Err(Failure::line(open).hint(format!("chmod 600 '{}'", path.display())));
    }
    // A group is how such a secret is given to those who need it.
    if mode & 0o007 != 0 {
        say(&format!("warning: {open}"));
    }
    match std::str::from_utf8(without_mark(&bytes)) {
        Ok(text) if (bytes.len() as u64) < MAX_BYTES => Ok(text.to_owned()),
        Ok(_) => Err(Failure::line(format!("{shown} is too large for what should be in it"))),
        Err(_) => Err(Failure::line(format!("{shown} is not UTF-8"))),
    }
}

/// `NAME = URL`, one a line; `#` begins a comment.
fn find<'t>(text: &'t str, path: &Path, name: &str) -> Result<Option<&'t str>, Failure> {
    let mut found = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| Failure::line(format!("line {number} of `{}` {why}", path.display()));
        let entry = line.split_once('=').map(|(name, url)| (name.trim(), url.trim()));
        let (known, url) = entry
            .filter(|(known, url)| is_name(known) && url.contains(':') && !url.starts_with("env:"))
            .ok_or_else(|| wrong("is not `NAME = URL`"))?;
        if known == name && found.replace(url).is_some() {
            return Err(wrong("names a store that was named above"));
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
    fn what_is_wrong_is_told_without_quoting_it() {
        for (text, wanted) in [
            ("a = file:x\nprod postgres://u:secret@h\n", "line 2 of `stores` is not `NAME = URL`"),
            ("prod = secret\n", "line 1 of `stores` is not `NAME = URL`"),
            ("postgres://u:secret@h/?a=b\n", "line 1 of `stores` is not `NAME = URL`"),
            ("a = file:x\na = file:secret\n", "line 2 of `stores` names a store that was named above"),
        ] {
            let failure = find(text, Path::new("stores"), "a").unwrap_err();
            assert_eq!(failure.chain, [wanted]);
        }
    }
}
