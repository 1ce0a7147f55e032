//! Target `size`: numbers of bytes as people write them.

use watcher::size::Bytes;

/// The input is a size.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let read = text.parse::<Bytes>();
    assert_eq!(read.as_ref().ok().map(|bytes| bytes.0), exactly(text), "{text:?}");
    match read {
        Ok(bytes) => {
            assert_eq!(bytes.0.to_string().parse(), Ok(bytes));
            let json = serde_json::to_string(&bytes).unwrap();
            assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes);
            let quoted = serde_json::to_string(text).unwrap();
            assert_eq!(serde_json::from_str::<Bytes>(&quoted).unwrap(), bytes);
        }
        Err(why) => assert!(why.len() < 600 && !why.contains(char::is_control), "{why:?}"),
    }
}

/// `[0-9]+([.][0-9]+)?`, blanks, then nothing, `B`, or one of `KMGT` with nothing, `i`, `B` or `iB` behind it; in either
/// case. The number is multiplied digit by digit, without rounding before the end.
fn exactly(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kb" | "kib" => 10,
        "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => return None,
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') {
        return None;
    }
    let mut value: u128 = 0;
    for digit in whole.bytes() {
        value = value.checked_mul(10)?.checked_add(u128::from(digit - b'0'))?;
    }
    // Nine digits behind the point count.
    let mut part: u128 = 0;
    for n in 0..9 {
        part = part * 10 + u128::from(fraction.as_bytes().get(n).map_or(0, |digit| digit - b'0'));
    }
    let bytes = value.checked_mul(1 << shift)?.checked_add((part << shift) / 1_000_000_000)?;
    u64::try_from(bytes).ok().filter(|n| *n <= i64::MAX as u64)
}
