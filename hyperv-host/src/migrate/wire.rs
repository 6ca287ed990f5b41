//! The migration stream: frames with a length and a checksum, messages, batches of pages.
//!
//! ```text
//!  connection ─► preamble "BLKHMIG1" ─► frame*
//!  frame       ─► kind u16 | flags u16 (0) | length u32 | CRC-32C of the body u32 | body
//!  Message     ─► JSON                                     (control connection)
//!  State       ─► JSON of a MachineState                   (control connection)
//!  Pages       ─► runs u32 | run* | data                   (memory connections)
//!  run         ─► address u64 | pages u32 | kind u32 (0 data follows, 1 all zeros)
//!  Sync        ─► round u32, echoed by the target when all before it is in memory
//! ```
//!
//! All numbers are little-endian. Reading is total: a length above its kind's limit is refused
//! before anything is allocated, and memory grows only as bytes arrive.

use std::io::{self, Read, Write};

use block_io::Geometry;
use host_api::VmDefinition;
use serde::{Deserialize, Serialize};
use vmm::{
    DiskShape,
    machine::{cpu::CpuModel, state::Needs},
    platform::memory::PAGE,
};

pub use crate::handover::Standing;
use crate::host::records::MoveId;

/// First bytes of every connection in both directions.
pub const PREAMBLE: &[u8; 8] = b"BLKHMIG1";
/// Version of the messages. A field that may be left out needs no other.
pub const VERSION: u32 = 1;
/// Oldest version that is understood.
pub const OLDEST: u32 = 1;
/// Data pages in one batch at most.
pub const BATCH_PAGES: usize = 64;
/// Runs in one batch at most.
pub const BATCH_RUNS: usize = 256;
const HEADER: usize = 12;
const RUN: usize = 16;

/// What the body of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`Message`].
    Message,
    /// A machine state.
    State,
    /// A batch of pages.
    Pages,
    /// All of a round has been sent on this connection.
    Sync,
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Self::Message => 1,
            Self::State => 2,
            Self::Pages => 3,
            Self::Sync => 4,
        }
    }

    /// Most bytes of a body.
    fn limit(self) -> usize {
        match self {
            Self::Message => 256 << 10,
            Self::State => 8 << 20,
            Self::Pages => 4 + BATCH_RUNS * RUN + BATCH_PAGES * PAGE as usize,
            Self::Sync => 4,
        }
    }
}

