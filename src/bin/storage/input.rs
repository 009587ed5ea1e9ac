//! Values that are given on the line, in a file, or on stdin.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, stdin},
};

use gateway_storage::{ConfigValue, Credential, Error, ErrorKind, MAX_VALUE_BYTES};

use crate::failure::Failure;

/// Where a value is. No `Debug`: it can be a secret.
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
    /// A credential.
    pub(crate) fn credential(&self) -> Result<Credential, Failure> {
        Credential::from_json(self.bytes()?).map_err(|error| {
            self.not_json(
                &error,
                r#"quote JSON for the shell: '{"access_token": "..."}'; @FILE reads a file"#,
            )
        })
    }

    /// A config value.
    pub(crate) fn config(&self) -> Result<ConfigValue, Failure> {
        ConfigValue::from_json(self.bytes()?).map_err(|error| {
            self.not_json(&error, r#"quote JSON for the shell, a string too: '"text"'; @FILE reads a file"#)
        })
    }

    /// As it is.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Text(text) => Ok(text.as_encoded_bytes().to_vec()),
            Self::File(path) => {
                let shown = format!("the file `{}`", path.display());
                File::open(path).and_then(read).map_err(|error| Failure::unreadable(&shown, &error))
            }
            Self::Stdin => read(stdin()).map_err(|error| Failure::unreadable("stdin", &error)),
        }
    }

    fn not_json(&self, error: &Error, hint: &str) -> Failure {
        let failure = Failure::value(error);
        match self {
            Self::Text(_) if error.kind() == ErrorKind::InvalidValue => failure.hint(hint),
            _ => failure,
        }
    }
}

/// Reads all of it, but not without end: a little more than any JSON of a value that fits, which is then too large.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(16 * MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
