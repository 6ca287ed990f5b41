//! What the tool says on its standard output.

use std::{
    fmt::Arguments,
    io::{self, ErrorKind, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether something could not be written.
static LOST: AtomicBool = AtomicBool::new(false);

/// Writes a text. A reader that has gone, as `head` does, is told no more, and what was begun for him
/// is carried through all the same. Where the text cannot be written, as on a full disk, that is told once,
/// and the program fails at its end.
pub fn write(text: Arguments<'_>) {
    let written = io::stdout().lock().write_fmt(text);
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
