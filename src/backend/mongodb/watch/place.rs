//! A place in both change streams, as the text of a cursor.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use mongodb::{
    bson::{
        RawBsonRef, RawDocumentBuf, Timestamp, deserialize_from_slice,
        raw::{CStr, cstr},
        rawdoc, serialize_to_raw_document_buf,
    },
    change_stream::event::ResumeToken,
};

use super::LABEL;
use crate::event::Cursor;

/// Begins the text. The cursors of the feed itself begin with hexadecimal digits.
const FORMAT: &str = "t1";

/// The field of a token: text of hexadecimal digits.
const DATA: &CStr = cstr!("_data");

/// Where the streams of both collections go on.
pub(super) type Tokens = [ResumeToken; 2];

/// The cursor at these tokens of this store. `None`: it would be too long.
pub(super) fn cursor(store: u64, [credentials, configs]: [&ResumeToken; 2]) -> Option<Cursor> {
    let place = format!("{FORMAT}.{store:016x}.{}.{}", text(credentials)?, text(configs)?);
    (LABEL.len() + 1 + place.len() <= Cursor::MAX_BYTES).then(|| Cursor::at(LABEL, place))
}

/// The tokens in a cursor of this store.
pub(super) fn tokens(store: u64, cursor: &Cursor) -> Option<Tokens> {
    let mut parts = cursor.place(LABEL)?.split('.');
    let mut next = || parts.next();
    let is_of_store = next()? == FORMAT && u64::from_str_radix(next()?, 16) == Ok(store);
    let tokens = [token(next()?)?, token(next()?)?];
    (is_of_store && parts.next().is_none()).then_some(tokens)
}

fn text(token: &ResumeToken) -> Option<String> {
    let document = serialize_to_raw_document_buf(token).ok()?;
    let digits = data(&document).and_then(bytes_of);
    Some(match digits {
        Some(bytes) => format!("h{}", BASE64.encode(bytes)),
        None => format!("b{}", BASE64.encode(document.as_bytes())),
    })
}

fn token(text: &str) -> Option<ResumeToken> {
    let (form, text) = text.split_at_checked(1)?;
    let bytes = BASE64.decode(text).ok()?;
    let document = match form {
        "h" => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
            rawdoc! { DATA: digits }
        }
        "b" => RawDocumentBuf::from_bytes(bytes).ok()?,
        _ => return None,
    };
    deserialize_from_slice(document.as_bytes()).ok()
}

/// The digits, if the token has nothing else.
fn data(document: &RawDocumentBuf) -> Option<&str> {
    let mut fields = document.into_iter();
    match (fields.next()?.ok()?, fields.next()) {
        ((name, RawBsonRef::String(digits)), None) if name == DATA => Some(digits),
        _ => None,
    }
}

/// The bytes of an even number of upper-case hexadecimal digits.
fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    };
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(value(*high)? << 4 | value(*low)?);
    pairs.iter().map(byte).collect::<Option<_>>().filter(|_| rest.is_empty())
}

/// Whether the token is at this time of the server or later. `None`: it has a form that is not known here.
///
/// The digits begin with 82, the type, and then the time. Tokens sort as their digits do.
pub(super) fn is_at_least(token: &ResumeToken, time: Timestamp) -> Option<bool> {
    let document = serialize_to_raw_document_buf(token).ok()?;
    let digits = document.get_str(DATA.as_str()).ok().filter(|digits| digits.starts_with("82"))?;
    Some(*digits >= *format!("82{:08X}{:08X}", time.time, time.increment))
}

/// The time this many ticks later.
pub(super) fn later(time: Timestamp, ticks: u32) -> Timestamp {
    Timestamp { increment: time.increment.saturating_add(ticks), ..time }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Binary, spec::BinarySubtype};
    use proptest::prelude::*;

    use super::*;

    fn of(document: &RawDocumentBuf) -> ResumeToken {
        deserialize_from_slice(document.as_bytes()).unwrap()
    }

    const DIGITS: &str = "826567A1B2000000032B0229296E04";

    #[test]
    fn tokens_come_back_equal() {
        let bits = Binary { subtype: BinarySubtype::Generic, bytes: vec![0x82] };
        let all = [
            rawdoc! { "_data": DIGITS },
            rawdoc! { "_data": DIGITS, "_typeBits": bits.clone() },
            rawdoc! { "_data": "odd" },
            rawdoc! { "_data": DIGITS.to_lowercase() },
            rawdoc! { "_data": bits },
            rawdoc! {},
        ];
        for one in &all {
            for other in &all {
                let cursor = cursor(7, [&of(one), &of(other)]).unwrap();
                assert_eq!(tokens(7, &cursor).unwrap(), [of(one), of(other)], "{one:?} {other:?}");
                assert!(tokens(8, &cursor).is_none(), "of another store");
            }
        }
        let short = cursor(7, [&of(&all[0]), &of(&all[0])]).unwrap();
        assert_eq!(short.as_str().len(), "mongodb:t1.0000000000000007.h.h".len() + 2 * 20);
    }

    #[test]
    fn a_long_cursor_is_none() {
        let [fits, long] = [3_000, 3_100].map(|digits| of(&rawdoc! { "_data": "AB".repeat(digits / 2) }));
        assert!(cursor(7, [&fits, &fits]).unwrap().as_str().len() <= Cursor::MAX_BYTES);
        assert_eq!(cursor(7, [&long, &long]), None);
    }

    #[test]
    fn other_texts_have_no_tokens() {
        let token = "hgmVn";
        let text = |place: &str| Cursor::new(format!("mongodb:{place}")).unwrap();
        assert!(tokens(7, &text(&format!("t1.7.{token}.{token}"))).is_some());
        for wrong in [
            "t1.7.hgmVn",
            "t1.7.hgmVn.hgmVn.hgmVn",
            "t1.7.hgmVn.",
            "t1.7.hgmVn.xgmVn",
            "t1.7.hgmVn.h*",
            "t1.7.hgmVn.bgmVn",
            "t1.7.hgmVn.éé",
            "t2.7.hgmVn.hgmVn",
            "t1.q.hgmVn.hgmVn",
            "1f.7",
        ] {
            let cursor = Cursor::new(format!("mongodb:{wrong}"));
            assert!(cursor.is_err() || tokens(7, &cursor.unwrap()).is_none(), "{wrong}");
        }
        assert!(tokens(7, &Cursor::new(format!("redis:t1.7.{token}.{token}")).unwrap()).is_none());
    }

    proptest! {
        /// No text panics, and what is read from one is read again from what is made of it.
        #[test]
        fn any_text_is_read(one in "[hbx][A-Za-z0-9_-]{0,40}", other in "[hb][A-Za-z0-9_-]{0,40}") {
            let text = Cursor::at(LABEL, format_args!("t1.7.{one}.{other}"));
            if let Some([one, other]) = tokens(7, &text) {
                let made = cursor(7, [&one, &other]).unwrap();
                prop_assert_eq!(tokens(7, &made), Some([one, other]));
            }
        }
    }

    #[test]
    fn tokens_have_a_time() {
        let time = Timestamp { time: 0x6567_A1B2, increment: 3 };
        let token = of(&rawdoc! { "_data": DIGITS });
        assert_eq!(is_at_least(&token, time), Some(true));
        assert_eq!(is_at_least(&token, later(time, 1)), Some(false));
        assert_eq!(is_at_least(&of(&rawdoc! { "_data": "0165" }), time), None);
    }
}