/// Why a connection's bytes are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection broke, was closed or fell silent.
    #[error("the connection to the other host is lost")]
    Io(#[from] io::Error),
    /// The peer does not speak this.
    #[error("the other side is not a VM host of this kind")]
    Preamble,
    /// A kind of frame that is unknown or not allowed here.
    #[error("unexpected frame of kind {0}")]
    Kind(u16),
    /// A body larger than its kind allows.
    #[error("a frame of kind {kind} with {len} bytes")]
    Length {
        /// Number of the frame's kind.
        kind: u16,
        /// Length it claims.
        len: u32,
    },
    /// The checksum does not match.
    #[error("a frame of kind {0} was damaged on its way")]
    Checksum(u16),
    /// A message or state that is not understood.
    #[error("a message that is not understood")]
    Message(#[from] serde_json::Error),
    /// A batch of pages that contradicts itself or the guest's memory.
    #[error("a batch of pages with {0}")]
    Pages(&'static str),
}

/// Shape of a disk as the guest knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub logical_sector: u32,
    /// Bytes of a physical sector.
    pub physical_sector: u32,
    /// Unit of discards in bytes.
    pub discard_granularity: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Shape {
    /// The shape of a disk with this geometry.
    pub fn new(geometry: Geometry, read_only: bool) -> Self {
        Self {
            size: geometry.size,
            logical_sector: geometry.logical_sector,
            physical_sector: geometry.physical_sector,
            discard_granularity: geometry.discard_granularity,
            read_only,
        }
    }

    /// As the machine takes it, if it is one that a disk can have.
    pub fn checked(&self) -> Option<DiskShape> {
        let sector = |len| matches!(len, 512 | 4096);
        let good = sector(self.logical_sector)
            && sector(self.physical_sector)
            && self.logical_sector <= self.physical_sector
            && self.size.is_multiple_of(u64::from(self.logical_sector));
        good.then_some(DiskShape {
            geometry: Geometry {
                size: self.size,
                logical_sector: self.logical_sector,
                physical_sector: self.physical_sector,
                discard_granularity: self.discard_granularity,
            },
            read_only: self.read_only,
        })
    }
}

/// What the source says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the messages that the source speaks: [`VERSION`].
    pub version: u32,
    /// Version of the machine state.
    pub state_version: u32,
    /// Identity of the move.
    pub id: MoveId,
    /// Definition of the VM.
    pub definition: VmDefinition,
    /// What its vCPUs can do.
    pub model: CpuModel,
    /// Its disks, in order.
    pub shapes: Vec<Shape>,
    /// Where the source can be asked about the move.
    pub source: String,
    /// Connections that will carry memory.
    pub streams: u32,
    /// The number of the VM's run at the target, later than any run at the source. A host of an
    /// earlier version sends none: its runs are numbered by its clock.
    #[serde(default)]
    pub run: Option<u64>,
    /// The oldest version of the messages that the source speaks too; `version` alone if absent.
    #[serde(default)]
    pub oldest: Option<u32>,
    /// What the target must be able to keep of its time and registers. A host of an earlier version
    /// does not say, and a target that cannot says so when the guest is paused.
    #[serde(default)]
    pub needs: Option<Needs>,
}

impl Hello {
    /// Whether source and target have a version in common: they speak the newest that both do.
    pub fn is_understood(&self) -> bool {
        self.oldest.unwrap_or(self.version) <= VERSION && self.version >= OLDEST
    }
}

/// Messages of the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// Source: here is a VM.
    Hello(Box<Hello>),
    /// Target: it can come; memory connections show this token.
    Accepted {
        /// Random text that memory connections must show.
        token: String,
    },
    /// Target: it cannot come.
    Refused {
        /// The reason, as a sentence for a person.
        why: String,
    },
    /// Source, on a memory connection.
    Join {
        /// Identity of the move.
        id: MoveId,
        /// The token of [`Message::Accepted`].
        token: String,
    },
    /// Target, on a memory connection.
    Joined {
        /// Its time in nanoseconds since 1970, if it tells.
        #[serde(default)]
        now: Option<u64>,
    },
    /// Target: memory and state are complete and restored; waiting for the word.
    Ready,
    /// Source: it is yours, by a record that survives me.
    Commit {
        /// Identity of the move.
        id: MoveId,
    },
    /// Target: it runs.
    Running,
    /// Target: it could not run, did not, and never will by this move.
    RunFailed {
        /// The reason, as a sentence for a person.
        why: String,
    },
    /// Source: I am still there, and this far.
    Alive {
        /// Round under way.
        round: u32,
    },
    /// Source: it stays with me.
    Abort {
        /// Identity of the move.
        id: MoveId,
    },
    /// Either, on a fresh connection: what do you know of this move of which I am the source
    /// (or else the target)?
    Query {
        /// Identity of the move.
        id: MoveId,
        /// Whether the asker is the source.
        from_source: bool,
    },
    /// The answer.
    Standing {
        /// What the host knows.
        standing: Standing,
    },
    /// Source: nobody will ask about this move again.
    Forget {
        /// Identity of the move.
        id: MoveId,
    },
}

/// Writes a frame.
///
/// # Errors
/// Of the connection.
pub fn write_frame(to: &mut impl Write, kind: Kind, body: &[u8]) -> Result<(), WireError> {
    write_parts(to, kind, &[body]).map(drop)
}

