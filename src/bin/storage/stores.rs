//! Where a URL is found, so that its password need not stand on the line, which other users can see.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// The URL that is meant: itself, `env:NAME`, or the name of a store in the file of stores.
pub(crate) fn resolve(given: &str) -> Result<String, Failure> {
    if let Some(name) = given.strip_prefix("env:") {
        return variable(name);
    }
    if given.contains(':') || !is_name(given) {
        return Ok(given.to_owned());
    }
    named(given)
}

/// The URL that is meant: the one on the line, or `STORAGE_URL`, or the store called `default`.
pub(crate) fn chosen(given: Option<String>) -> Result<String, Failure> {
    let given = given.or_else(|| env::var("STORAGE_URL").ok()).filter(|url| !url.is_empty());
    match given {
        Some(given) => resolve(&given),
        None => default()?.ok_or_else(Failure::no_url),
    }
}

fn default() -> Result<Option<String>, Failure> {
    let Some(path) = path().filter(|path| path.exists()) else { return Ok(None) };
    Ok(find(&read(&path)?, &path, "default")?.map(str::to_owned))
}

fn variable(name: &str) -> Result<String, Failure> {
    // What stands behind `env:` by mistake can be a secret.
    if !is_name(name) {
        return Err(Failure::line("what stands behind `env:` is not the name of a variable"));
    }
    match env::var(name) {
        Ok(url) if !url.is_empty() => Ok(url),
        _ => Err(Failure::line(format!("the environment has no variable `{name}`"))),
    }
}

fn named(name: &str) -> Result<String, Failure> {
    let unknown = |why: String| {
        let hint = format!(
            "a URL begins with its backend, as `file:./data` does; for a name write `{name} = URL` into"
        );
        Failure::line(why).hint(match path() {
            Some(path) => format!("{hint} `{}`", path.display()),
            None => format!("{hint} the file that STORAGE_CONFIG names"),
        })
    };
    let Some(path) = path().filter(|path| path.exists()) else {
        return Err(unknown(format!("`{name}` is no URL, and there is no file of named stores")));
    };
    let text = read(&path)?;
    match find(&text, &path, name)? {
        Some(url) => Ok(url.to_owned()),
        None => Err(unknown(format!("no store is called `{name}`"))),
    }
}

fn path() -> Option<PathBuf> {
    if let Some(path) = env::var_os("STORAGE_CONFIG").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("gateway-storage").join("stores"))
}

fn read(path: &Path) -> Result<String, Failure> {
    let shown = format!("the file of stores `{}`", path.display());
    let unreadable = |error: &io::Error| Failure::unreadable(&shown, error);
    let mode = fs::metadata(path).map_err(|error| unreadable(&error))?.permissions().mode();
    if mode & 0o077 != 0 {
        let failure = Failure::line(format!("{shown} can be read by other users, and it may hold passwords"));
        return Err(failure.hint(format!("chmod 600 '{}'", path.display())));
    }
    fs::read_to_string(path).map_err(|error| unreadable(&error))
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
