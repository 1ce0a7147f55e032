//! base64url without padding (RFC 4648 section 5), lower-case hex, and the 32 secret or fresh bytes that use them.

use base64ct::{Base64UrlUnpadded, Encoding};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

/// base64url without padding of `bytes`.
pub fn base64url(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

/// At most `most` characters of a text, those of ASCII that are shown as they are; `?` for the others.
pub fn ascii(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect()
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| DIGITS.get(usize::from(n & 15)).copied().map_or('0', char::from);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes))
}

/// 32 bytes that are base64url in JSON, such as a nonce. `Debug` does not show them.
///
/// They are on the heap from the moment they are decoded and never leave it, so that moving the value copies a pointer
/// only, and overwriting them, which dropping the value does, leaves no copy. They are read straight from the buffer
/// they arrived in (an escaped text is refused).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes32(Box<[u8; 32]>);

impl Bytes32 {
    /// Takes `bytes` as they are.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Box::new(bytes))
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 43 characters of base64url.
    pub fn parse(text: &str) -> Option<Self> {
        let mut decoded = Self::new([0; 32]);
        let read = Base64UrlUnpadded::decode(text, decoded.0.as_mut());
        read.is_ok_and(|read| read.len() == 32).then_some(decoded)
    }

    /// 43 characters of base64url.
    pub fn text(&self) -> String {
        base64url(self.bytes())
    }
}

impl Drop for Bytes32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl core::fmt::Debug for Bytes32 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("32 bytes")
    }
}

/// The secret key of one start. All zeroes, which is the default, is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Bytes32);

impl Key {
    /// Takes over bytes that are on the heap already.
    pub const fn new(bytes: Box<[u8; 32]>) -> Self {
        Self(Bytes32(bytes))
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }

    /// Overwrites the bytes with zeroes.
    pub fn wipe(&mut self) {
        self.0.0.zeroize();
    }
}

impl Serialize for Bytes32 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text())
    }
}

/// Reads 43 characters of base64url that have no escape, which would make a copy of the text.
struct Text;

impl<'de> Visitor<'de> for Text {
    type Value = Bytes32;
    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("32 bytes as 43 characters of base64url, without escapes")
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Bytes32, E> {
        Bytes32::parse(text).ok_or_else(|| E::custom("not 32 bytes as 43 characters of base64url"))
    }
    // An escaped text: what serde says by itself would have the text in it.
    fn visit_str<E: Error>(self, _: &str) -> Result<Bytes32, E> {
        Err(E::custom("a key or nonce with an escape in it"))
    }
}

impl<'de> Deserialize<'de> for Bytes32 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_two_bytes_and_no_other_number() {
        let seven = Bytes32::new([7; 32]);
        assert_eq!(Bytes32::parse(&seven.text()), Some(seven.clone()));
        assert_eq!(Bytes32::parse(&base64url(&[7; 31])), None);
        assert_eq!(Bytes32::parse(&base64url(&[7; 33])), None);
        assert_eq!(Bytes32::parse(&format!("{}=", seven.text())), None);
        assert!(serde_json::from_str::<Bytes32>(&format!("\"{}\"", seven.text())).is_ok());
        let escaped = seven.text().replacen('B', "\\u0042", 1);
        assert!(escaped.contains('\\'), "the text has a B to escape");
        let refused = serde_json::from_str::<Bytes32>(&format!("\"{escaped}\"")).map_err(|e| e.to_string());
        assert!(refused.is_err_and(|e| e.contains("escape") && !e.contains("cHBwc")));
    }

    #[test]
    fn hex_is_lower_case() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }

    #[test]
    fn debug_keeps_the_secret() {
        assert_eq!(format!("{:?}", Bytes32::new([1; 32])), "32 bytes");
        assert_eq!(format!("{:?}", Key::new(Box::new([1; 32]))), "Key(32 bytes)");
    }
}
