//! Text of files in errors.

/// The text on one line: control characters, which files may have anywhere, are escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_debug());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_text_is_one_line() {
        assert_eq!(one_line("a \"b\"\n\té\u{1b}[0m"), "a \"b\"\\n\\té\\u{1b}[0m");
    }
}