/// Writes a frame whose body is in parts; returns the bytes of the whole.
fn write_parts(to: &mut impl Write, kind: Kind, parts: &[&[u8]]) -> Result<u64, WireError> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    // The other side would end the connection, and nobody would know why.
    if len > kind.limit() {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        return Err(WireError::Length { kind: kind.number(), len });
    }
    let sum = parts.iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part));
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&kind.number().to_le_bytes());
    header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    header[8..].copy_from_slice(&sum.to_le_bytes());
    to.write_all(&header)?;
    for part in parts {
        to.write_all(part)?;
    }
    Ok((len + HEADER) as u64)
}

/// Reads a frame of one of the kinds in `allowed` into `body`, whose memory is reused.
///
/// # Errors
/// [`WireError`].
pub fn read_frame(
    from: &mut impl Read,
    allowed: &[Kind],
    body: &mut Vec<u8>,
) -> Result<Kind, WireError> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let number = u16::from_le_bytes([header[0], header[1]]);
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let sum = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let kind =
        *allowed.iter().find(|kind| kind.number() == number).ok_or(WireError::Kind(number))?;
    if len as usize > kind.limit() || header[2..4] != [0, 0] {
        return Err(WireError::Length { kind: number, len });
    }
    body.clear();
    let got = from.take(u64::from(len)).read_to_end(body)?;
    if got < len as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if crc32c::crc32c(body) != sum {
        return Err(WireError::Checksum(number));
    }
    Ok(kind)
}

/// Writes a message and flushes.
///
/// # Errors
/// Of the connection.
pub fn send(to: &mut impl Write, message: &Message) -> Result<(), WireError> {
    write_frame(to, Kind::Message, &serde_json::to_vec(message)?)?;
    to.flush()?;
    Ok(())
}

