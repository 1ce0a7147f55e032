//! Text from images, registries and jobs, for people's terminals and for forms of one line.

/// The text with a space for each control character.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
