//! Flush: the headers, the log, and the order in which things become durable.

use std::sync::{Arc, atomic::Ordering};

use block_io::{Error, File, Result};
use futures_util::future::try_join_all;
use tokio::sync::{Mutex, MutexGuard};

use super::{
    HEADER_OFFSETS, MIB,
    bat::PAGE_SIZE,
    disk::Inner,
    header::Header,
    log::{LogEntry, Update},
    table::PageBytes,
};
use crate::Guid;

/// Neighbouring table pages written in place at once, at most.
const RUN_PAGES: usize = 256;

/// The two headers of an open image.
#[derive(Debug)]
pub(super) struct Headers {
    state: Mutex<HeaderState>,
}

/// The current header and where it stands.
#[derive(Debug)]
pub(super) struct HeaderState {
    index: usize,
    current: Header,
}

impl Headers {
    pub(super) fn new((index, current): (usize, Header)) -> Self {
        Self { state: Mutex::new(HeaderState { index, current }) }
    }

    pub(super) async fn lock(&self) -> MutexGuard<'_, HeaderState> {
        self.state.lock().await
    }
}

impl HeaderState {
    /// Changes the header in both places, one after the other (MS-VHDX 2.2.2.1). Durable on
    /// return; if it fails or is dropped half-way, the file has either header.
    pub(super) async fn update(
        &mut self,
        file: &dyn File,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let mut next = self.current;
        change(&mut next);
        for _ in 0..2 {
            // One change a nanosecond comes there in 584 years; an image that is there was made so.
            next.sequence = self.current.sequence.checked_add(1).ok_or_else(|| {
                Error::Corrupt("the headers' sequence number is the largest there is".into())
            })?;
            let index = 1 - self.index;
            file.write_at(HEADER_OFFSETS[index], &next.encode()).await?;
            file.flush().await?;
            self.current = next;
            self.index = index;
        }
        Ok(())
    }
}

/// Where the next log entry goes.
///
/// Each entry is complete by itself: what came before was flushed in its place when it is
/// written, so its tail is itself, and only the newest entry counts. It takes at most half the
/// ring, so the one before stays whole until the new one is.
#[derive(Debug)]
pub(super) struct LogWriter {
    offset: u64,
    length: u64,
    next: u64,
    sequence: u64,
    /// The identifier of this session's entries once the header has it.
    guid: Option<Guid>,
    /// A commit did not finish; what is in the file is then not known well enough to go on.
    broken: bool,
}

impl LogWriter {
    pub(super) fn new(offset: u64, length: u64) -> Self {
        Self { offset, length, next: 0, sequence: 1, guid: None, broken: false }
    }

    /// Makes one entry of these updates durable. What they expose must be durable before, and so
    /// must the pages of the entry before, in their places.
    pub(super) async fn commit(
        &mut self,
        file: &dyn File,
        headers: &Headers,
        updates: Vec<Update>,
        stable_len: u64,
        used_end: u64,
    ) -> Result<()> {
        let guid = self.guid.unwrap_or_else(Guid::random);
        let entry = LogEntry {
            sequence: self.sequence,
            tail: self.next as u32,
            guid,
            flushed_file_offset: stable_len / MIB * MIB,
            last_file_offset: used_end,
            updates,
        };
        self.append(file, &entry.encode()).await?;
        file.flush().await?;
        if self.guid.is_none() {
            // The first entry stands before the header says that there are any, so there is no
            // moment at which the header names a log without a valid entry.
            headers.lock().await.update(file, |header| header.log = guid).await?;
            self.guid = Some(guid);
        }
        Ok(())
    }

    /// Whether the header names entries of this session; they are given up by the caller then.
    pub(super) fn end(&mut self) -> bool {
        self.guid.take().is_some()
    }

    /// Writes an entry at the head, wrapped where the ring ends. Not yet durable.
    async fn append(&mut self, file: &dyn File, entry: &[u8]) -> Result<()> {
        let first = (entry.len() as u64).min(self.length - self.next) as usize;
        file.write_at(self.offset + self.next, &entry[..first]).await?;
        if first < entry.len() {
            file.write_at(self.offset, &entry[first..]).await?;
        }
        self.next = (self.next + entry.len() as u64) % self.length;
        self.sequence += 1;
        Ok(())
    }
}

