//! Values from the command line, a file or stdin.

use std::{
    collections::HashSet,
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read, stdin},
    path::Path,
};

use gateway_storage::{ConfigValue, Credential, Error, ErrorKind, MAX_VALUE_BYTES};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use crate::term::failure::Failure;

/// The source of a value. No `Debug`: the value can be a secret.
#[derive(Clone)]
pub(crate) enum Input {
    Text(OsString),
    File(OsString),
    Stdin,
}

impl From<OsString> for Input {
    fn from(argument: OsString) -> Self {
        if argument == "-" {
            return Self::Stdin;
        }
        match argument.to_str().and_then(|text| text.strip_prefix('@')) {
            Some(path) => Self::File(path.into()),
            None => Self::Text(argument),
        }
    }
}

impl Input {
    pub(crate) fn credential(&self) -> Result<Credential, Failure> {
        Credential::from_json(self.json()?).map_err(|error| {
            self.not_json(
                &error,
                r#"quote JSON for the shell: '{"access_token": "..."}'; @FILE reads a file"#,
            )
        })
    }

    pub(crate) fn config(&self) -> Result<ConfigValue, Failure> {
        ConfigValue::from_json(self.json()?).map_err(|error| {
            self.not_json(&error, r#"quote JSON for the shell, a string too: '"text"'; @FILE reads a file"#)
        })
    }

    /// JSON, or text that the JSON reader will refuse. That reader would take the last of two fields of one
    /// name.
    pub(crate) fn json(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = self.bytes()?;
        if [b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| bytes.starts_with(*mark)) {
            return Err(Failure::usage("the value is UTF-16, which some Windows programs write")
                .hint("save it as UTF-8"));
        }
        bytes.drain(..bytes.len() - without_mark(&bytes).len());
        match serde_json::from_slice::<UniqueNames>(&bytes) {
            Err(error) if error.to_string().starts_with(DUPLICATE_NAME) => {
                let (line, column) = (error.line(), error.column());
                let message =
                    format!("an object in the value has a name twice, at line {line} column {column}");
                Err(Failure::invalid(&Error::new(ErrorKind::InvalidValue, message)))
            }
            _ => Ok(bytes),
        }
    }

    /// The value, unchanged.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Text(text) => Ok(text.as_encoded_bytes().to_vec()),
            Self::File(path) => {
                check_path(path.as_ref())?;
                let shown = format!("the file `{}`", path.display());
                File::open(path).and_then(read).map_err(|error| Failure::unreadable(&shown, &error))
            }
            Self::Stdin => read(stdin()).map_err(|error| Failure::unreadable("stdin", &error)),
        }
    }

    fn not_json(&self, error: &Error, hint: &str) -> Failure {
        let failure = Failure::invalid(error);
        match self {
            _ if error.to_string().starts_with("whole numbers beyond 64 bits") => {
                failure.hint("store it as a string to keep its digits")
            }
            Self::Text(_) if error.kind() == ErrorKind::InvalidValue => failure.hint(hint),
            _ => failure,
        }
    }
}

const DUPLICATE_NAME: &str = "twice";

/// JSON without duplicate names in its objects.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

macro_rules! scalars {
    ($($visit:ident: $scalar:ty),+) => {$(
        fn $visit<E>(self, _: $scalar) -> Result<Self, E> {
            Ok(self)
        }
    )+};
}

impl<'de> Visitor<'de> for UniqueNames {
    type Value = Self;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = fields.next_key::<String>()? {
            if !names.insert(name) {
                return Err(A::Error::custom(DUPLICATE_NAME));
            }
            fields.next_value::<Self>()?;
        }
        Ok(self)
    }
}

/// Removes the byte order mark that some editors write, mostly on Windows.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Refuses a path that a shell should have expanded.
pub(crate) fn check_path(path: &Path) -> Result<(), Failure> {
    match path.as_os_str().as_encoded_bytes().first() {
        Some(b'~' | b'$') => {
            Err(Failure::usage(format!("the file name `{}` was not expanded by a shell", path.display()))
                .hint("write the full path (on a command line `$HOME/..` without single quotes), or `./~` for a file of that name"))
        }
        _ => Ok(()),
    }
}

/// Reads to the end, but at most a little more than the longest JSON of a value that fits; more is refused as
/// too large.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(16 * MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
