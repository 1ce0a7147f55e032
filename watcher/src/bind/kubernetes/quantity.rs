//! Amounts as Kubernetes writes them (Kubernetes API reference, Quantity).

/// The suffixes, and what one of each is.
const SUFFIXES: [(&str, f64); 13] = [
    ("Ki", 1024.0),
    ("Mi", 1048576.0),
    ("Gi", 1073741824.0),
    ("Ti", 1099511627776.0),
    ("Pi", 1125899906842624.0),
    ("Ei", 1152921504606846976.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

/// The number of bytes, rounded up as the kubelet rounds. `None` where it is not a quantity, or none that fits.
pub fn bytes(text: &str) -> Option<u64> {
    let suffix = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix));
    let (number, factor) = suffix.map_or((text, 1.0), |(suffix, factor)| (text.trim_end_matches(suffix), *factor));
    let is_decimal = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    let value = number.chars().all(is_decimal).then(|| number.parse::<f64>().ok()).flatten()? * factor;
    (0.0..1.8e19).contains(&value).then(|| value.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn each_form_of_the_reference_is_read() {
        for (text, wanted) in [
            ("1Gi", 1 << 30),
            ("1.5Ki", 1536),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("128974848000m", 128_974_848),
            ("123Mi", 123 << 20),
            ("1E", 1_000_000_000_000_000_000),
            ("1500m", 2),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Some(wanted), "{text}");
        }
        for text in ["", "Gi", "-1", "1GiB", "1 Gi", "inf", "nan", "NaN", "1e400", "0x10", "MM", "100E"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
