//! Target `text`: what of foreign text a terminal, a log or a report is given.

use latebind_contract::text::{LINE_MAX, NAME_MAX};
use watcher::text::{is_harmless, json, json_for_people, lines, one_line, printable, shown};

use crate::input::Input;

/// The first byte is the longest text to be shown, the rest is the text.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let max = usize::from(input.byte());
    let text = String::from_utf8_lossy(input.rest());
    let count = text.chars().count();
    for (shown, max) in [(shown(&text, max), max), (printable(&text), NAME_MAX), (one_line(&text), LINE_MAX)] {
        assert_eq!(shown.chars().count(), if count > max { max + 3 } else { count }, "{shown:?}");
        assert!(count <= max || shown.ends_with("..."), "{shown:?}");
        assert!(shown.chars().all(|c| is_harmless(c) && !is_known_to_harm(c)), "{shown:?}");
        // Character by character: none moves, vanishes or becomes another letter.
        for (from, to) in text.chars().zip(shown.chars()).take(max) {
            assert!(from == to || to == '?' || (to == ' ' && from.is_whitespace()), "{from:?} became {to:?}");
        }
    }
    let kept = lines(&text);
    assert_eq!(kept.chars().count(), count);
    assert!(kept.chars().all(|c| "\n\t".contains(c) || !is_known_to_harm(c)), "{kept:?}");
    for json in [json(&&*text).unwrap(), json_for_people(&[&*text]).unwrap()] {
        assert!(json.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n')), "{json:?}");
        let back: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back.as_str().or_else(|| back[0].as_str()), Some(&*text), "{json}");
    }
}

/// What is known to do harm: controls (UnicodeData.txt, Cc), marks of direction (UAX 9), separators of lines, what is
/// invisible, and tags. Ours leaves out more.
fn is_known_to_harm(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{ad}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' | '\u{fe00}'..='\u{fe0f}')
}
