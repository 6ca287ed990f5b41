//! What an open does to the times and attributes of its file.

use std::sync::atomic::Ordering;

use smb_protocol::{
    NtStatus,
    fscc::{FileAttributes, file_info::Basic},
};

use crate::{clock::now, fs::attributes, open::Open, status::of_errno};

impl Open {
    /// This open is about to change the content: its times are shown late, or as they were set.
    pub fn note_write(&self) {
        let times = &self.base_file().times;
        if !times.knows_of_writes(self.opener_id())
            && let Ok(facts) = attributes::facts(self.handle())
        {
            times.written(self.opener_id(), facts.times.write);
            // What is changed is to be backed up.
            let archive = FileAttributes::ARCHIVE;
            if !facts.attributes.has(archive) && !facts.directory {
                let _ = attributes::set_attributes(self.handle(), facts.attributes.or(archive));
            }
        }
    }

    /// Sets attributes and times as a client asks for them: of a time 0 leaves it, -1 holds it
    /// where it is while this open lasts, -2 lets it go, and any other value sets and holds it
    /// (MS-FSA 2.1.5.15.2).
    pub fn set_basic(&self, basic: &Basic) -> Result<(), NtStatus> {
        const HOLD: u64 = u64::MAX;
        const RELEASE: u64 = u64::MAX - 1;
        let given = |time: u64| (!matches!(time, 0 | HOLD | RELEASE)).then_some(time);
        let asked = &basic.times;
        let mut to = attributes::Change {
            attributes: Some(basic.attributes).filter(|a| *a != FileAttributes::NONE),
            creation: given(asked.creation),
            access: given(asked.access),
            write: given(asked.write),
            change: given(asked.change),
        };
        let shown = self.facts()?.times;
        let (file, id) = (self.base_file(), self.opener_id());
        file.times.settle();
        match asked.change {
            0 => {}
            RELEASE => file.times.release_change(id),
            HOLD => {
                file.times.hold_change(id, shown.change);
                to.change = Some(shown.change);
            }
            time => file.times.hold_change(id, time),
        }
        attributes::set(self.handle(), &to).map_err(of_errno)?;
        match asked.write {
            0 => {}
            RELEASE => file.times.release_write(id),
            HOLD => file.times.hold_write(id, shown.write),
            time => file.times.hold_write(id, time),
        }
        Ok(())
    }

    /// This open is about to be closed: its writes are dated.
    pub fn date_writes(&self) {
        if self.base_file().times.settle_close(self.opener_id()) {
            let to = attributes::Change { write: Some(now()), ..attributes::Change::default() };
            if let Err(error) = attributes::set(self.handle(), &to) {
                tracing::debug!(%error, "the time of the last write is not kept");
            }
        }
    }

    /// What this open held of the file's times is given to the system.
    pub(crate) fn leave_times(&self) {
        let remains = self.base_file().times.close(self.opener_id());
        let mut to = attributes::Change {
            write: remains.write,
            change: remains.change,
            ..attributes::Change::default()
        };
        if self.stream.is_some() && self.written.load(Ordering::Relaxed) {
            // The system knows nothing of a stream's file.
            to.write = to.write.or_else(|| Some(now()));
        }
        if to.write.is_none() && to.change.is_none() {
            return;
        }
        let Ok(facts) = attributes::facts(self.handle()) else { return };
        to.write = to.write.filter(|time| *time != facts.times.write);
        if to.write.is_none() {
            to.change = to.change.filter(|time| *time != facts.times.change);
        }
        if (to.write.is_some() || to.change.is_some())
            && let Err(error) = attributes::set(self.handle(), &to)
        {
            tracing::debug!(%error, "times that were set are lost");
        }
    }
}
