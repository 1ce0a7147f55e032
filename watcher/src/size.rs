//! Numbers of bytes as people write them: the one reader of sizes for all programs.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// A number of bytes: a number, or a text such as `512M` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Digits after the point that count.
const DECIMALS: usize = 9;

impl FromStr for Bytes {
    type Err = String;

    /// Reads a whole or decimal number with an optional unit: K, M, G or T, also with i, B or iB, in either case. The
    /// largest size is that of a file, 2^63 - 1.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().take(40).collect();
            format!("invalid size {shown:?}: expected a number of bytes, or for example 512M or 1.5G")
        };
        let upper = text.trim().to_ascii_uppercase();
        let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
        let bare = upper.strip_suffix('B').unwrap_or(&upper);
        let with_unit = bare.strip_suffix('I').unwrap_or(bare);
        let unit = units.iter().find_map(|(unit, shift)| Some((with_unit.strip_suffix(unit)?, *shift)));
        let (number, shift) = unit.unwrap_or((bare, 0));
        let number = number.trim_end();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(wrong());
        }
        let fraction = format!("{fraction:0<DECIMALS$}");
        let parts: u128 = fraction.get(..DECIMALS).and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let of_whole = u128::from(whole) << shift;
        let of_parts = (parts << shift) / 10_u128.pow(DECIMALS as u32);
        let bytes = i64::try_from(of_whole + of_parts).map_err(|_| wrong())?;
        Ok(Self(bytes.unsigned_abs()))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Number(n) => Ok(Self(n)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, n) in [
            ("0", 0),
            ("17", 17),
            ("4096", 4096),
            ("2K", 2048),
            ("1.5M", 3 << 19),
            ("1 GiB", 1 << 30),
            ("3gb", 3 << 30),
            ("4Gi", 4 << 30),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("512MiB", 512 << 20),
            (" 2 g ", 2 << 30),
            ("1.5K", 1536),
            ("0.1G", 107_374_182),
            ("1T", 1 << 40),
            ("7B", 7),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(n)), "{text}");
        }
        for text in [
            "",
            "M",
            "g",
            "I",
            "B",
            "iB",
            "-1",
            "+1",
            "1X",
            "1IB",
            "1I",
            "2gg",
            "1.",
            ".5",
            "1.2.3",
            "nan",
            "inf",
            "1e3",
            "1e99",
            "99999999t",
            "9223372036854775808",
            "99999999999999999999999999999999999999999",
            "1\u{1b}",
            "١M",
            "5µ",
        ] {
            let why = text.parse::<Bytes>().unwrap_err();
            assert!(!why.chars().any(char::is_control), "{text}");
        }
    }

    #[test]
    fn numbers_and_texts_are_both_read_from_json() {
        let both: Vec<Bytes> = serde_json::from_str(r#"[1024, "1K"]"#).unwrap();
        assert_eq!(both, [Bytes(1024), Bytes(1024)]);
        assert!(serde_json::from_str::<Bytes>("-1").is_err());
    }
}
