//! What pictures in SVG have in common.

use crate::text::printable;

/// Text in SVG or HTML, without what a terminal or a browser would act upon.
pub fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A round distance between two marks of an axis, so that there are 5 to 12 of them.
pub fn tick(span: f64) -> f64 {
    let rough = span / 10.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round() {
        assert_eq!([tick(10.0), tick(60.0), tick(3600.0)], [1.0, 10.0, 500.0]);
    }

    #[test]
    fn escaped_text_holds_no_markup_and_no_control_characters() {
        let text = escaped(crate::text::tests::HOSTILE);
        assert_eq!(text, printable(crate::text::tests::HOSTILE));
        assert_eq!(escaped("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
    }
}
