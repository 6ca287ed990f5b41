//! What the tool says on its standard output. Names come from others: what a terminal would do with
//! their letters, other than show them, is said as JSON escapes it.

use std::{
    borrow::Cow,
    fmt::Arguments,
    io::{self, ErrorKind, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether something could not be written.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether a letter steers a terminal, or the direction of the text around it.
fn steers(letter: char) -> bool {
    let direction = matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    direction || letter.is_control() && !matches!(letter, '\n' | '\t')
}

/// A text as it may be shown. JSON stays the JSON that it was.
pub fn shown(text: &str) -> Cow<'_, str> {
    use std::fmt::Write;
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if steers(letter) {
            // Writing to a string does not fail; all of them have four digits at most.
            let _ = write!(out, "\\u{:04x}", u32::from(letter));
        } else {
            out.push(letter);
        }
    }
    Cow::Owned(out)
}

/// Writes a text. A reader that has gone, as `head` does, is told no more, and what was begun for him
/// is carried through all the same. Where the text cannot be written, as on a full disk, that is told once,
/// and the program fails at its end.
pub fn write(text: Arguments<'_>) {
    let text = text.to_string();
    let written = io::stdout().lock().write_all(shown(&text).as_bytes());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
        && !LOST.swap(true, Ordering::Relaxed)
    {
        eprintln!("bulkhead: cannot write to the standard output: {error}");
    }
}

/// Whether all was written for which there was a reader.
pub fn all_was_written() -> bool {
    !LOST.load(Ordering::Relaxed)
}

/// A line on the standard output, formatted as `println!` does.
macro_rules! say {
    () => { $crate::say::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::say::write(format_args!("{}\n", format_args!($($text)*))) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_steer_a_terminal() {
        assert_eq!(shown("a\tb\nü\u{1f600}"), "a\tb\nü\u{1f600}");
        let name = "\u{1b}]0;x\u{7}\u{9b}31m\u{202e}fdp.\u{2066}\r";
        assert_eq!(shown(name), "\\u001b]0;x\\u0007\\u009b31m\\u202efdp.\\u2066\\u000d");
        let json = serde_json::to_string(name).unwrap();
        assert_eq!(serde_json::from_str::<String>(&shown(&json)).unwrap(), name);
    }
}
