//! Patterns over texts; `*` stands for any text.

/// Whether a pattern is all of `text`; `parts` are its texts between `*`, which stands for any text.
pub fn matches(parts: &[impl AsRef<str>], text: &str) -> bool {
    let [first, middle @ .., last] = parts else { return parts.first().is_some_and(|only| only.as_ref() == text) };
    let Some(mut rest) = text.strip_prefix(first.as_ref()).and_then(|rest| rest.strip_suffix(last.as_ref())) else {
        return false;
    };
    // The first place is the best: whatever matches after a later one also matches after this one.
    middle.iter().all(|part| rest.split_once(part.as_ref()).map(|(_, after)| rest = after).is_some())
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("localhost/*", "localhost/a/b:1"),
            ("*", "quay.io/a:1"),
            ("quay.io/*/b:*", "quay.io/x/y/b:1"),
            ("quay.io/a:1", "quay.io/a:1"),
            ("*:1", "quay.io/a:1"),
            ("q**:1", "quay.io/a:1"),
            ("*aa", "aaa"),
        ] {
            assert!(matches(&pattern.split('*').collect::<Vec<_>>(), text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("localhost/*", "localhost.evil/a:1"),
            ("localhost/*", "localhost:5000/a:1"),
            ("localhost/*", "evil.io/localhost/a:1"),
            ("quay.io/a:1", "quay.io/a:12"),
            ("quay.io/a:1", "quay.io/a"),
            ("*a*a", "a"),
            ("ab*ba", "aba"),
            ("", "a"),
        ] {
            assert!(!matches(&pattern.split('*').collect::<Vec<_>>(), text), "{pattern} {text}");
        }
    }
}
