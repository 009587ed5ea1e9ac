//! A stored lease, from and to bytes.

use crate::{
    Error, ErrorKind, Key, Result,
    codec::decode_key,
    model::{Holder, Lease},
};

/// A stored lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// None: it rests.
    pub(super) holder: Option<Holder>,
    pub(super) number: u64,
    /// In microseconds since 1970.
    pub(super) ends: u64,
}

impl Held {
    /// Whether this is the same claim.
    pub(super) fn is(&self, lease: &Lease) -> bool {
        self.holder.as_ref() == Some(lease.holder()) && self.number == lease.number()
    }

    /// The number and the end, each eight bytes, big-endian; then the holder's text, which is empty if the
    /// lease rests.
    pub(super) fn encode(&self) -> Vec<u8> {
        let holder = self.holder.as_ref().map_or("", Holder::as_str);
        [&self.number.to_be_bytes()[..], &self.ends.to_be_bytes(), holder.as_bytes()].concat()
    }

    /// Decodes a name and the output of [`encode`](Self::encode). Other bytes are `Corrupt`.
    pub(super) fn decode(name: &[u8], bytes: &[u8]) -> Result<(Key, Self)> {
        let name = decode_key(name)?;
        let corrupt = || Error::new(ErrorKind::Corrupt, "a stored lease can't be read").with_key(&name);
        let (number, rest) = bytes.split_first_chunk().ok_or_else(corrupt)?;
        let (ends, holder) = rest.split_first_chunk().ok_or_else(corrupt)?;
        let holder = match holder {
            [] => None,
            text => {
                let text = std::str::from_utf8(text).map_err(|_| corrupt())?;
                Some(text.parse().map_err(|_| corrupt())?)
            }
        };
        let held = Self { holder, number: u64::from_be_bytes(*number), ends: u64::from_be_bytes(*ends) };
        Ok((name, held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_was_stored() {
        let key = Key::new("a").unwrap();
        let held = Held { holder: Some(Holder::random()), number: 7, ends: u64::MAX };
        for held in [Held { holder: None, ..held.clone() }, held] {
            let encoded = held.encode();
            assert_eq!(Held::decode(b"a", &encoded).unwrap(), (key.clone(), held.clone()));
            for cut in (0..16).map(|length| &encoded[..length]) {
                assert_eq!(Held::decode(b"a", cut).unwrap_err().kind(), ErrorKind::Corrupt);
            }
            let with_space = [&encoded[..16], b" "].concat();
            assert_eq!(Held::decode(b"a", &with_space).unwrap_err().key(), Some(&key));
        }
    }
}