impl Inner {
    /// Renews the identifiers before the first change after opening (MS-VHDX 2.2.2).
    pub(super) async fn start_session(&self) -> Result<()> {
        let mut headers = self.headers.lock().await;
        if !self.started.load(Ordering::Acquire) {
            headers
                .update(&*self.file, |header| {
                    header.file_write = Guid::random();
                    header.data_write =
                        self.next_content.get().copied().unwrap_or_else(Guid::random);
                })
                .await?;
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Makes everything completed before durable. With an unchanged table that is one flush of
    /// the file. Concurrent calls share a run; a failure stays.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<()> {
        self.flushes
            .run(|| async {
                // A commit under way may hold the table changes this call must see durable.
                let idle = self.log.try_lock().is_ok_and(|log| !log.broken);
                if idle && self.bat.is_clean() {
                    return self.file.flush().await;
                }
                // A commit begun is a commit finished, even if the caller goes away.
                let inner = self.clone();
                let commit = tokio::spawn(async move { inner.commit().await });
                commit.await.map_err(|e| Error::io("committing", std::io::Error::other(e)))?
            })
            .await
    }

    /// Makes payload and table durable, in the safe order.
    async fn commit(self: &Arc<Self>) -> Result<()> {
        let mut log = self.log.lock().await;
        if std::mem::replace(&mut log.broken, true) {
            return Err(Error::Corrupt("an earlier change of the block table failed".into()));
        }
        let (pages, freed, stable_len, used_end) = {
            let mut space = self.space();
            let pages = self.bat.take_dirty();
            (pages, space.take_retiring(), space.file_len, space.used_end())
        };
        // The payload of everything in these pages, and the pages of the commit before.
        self.file.flush().await?;
        if !pages.is_empty() {
            self.log_pages(&mut log, &pages, stable_len, used_end).await?;
            self.space().retired(self.epochs.current(), freed);
            self.write_in_place(&pages).await?;
            self.bat.committed(pages.iter().map(|(page, _)| *page));
        }
        log.broken = false;
        drop(log);
        self.reclaim_later();
        Ok(())
    }

    /// Puts the pages into the log and makes that durable.
    async fn log_pages(
        &self,
        log: &mut LogWriter,
        pages: &[(usize, PageBytes)],
        stable_len: u64,
        used_end: u64,
    ) -> Result<()> {
        let update = |(page, data): &(usize, PageBytes)| Update::Data {
            offset: self.bat_offset + *page as u64 * PAGE_SIZE,
            data: data.clone(),
        };
        let updates = pages.iter().map(update).collect();
        log.commit(&*self.file, &self.headers, updates, stable_len, used_end).await
    }

    /// Writes the pages where they belong, neighbours together.
    async fn write_in_place(&self, pages: &[(usize, PageBytes)]) -> Result<()> {
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        for (page, data) in pages {
            match runs.last_mut() {
                Some((first, run))
                    if first.wrapping_add(run.len() / data.len()) == *page
                        && run.len() < RUN_PAGES * data.len() =>
                {
                    run.extend_from_slice(&data[..]);
                }
                _ => runs.push((*page, data.to_vec())),
            }
        }
        let writes = runs
            .iter()
            .map(|(page, run)| self.file.write_at(self.bat_offset + *page as u64 * PAGE_SIZE, run));
        try_join_all(writes).await.map(drop)
    }

    /// Ends the session: everything durable, the log empty, the file cut to what is used.
    pub(super) async fn close(self: &Arc<Self>) -> Result<()> {
        if !self.epochs.is_closed() {
            self.end().await?;
            self.file.close().await?;
        }
        Ok(())
    }

    /// As [`Inner::close`], but the file stays open.
    pub(super) async fn end(self: &Arc<Self>) -> Result<()> {
        if !self.epochs.close() {
            return Ok(());
        }
        self.epochs.drained().await;
        if !self.read_only && self.started.load(Ordering::Acquire) {
            self.flush().await?;
            let _no_refill = self.refill.lock().await;
            let logged = self.log.lock().await.end();
            if logged {
                // The pages in place are durable before the log is given up.
                self.file.flush().await?;
                self.headers.lock().await.update(&*self.file, |h| h.log = Guid::ZERO).await?;
            }
            let cut = {
                let mut space = self.space();
                space.settle(self.layout.block_size);
                let end = space.used_end();
                (!self.fixed && end < space.file_len).then_some(end)
            };
            if let Some(end) = cut {
                self.file.set_len(end).await?;
                self.file.flush().await?;
            }
        }
        Ok(())
    }
}
