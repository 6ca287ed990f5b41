//! The file: the state in two places by turns, and the maps.

use std::{
    ops::Range,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use block_io::File;

use super::{
    map::runs,
    state::{LENGTH, MAX_NAME, MAX_POINTS, PLACES, Point, REGION, State},
};
use crate::{Error, Guid, Result};

/// What changed since a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// These parts of the disk, ascending and disjoint, and nothing else.
    Ranges(Vec<Range<u64>>),
    /// It is not known: the image was changed without keeping track, or it has another size.
    All,
}

/// A tracking file whose image is at rest.
#[derive(Debug)]
pub struct Store {
    pub(super) file: Arc<dyn File>,
    pub(super) state: State,
    /// Which of the two places has the state.
    place: usize,
}

impl Store {
    /// Replaces the content of `file`: from now on the changes of a disk of so many bytes are kept,
    /// which has this content now. There are no points yet.
    ///
    /// # Errors
    /// What the file says.
    pub async fn create(file: Arc<dyn File>, disk_size: u64, content: Guid) -> Result<Self> {
        if file.len().await? > 0 {
            file.set_len(0).await?;
        }
        let state = State::new(disk_size, content);
        let mut store = Self { file, state, place: 1 };
        store.file.set_len(store.state.map_at(0)).await?;
        store.save().await?;
        store.save().await?;
        Ok(store)
    }

