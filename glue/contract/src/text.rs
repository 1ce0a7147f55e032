//! Foreign text for people: what images, registries, jobs and engines wrote, and what a terminal may be shown of it.

/// Longest name that is shown, in characters.
pub const NAME_MAX: usize = 200;

/// Longest line that is shown, in characters.
pub const LINE_MAX: usize = 4096;

/// Beyond ASCII: controls, what is invisible, what changes the direction or the place of other text, and what no font
/// is bound to have. In order.
const HARMFUL: [(char, char); 26] = [
    ('\u{7f}', '\u{a0}'), // DEL, C1
    ('\u{ad}', '\u{ad}'),
    ('\u{300}', '\u{36f}'), // combining marks: drawn over other lines, any number of them
    ('\u{483}', '\u{489}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{1ab0}', '\u{1aff}'),
    ('\u{1dc0}', '\u{1dff}'),
    ('\u{2000}', '\u{200f}'), // spaces, joiners, marks of direction
    ('\u{2028}', '\u{202f}'), // separators of lines, overrides of direction
    ('\u{205f}', '\u{206f}'), // isolates of direction
    ('\u{20d0}', '\u{20ff}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{d7ff}', '\u{f8ff}'), // private use
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{fe20}', '\u{fe2f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{ffff}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{10ffff}'), // tags, private use
];

/// Whether a terminal shows the character and does nothing else with it.
pub fn is_harmless(c: char) -> bool {
    c >= ' ' && !HARMFUL.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// At most `max` characters of `text`, on one line: a space for white space, `?` for all that a terminal could take for
/// more than a character. What is left out is marked by `...`.
pub fn shown(text: &str, max: usize) -> String {
    let mut shown = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == max {
            shown.push_str("...");
            break;
        }
        shown.push(match c {
            '\t' | '\n' | '\r' => ' ',
            c if is_harmless(c) => c,
            _ => '?',
        });
    }
    shown
}

/// A name, a path or another part of a message: see [`shown`].
pub fn printable(text: &str) -> String {
    shown(text, NAME_MAX)
}

/// A whole message: see [`shown`].
pub fn one_line(text: &str) -> String {
    shown(text, LINE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_given_nothing_but_text() {
        let escapes = "a\x1b[2J\x1b]0;t\x07b\x00\x7f\u{9b}31m\u{85}c";
        assert_eq!(printable(escapes), "a?[2J?]0;t?b???31m?c");
        assert_eq!(printable("a\tb\r\nc"), "a b  c");
        for c in ('\u{0}'..='\u{1f}').chain('\u{7f}'..='\u{9f}').filter(|c| !"\t\n\r".contains(*c)) {
            assert_eq!(printable(&c.to_string()), "?", "{c:?}");
        }
        let directions = ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}');
        for c in directions.chain(['\u{200b}', '\u{200e}', '\u{2028}', '\u{2029}', '\u{61c}', '\u{feff}', '\u{e0041}'])
        {
            assert_eq!(printable(&format!("a{c}b")), "a?b", "{c:?}");
        }
        assert!(HARMFUL.is_sorted() && HARMFUL.iter().all(|(first, last)| first <= last));
    }

    #[test]
    fn letters_of_all_languages_are_shown() {
        for text in ["Grüße", "データ", "файл", "ملف", "数据 1.2-3_4/~", "😀"] {
            assert_eq!(printable(text), text);
        }
    }

    #[test]
    fn a_text_is_as_long_as_it_may_be_and_no_longer() {
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(shown("abcd", 3), "abc...");
        assert_eq!(printable(&"x".repeat(NAME_MAX + 1)).len(), NAME_MAX + 3);
        assert_eq!(one_line(&"\u{1f600}".repeat(LINE_MAX * 2)).chars().count(), LINE_MAX + 3);
    }
}
