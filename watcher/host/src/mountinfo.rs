//! Names of mount points as paths. (What is at and below `/shared` is compared as the kernel writes it.)

/// Undoes the octal escapes (`\040`) that the kernel writes in mountinfo for space, tab, newline and backslash.
pub fn unescaped(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescaped(r"/a\040b\134c\"), r"/a b\c\");
    }
}