/// Reads a message.
///
/// # Errors
/// [`WireError`].
pub fn receive(from: &mut impl Read) -> Result<Message, WireError> {
    let mut body = Vec::new();
    read_frame(from, &[Kind::Message], &mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Tells the other side what this is and checks what it is.
///
/// # Errors
/// [`WireError::Preamble`], or of the connection.
pub fn greet(stream: &mut (impl Read + Write)) -> Result<(), WireError> {
    stream.write_all(PREAMBLE)?;
    stream.flush()?;
    let mut theirs = [0; PREAMBLE.len()];
    stream.read_exact(&mut theirs)?;
    if &theirs == PREAMBLE { Ok(()) } else { Err(WireError::Preamble) }
}

/// Pages at consecutive addresses, all of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first, a multiple of the page size.
    pub address: u64,
    /// Number of pages in the run.
    pub pages: u32,
    /// Whether they are all zeros; else their content is in the batch.
    pub zero: bool,
}

/// A batch of pages being put together.
#[derive(Debug, Default)]
pub struct Batch {
    runs: Vec<Run>,
    data: Vec<u8>,
    table: Vec<u8>,
}

impl Batch {
    /// Whether another page fits.
    pub fn is_full(&self) -> bool {
        self.runs.len() == BATCH_RUNS || self.data.len() >= BATCH_PAGES * PAGE as usize
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn extend(&mut self, address: u64, zero: bool) {
        match self.runs.last_mut() {
            Some(run)
                if run.zero == zero
                    && run.address + u64::from(run.pages) * PAGE == address
                    && run.pages < u32::MAX =>
            {
                run.pages += 1;
            }
            _ => self.runs.push(Run { address, pages: 1, zero }),
        }
    }

    /// Adds a page; it must not be full.
    pub fn push(&mut self, address: u64, page: &[u8]) {
        let zero = is_zero(page);
        self.extend(address, zero);
        if !zero {
            self.data.extend_from_slice(page);
        }
    }

    /// Pages in it that were all zeros.
    pub fn zero_pages(&self) -> u64 {
        self.runs.iter().filter(|run| run.zero).map(|run| u64::from(run.pages)).sum()
    }

    /// Writes it as a frame and empties it; returns the bytes written.
    ///
    /// # Errors
    /// Of the connection.
    pub fn write(&mut self, to: &mut impl Write) -> Result<u64, WireError> {
        self.table.clear();
        self.table.extend((self.runs.len() as u32).to_le_bytes());
        for run in &self.runs {
            self.table.extend(run.address.to_le_bytes());
            self.table.extend(run.pages.to_le_bytes());
            self.table.extend(u32::from(run.zero).to_le_bytes());
        }
        let bytes = write_parts(to, Kind::Pages, &[&self.table, &self.data])?;
        self.runs.clear();
        self.data.clear();
        Ok(bytes)
    }
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<64>();
    words.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// Takes a batch apart: calls `each` with every run and its data (empty for zeros).
///
/// # Errors
/// [`WireError::Pages`] if the batch contradicts itself, or what `each` says.
pub fn parse_pages(
    body: &[u8],
    mut each: impl FnMut(Run, &[u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let (count, rest) = body.split_first_chunk().ok_or(WireError::Pages("no length"))?;
    let count = u32::from_le_bytes(*count) as usize;
    if count > BATCH_RUNS {
        return Err(WireError::Pages("too many runs"));
    }
    let (runs, mut data) =
        rest.split_at_checked(count * RUN).ok_or(WireError::Pages("runs cut short"))?;
    for run in runs.as_chunks::<RUN>().0 {
        let [a, b, c, d, e, f, g, h, pages @ .., z0, z1, z2, z3] = *run;
        let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let pages = u32::from_le_bytes(pages);
        let zero = match u32::from_le_bytes([z0, z1, z2, z3]) {
            0 => false,
            1 => true,
            _ => return Err(WireError::Pages("an unknown kind of run")),
        };
        let bytes = u64::from(pages) * PAGE;
        if !address.is_multiple_of(PAGE) || pages == 0 || address.checked_add(bytes).is_none() {
            return Err(WireError::Pages("a bad address"));
        }
        let take = if zero { 0 } else { bytes as usize };
        let (content, after) =
            data.split_at_checked(take).ok_or(WireError::Pages("data cut short"))?;
        each(Run { address, pages, zero }, content)?;
        data = after;
    }
    if data.is_empty() { Ok(()) } else { Err(WireError::Pages("data left over")) }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const ALL: [Kind; 4] = [Kind::Message, Kind::State, Kind::Pages, Kind::Sync];

    /// A reader that counts and never ends.
    struct Endless(u64);

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0 += into.len() as u64;
            into.fill(0);
            Ok(into.len())
        }
    }

    #[test]
    fn a_hostile_length_is_refused_before_it_is_read() {
        for (kind, len) in [(1u16, u32::MAX), (3, 1 << 20), (4, 5), (2, (8 << 20) + 1)] {
            let mut header = kind.to_le_bytes().to_vec();
            header.extend([0, 0]);
            header.extend(len.to_le_bytes());
            header.extend([0; 4]);
            let mut reader = Cursor::new(header).chain(Endless(0));
            let mut body = Vec::new();
            let error = read_frame(&mut reader, &ALL, &mut body).unwrap_err();
            assert!(matches!(error, WireError::Length { .. }), "{error}");
            assert_eq!(body.capacity(), 0);
        }
    }

    #[test]
    fn memory_grows_only_with_what_arrives() {
        let mut header = 2u16.to_le_bytes().to_vec();
        header.extend([0, 0]);
        header.extend((8u32 << 20).to_le_bytes());
        header.extend([0; 4]);
        header.extend([7; 100]);
        let mut body = Vec::new();
        assert!(read_frame(&mut Cursor::new(header), &ALL, &mut body).is_err());
        assert!(body.capacity() < 4096, "{}", body.capacity());
    }

    /// Hosts of neighbouring versions move VMs to each other: what is new may be left out, and who can
    /// speak an older version says so.
    #[test]
    fn hosts_of_other_versions_are_understood_where_they_can_be() {
        let hello = |more: &str| -> Hello {
            let id = "0123456789abcdef0123456789abcdef";
            let text = format!(
                r#"{{"state_version": 1, "id": "{id}", "definition": {{"name": "a", "memory_mib": 64,
                "boot": {{"kernel": "/k"}}}}, "model": [], "shapes": [], "source": "h:1",
                "streams": 2, {more}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let first = hello(r#""version": 1"#);
        assert!(first.is_understood() && first.needs.is_none() && first.run.is_none());
        assert!(hello(r#""version": 7, "oldest": 1, "unheard_of": true"#).is_understood());
        assert!(!hello(r#""version": 7"#).is_understood());
        assert!(!hello(r#""version": 7, "oldest": 2"#).is_understood());
        assert!(!hello(r#""version": 0"#).is_understood());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn frames_round_trip_and_any_flipped_bit_is_noticed(
            body in prop::collection::vec(any::<u8>(), 0..2000),
            flip: prop::sample::Index,
        ) {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, Kind::State, &body).unwrap();
            let mut got = Vec::new();
            let kind = read_frame(&mut Cursor::new(&bytes), &ALL, &mut got).unwrap();
            prop_assert_eq!((kind, &got), (Kind::State, &body));
            let at = flip.index(bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            // A flip of the kind may still give a whole frame of another kind.
            match read_frame(&mut Cursor::new(&bytes), &ALL, &mut got) {
                Err(_) => {}
                Ok(kind) => prop_assert!(kind != Kind::State && at < 16),
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut body = Vec::new();
            let _ = read_frame(&mut Cursor::new(&bytes), &ALL, &mut body);
            let _ = receive(&mut Cursor::new(&bytes));
            let _ = parse_pages(&bytes, |run, data| {
                let len = if run.zero { 0 } else { run.pages as usize * PAGE as usize };
                assert_eq!(data.len(), len);
                Ok(())
            });
        }

        /// A batch, mutated in its table, is refused or describes exactly its data.
        #[test]
        fn mutated_batches_never_lie(at in 0usize..52, value: u8) {
            let mut batch = Batch::default();
            batch.push(0x1000, &[1; 4096]);
            batch.push(0x2000, &[2; 4096]);
            batch.push(0x9000, &[0; 4096]);
            let mut bytes = Vec::new();
            batch.write(&mut bytes).unwrap();
            let mut body = bytes.split_off(HEADER);
            body[at % 36] = value;
            let mut seen = 0;
            let result = parse_pages(&body, |_, data| { seen += data.len(); Ok(()) });
            if result.is_ok() {
                let runs = u32::from_le_bytes(body[..4].try_into().unwrap()) as usize;
                prop_assert_eq!(seen, body.len() - 4 - runs * RUN);
            }
        }

        #[test]
        fn batches_give_back_every_page(pages in prop::collection::btree_map(0u64..2000, 0u8..3, 0..BATCH_PAGES)) {
            let mut batch = Batch::default();
            for (page, fill) in &pages {
                prop_assert!(!batch.is_full());
                batch.push(page * PAGE, &[*fill; PAGE as usize]);
            }
            let mut bytes = Vec::new();
            batch.write(&mut bytes).unwrap();
            let mut body = Vec::new();
            read_frame(&mut Cursor::new(&bytes), &ALL, &mut body).unwrap();
            let mut got = std::collections::BTreeMap::new();
            parse_pages(&body, |run, data| {
                for index in 0..u64::from(run.pages) {
                    let fill = data.get(index as usize * PAGE as usize).copied().unwrap_or(0);
                    got.insert(run.address / PAGE + index, fill);
                }
                Ok(())
            }).unwrap();
            prop_assert_eq!(got, pages);
        }
    }
}
