//! [`PayloadHash`] and [`RecordDigest`]: SHA-256, as 64 hexadecimal digits.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind, Result};

macro_rules! hash {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let message = concat!($what, " must be 64 hexadecimal digits in lower case");
                parse(text).map(Self).ok_or_else(|| Error::new(ErrorKind::InvalidValue, message))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

hash! {
    /// SHA-256 of a plan's canonical form. Plans of one namespace have the same hash if and only if they have
    /// the same mutations in the same order.
    PayloadHash, "a payload hash"
}

hash! {
    /// SHA-256 of records in their order, each as a line of an export file. Stores have the same digest if
    /// and only if they have the same records. [`RecordHasher`](crate::archive::RecordHasher) computes it.
    RecordDigest, "a digest of records"
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    let is_hash = digits.len() == 64
        && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        && bytes.iter_mut().zip(digits.chunks(2)).all(|(byte, pair)| {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            let value = digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
            value.map(|value| *byte = value).is_some()
        });
    is_hash.then_some(bytes)
}
