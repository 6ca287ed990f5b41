//! Text of a peer in a log: one line, and not a long one, whatever it is.

use std::{
    fmt::{self, Display, Write},
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

/// Most characters of a peer's text in a line.
const LONGEST: usize = 128;

/// What a peer has chosen, or what has something in it that a peer has: in quotation marks, with
/// everything escaped that could end the line, steer a terminal or run the other way, and cut.
pub struct Quoted<T>(pub T);

impl<T: Display> Display for Quoted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        let mut quoted = Writer { to: f, left: LONGEST };
        // What is cut ends with an error of our own, and the text is then as long as it may be.
        let whole = write!(quoted, "{}", self.0);
        let cut = quoted.left == 0 && whole.is_err();
        f.write_str(if cut { "…\"" } else { "\"" })
    }
}

impl<T: Display> fmt::Debug for Quoted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

struct Writer<'a, 'b> {
    to: &'a mut fmt::Formatter<'b>,
    left: usize,
}

impl Write for Writer<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            // Letters, digits and signs stay; what is not to be seen, or changes how others look,
            // does not.
            match c {
                '"' | '\\' => write!(self.to, "\\{c}")?,
                ' '..='~' => self.to.write_char(c)?,
                c if c.is_alphanumeric() => self.to.write_char(c)?,
                c => write!(self.to, "{}", c.escape_unicode())?,
            }
        }
        Ok(())
    }
}

/// How many lines strangers may cause: a burst, then one each second.
#[derive(Debug, Default)]
pub struct Rate(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    /// When all that was written would be paid for.
    over: Option<Instant>,
    left_out: u64,
}

/// Lines at once, and the time for each.
const BURST: u32 = 50;
const EACH: Duration = Duration::from_secs(1);

impl Rate {
    /// Whether one more line is written; now and then another says how many were not.
    pub fn may_log(&self) -> bool {
        let left_out = self.take(Instant::now());
        if let Some(count @ 1..) = left_out {
            tracing::info!(count, "lines about clients that are not logged in were left out");
        }
        left_out.is_some()
    }

    /// Whether a line may be written now, and how many were left out before it.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let over = lines.over.unwrap_or(now).max(now) + EACH;
        if over > now + EACH * BURST {
            lines.left_out += 1;
            return None;
        }
        lines.over = Some(over);
        Some(std::mem::take(&mut lines.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_text_is_one_short_line_that_can_be_read_back() {
        let text = |text: &str| Quoted(text).to_string();
        assert_eq!(text("alice"), "\"alice\"");
        assert_eq!(text("Müller 漢 a\"b\\c"), "\"Müller 漢 a\\\"b\\\\c\"");
        assert_eq!(text("x\nINFO forged\u{1b}[2J"), "\"x\\u{a}INFO forged\\u{1b}[2J\"");
        // Directions, joiners, what has no width, other ends of lines.
        for c in ['\u{202e}', '\u{200b}', '\u{2028}', '\u{85}', '\u{7f}', '\0', '\r', '\u{9b}'] {
            assert_eq!(text(&c.to_string()), format!("\"\\u{{{:x}}}\"", u32::from(c)));
        }
        let long = text(&"A".repeat(50_000));
        assert_eq!(long, format!("\"{}…\"", "A".repeat(LONGEST)));
        assert_eq!(text(&"A".repeat(LONGEST)), format!("\"{}\"", "A".repeat(LONGEST)));
    }

    #[test]
    fn strangers_write_so_many_lines_and_no_more() {
        let (rate, now) = (Rate::default(), Instant::now());
        let written = (0..1000).filter(|_| rate.take(now).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(rate.take(now + EACH), Some(1000 - u64::from(BURST)));
        assert_eq!(rate.take(now + EACH), None);
    }
}
