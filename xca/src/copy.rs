//! What decompression does to its output.

use crate::Error;

/// Bytes that were decompressed, up to `at`, and room for the others.
pub(crate) struct Output<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) at: usize,
}

impl<'a> Output<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn too_long(&self) -> Error {
        Error::TooLong(self.bytes.len())
    }

    pub(crate) fn literal(&mut self, byte: u8) -> Result<(), Error> {
        let too_long = self.too_long();
        *self.bytes.get_mut(self.at).ok_or(too_long)? = byte;
        self.at += 1;
        Ok(())
    }

    pub(crate) fn literals(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let too_long = self.too_long();
        let room = self.bytes[self.at..].get_mut(..bytes.len()).ok_or(too_long)?;
        room.copy_from_slice(bytes);
        self.at += bytes.len();
        Ok(())
    }

    /// Repeats `len` bytes from `distance` bytes back. A match may be longer than its distance: then
    /// it repeats what it has just written (MS-XCA 2.2.4).
    pub(crate) fn repeat(&mut self, distance: usize, len: usize) -> Result<(), Error> {
        let at = self.at;
        let from = at.checked_sub(distance).ok_or(Error::Distance { distance, at })?;
        if len > self.bytes.len() - at {
            return Err(self.too_long());
        }
        if distance >= len {
            self.bytes.copy_within(from..from + len, at);
        } else {
            // What is there from `from` on is whole periods, and grows with each copy.
            let mut done = 0;
            while done < len {
                let part = (distance + done).min(len - done);
                self.bytes.copy_within(from..from + part, at + done);
                done += part;
            }
        }
        self.at += len;
        Ok(())
    }

    /// All that was announced is there.
    pub(crate) fn end(&self) -> Result<(), Error> {
        match self.is_full() {
            true => Ok(()),
            false => Err(Error::TooShort { got: self.at, wanted: self.bytes.len() }),
        }
    }
}