    /// Opens a tracking file; never writes.
    ///
    /// # Errors
    /// [`Error::Damaged`] if neither state is whole.
    pub async fn open(file: Arc<dyn File>) -> Result<Self> {
        let mut found: Option<(usize, State)> = None;
        let mut wrong = None;
        for (place, at) in PLACES.into_iter().enumerate() {
            let mut bytes = vec![0; LENGTH];
            let got = file.read_at(at, &mut bytes).await?;
            match State::parse(&bytes[..got], at) {
                Ok(state) if found.as_ref().is_none_or(|(_, f)| f.sequence < state.sequence) => {
                    found = Some((place, state));
                }
                Ok(_) => {}
                Err(error) => wrong = Some(error),
            }
        }
        match (found, wrong) {
            (Some((place, state)), _) => Ok(Self { file, state, place }),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::Unsupported("a tracking file without a state".into())),
        }
    }

    /// The points and the maps that the file holds.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether this belongs to a disk of such a size and content.
    pub fn belongs(&self, disk_size: u64, content: Guid) -> bool {
        self.state.disk_size == disk_size && self.state.content == content
    }

    /// Makes the state durable.
    pub(super) async fn save(&mut self) -> block_io::Result<()> {
        self.state.sequence += 1;
        let place = 1 - self.place;
        self.file.write_at(PLACES[place], &self.state.encode()).await?;
        self.file.flush().await?;
        self.place = place;
        Ok(())
    }

    /// Reads a point's map.
    pub(super) async fn map(&self, slot: u32) -> block_io::Result<Vec<u64>> {
        let mut bytes = vec![0; self.state.map_len() as usize];
        // What the file does not reach was never marked.
        let got = self.file.read_at(self.state.map_at(slot), &mut bytes).await?;
        bytes[got..].fill(0);
        let words = self.state.granules().div_ceil(64) as usize;
        Ok(bytes.as_chunks::<8>().0.iter().take(words).map(|w| u64::from_le_bytes(*w)).collect())
    }

    /// Writes the parts of a map that differ from what is known to be there; not yet durable.
    pub(super) async fn put_map(
        &self,
        slot: u32,
        words: &[u64],
        there: Option<&[u64]>,
    ) -> block_io::Result<()> {
        const PIECE: usize = 512;
        for (i, piece) in words.chunks(PIECE).enumerate() {
            let same = there.and_then(|there| there.chunks(PIECE).nth(i)) == Some(piece);
            if !same {
                let mut bytes: Vec<u8> = piece.iter().flat_map(|word| word.to_le_bytes()).collect();
                bytes.resize(PIECE * 8, 0);
                let at = self.state.map_at(slot) + (i * PIECE * 8) as u64;
                self.file.write_at(at, &bytes).await?;
            }
        }
        Ok(())
    }

    /// Makes a point. All changes before it are marked and durable, and the disk was flushed.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for a name that is empty, too long or there already, or if there
    /// are too many points.
    pub async fn point(&mut self, name: &str) -> Result<Point> {
        let invalid = |why: &str| Err(Error::InvalidOptions(why.into()));
        if name.is_empty() || name.len() > MAX_NAME {
            return invalid("a point's name has 1 to 64 bytes");
        }
        if self.state.points.iter().any(|point| point.name == name) {
            return Err(Error::InvalidOptions(format!("there is a point {name} already")));
        }
        if self.state.points.len() >= MAX_POINTS {
            return invalid("there are 64 points already: remove one");
        }
        self.settle_regions().await?;
        let slot = self.state.free_slot();
        let empty = vec![0; self.state.granules().div_ceil(64) as usize];
        self.put_map(slot, &empty, None).await?;
        self.file.flush().await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.map_or(0, |since| since.as_secs());
        let point = Point { id: Guid::random(), name: name.to_owned(), seconds, slot };
        self.state.points.push(point.clone());
        self.save().await?;
        Ok(point)
    }

    /// Marks all of the active regions in the last point's map, and makes them inactive: what they
    /// say is not about the next point.
    async fn settle_regions(&mut self) -> Result<()> {
        if self.state.active.is_empty() {
            return Ok(());
        }
        if let Some(last) = self.state.points.last() {
            let slot = last.slot;
            let mut words = self.map(slot).await?;
            self.mark_active(&mut words);
            self.put_map(slot, &words, None).await?;
            self.file.flush().await?;
        }
        self.state.active.clear();
        self.save().await?;
        Ok(())
    }

    /// Removes a point. Changes since earlier points stay known.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if there is no such point.
    pub async fn remove_point(&mut self, id: Guid) -> Result<()> {
        let at = self.position(id)?;
        if at > 0 {
            // The point before takes over what changed since this one.
            let (slot, more) = (self.state.points[at - 1].slot, self.state.points[at].slot);
            let mut words = self.map(slot).await?;
            for (word, more) in words.iter_mut().zip(self.map(more).await?) {
                *word |= more;
            }
            self.put_map(slot, &words, None).await?;
            self.file.flush().await?;
        }
        self.state.points.remove(at);
        self.save().await?;
        Ok(())
    }

    fn position(&self, id: Guid) -> Result<usize> {
        let found = self.state.points.iter().position(|point| point.id == id);
        found.ok_or_else(|| Error::InvalidOptions(format!("there is no point {id}")))
    }

    /// The point of this name or identity.
    pub fn find(&self, name: &str) -> Option<&Point> {
        let points = &self.state.points;
        let named = points.iter().find(|point| point.name == name);
        named.or_else(|| points.iter().find(|point| point.id.to_string() == name))
    }

    /// Begins anew: nothing is known any more of the changes since the points there were, which
    /// are no more.
    pub(super) async fn reset(&mut self, disk_size: u64, content: Guid) -> Result<()> {
        let sequence = self.state.sequence;
        self.state = State { sequence, ..State::new(disk_size, content) };
        self.save().await?;
        Ok(())
    }

    fn mark_active(&self, words: &mut [u64]) {
        for region in &self.state.active {
            let first = u64::from(*region) * REGION;
            for granule in first..first + REGION {
                if let Some(word) = words.get_mut((granule / 64) as usize) {
                    *word |= 1 << (granule % 64);
                }
            }
        }
    }

    /// What changed since a point, as far as this file knows; `more` is what a running disk has
    /// marked since.
    pub(super) async fn words_since(&self, id: Guid, more: Option<&[u64]>) -> Result<Vec<u64>> {
        let at = self.position(id)?;
        let mut words = vec![0; self.state.granules().div_ceil(64) as usize];
        for point in &self.state.points[at..] {
            for (word, map) in words.iter_mut().zip(self.map(point.slot).await?) {
                *word |= map;
            }
        }
        match more {
            // What it has is exact.
            Some(more) => words.iter_mut().zip(more).for_each(|(word, more)| *word |= more),
            None => self.mark_active(&mut words),
        }
        Ok(words)
    }

    /// What changed since a point, of a disk that has this size and content now and is not in use.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if there is no such point.
    pub async fn changes_since(&self, id: Guid, disk_size: u64, content: Guid) -> Result<Changes> {
        let words = self.words_since(id, None).await?;
        if !self.belongs(disk_size, content) {
            return Ok(Changes::All);
        }
        Ok(self.ranges(&words))
    }

    pub(super) fn ranges(&self, words: &[u64]) -> Changes {
        let (granule, size) = (self.state.granule, self.state.disk_size);
        let bytes = |run: Range<u64>| run.start * granule..(run.end * granule).min(size);
        Changes::Ranges(runs(words, self.state.granules()).into_iter().map(bytes).collect())
    }
}
