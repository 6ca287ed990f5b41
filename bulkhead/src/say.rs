//! What the tool says on its standard output.

use std::{
    fmt::Arguments,
    io::{self, ErrorKind, Write},
};

/// Writes a text. A reader that has gone, as `head` does, is told no more, and what was begun for him
/// is carried through all the same. Where the text cannot be written, as on a full disk, the program
/// ends with that error.
pub fn write(text: Arguments<'_>) {
    match io::stdout().lock().write_fmt(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("bulkhead: cannot write to the standard output: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}

/// A line on the standard output, formatted as `println!` does.
macro_rules! say {
    () => { $crate::say::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::say::write(format_args!("{}\n", format_args!($($text)*))) };
}
