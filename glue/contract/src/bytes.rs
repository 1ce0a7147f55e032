//! What Linux takes as bytes and JSON has as text: arguments, values of variables, paths.

use core::borrow::Borrow;
use core::fmt;
use std::borrow::Cow;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes: in JSON a text, or an array of numbers from 0 to 255 where they are not UTF-8 (as `journalctl -o json` writes
/// them).
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteString(pub Vec<u8>);

impl ByteString {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as a text to show, with U+FFFD for what is not UTF-8.
    pub fn lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// Whether a byte is NUL, which nothing that the kernel takes as a string can carry.
    pub fn has_nul(&self) -> bool {
        self.0.contains(&0)
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for ByteString {
    fn from(bytes: &T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

impl From<String> for ByteString {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<Vec<u8>> for ByteString {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Borrow<[u8]> for ByteString {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for ByteString {
    fn eq(&self, other: &T) -> bool {
        self.0 == other.as_ref()
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match core::str::from_utf8(&self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => to.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrBytes;
        impl<'de> Visitor<'de> for TextOrBytes {
            type Value = ByteString;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or an array of bytes")
            }
            fn visit_str<E>(self, text: &str) -> Result<ByteString, E> {
                Ok(ByteString::from(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<ByteString, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = numbers.next_element()? {
                    bytes.push(byte);
                }
                Ok(ByteString(bytes))
            }
        }
        from.deserialize_any(TextOrBytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn text_stays_text_and_all_other_bytes_come_back_as_they_were() {
        for (bytes, json) in [
            (&b"caf\xc3\xa9"[..], "\"caf\u{e9}\""),
            (b"caf\xe9", "[99,97,102,233]"),
            (b"", "\"\""),
            (b"\xff\x00", "[255,0]"),
            (b"a\"\n", "\"a\\\"\\n\""),
        ] {
            let value = ByteString::from(bytes);
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<ByteString>(json).unwrap(), value);
        }
        let escaped: ByteString = serde_json::from_str(r#""caf\u00e9""#).unwrap();
        assert_eq!(escaped, "café");
        assert_eq!(serde_json::from_str::<ByteString>("[104,105]").unwrap(), "hi");
        assert_eq!(serde_json::from_str::<ByteString>("[]").unwrap(), "");
    }

    #[test]
    fn what_is_neither_text_nor_bytes_is_refused() {
        for json in ["[256]", "[-1]", "[1.5]", "[\"a\"]", "[null]", "{}", "1", "null", "true", "[[1]]"] {
            assert!(serde_json::from_str::<ByteString>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_shown_is_text() {
        let value = ByteString::from(b"caf\xe9");
        assert_eq!(value.lossy(), "caf\u{fffd}");
        assert_eq!(format!("{value:?}"), r#""caf\xe9""#);
        assert!(ByteString::from(b"a\0b").has_nul() && !value.has_nul());
    }
}
