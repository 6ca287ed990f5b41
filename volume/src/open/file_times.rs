//! What an open does to the times and attributes of its file.

use smb_protocol::{
    NtStatus,
    fscc::{FileAttributes, file_info::Basic},
};

use crate::{
    clock::now,
    fs::{
        attributes::{self, Change},
        times::Which,
    },
    open::Open,
    status::of_errno,
};

impl Open {
    /// This open is about to change the content (MS-FSA 2.1.4.17): of a file, which the system dates,
    /// or of a stream, whose file it does not.
    pub fn note_write(&self) {
        let (times, id) = (&self.base_file().times, self.opener_id());
        if self.stream.is_some() {
            times.stream_written(id, now());
        }
        if !times.knows_of_writes(id)
            && let Ok(facts) = attributes::facts(self.handle())
        {
            times.written(id, facts.times.write);
            self.mark_changed(&facts, !times.holds(id, Which::Access));
        }
    }

    /// What is changed is to be backed up; and who set its access time long ago does not any more.
    fn mark_changed(&self, facts: &attributes::Facts, accessed: bool) {
        let archive = FileAttributes::ARCHIVE;
        let archived = facts.directory || facts.attributes.has(archive);
        let accessed = accessed && facts.access_set;
        if archived && !accessed {
            return;
        }
        let to = Change {
            attributes: (!archived).then(|| facts.attributes.or(archive)),
            access_set: accessed.then_some(false),
            ..Change::default()
        };
        if let Err(error) = attributes::set(self.handle(), &to) {
            tracing::debug!(%error, "a file that is changed is not marked for the next backup");
        }
    }

    /// Something of the file is changed, but not its content (MS-FSA 2.1.4.18): its change time moves,
    /// and it is to be backed up.
    pub fn note_change(&self) {
        let touched = attributes::facts(self.handle()).and_then(|facts| {
            let archive = match facts.directory {
                true => FileAttributes::NONE,
                false => FileAttributes::ARCHIVE,
            };
            attributes::touch(self.handle(), facts.attributes.or(archive))
        });
        if let Err(error) = touched {
            tracing::debug!(%error, "a file that is changed is not marked for the next backup");
        }
    }

    /// Carries out what the system takes for a change of the content and Windows does not: the write
    /// time stays.
    ///
    /// # Errors
    /// Those of `change`, and what the file system says.
    pub fn undated<T>(&self, change: impl FnOnce() -> Result<T, NtStatus>) -> Result<T, NtStatus> {
        let before = attributes::facts(self.holder()).map_err(of_errno)?.times.write;
        let done = change()?;
        let after = attributes::facts(self.holder()).map_err(of_errno)?.times.write;
        if after != before {
            attributes::set_write_time(self.holder(), before).map_err(of_errno)?;
        }
        Ok(done)
    }

    /// Sets attributes and times as a client asks for them: of a time 0 leaves it, -1 holds it
    /// where it is while this open lasts, -2 lets it go, and any other value sets and holds it
    /// (MS-FSA 2.1.5.15.2).
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_basic(&self, basic: &Basic) -> Result<(), NtStatus> {
        const HOLD: u64 = u64::MAX;
        const RELEASE: u64 = u64::MAX - 1;
        let given = |time: u64| (!matches!(time, 0 | HOLD | RELEASE)).then_some(time);
        let asked = &basic.times;
        let mut to = Change {
            attributes: Some(basic.attributes).filter(|a| *a != FileAttributes::NONE),
            creation: given(asked.creation),
            access: given(asked.access),
            access_set: match asked.access {
                0 | HOLD => None,
                time => Some(time != RELEASE),
            },
            write: given(asked.write),
            change: given(asked.change),
        };
        let shown = self.facts()?.times;
        if asked.change == HOLD {
            to.change = Some(shown.change);
        }
        let (times, id) = (&self.base_file().times, self.opener_id());
        times.forget_writes();
        let hold = |which, asked, shown| match asked {
            0 => {}
            RELEASE => times.release(id, which),
            HOLD => times.hold(id, which, shown),
            time => times.hold(id, which, time),
        };
        hold(Which::Change, asked.change, shown.change);
        attributes::set(self.handle(), &to).map_err(of_errno)?;
        hold(Which::Write, asked.write, shown.write);
        hold(Which::Access, asked.access, shown.access);
        Ok(())
    }

    /// What this open held of the file's times is given to the system, and when it wrote a stream.
    pub(crate) fn leave_times(&self) {
        let remains = self.base_file().times.close(self.opener_id());
        let mut to = Change {
            write: remains.write,
            change: remains.change,
            access: remains.access,
            ..Change::default()
        };
        if to.write.is_none() && to.change.is_none() && to.access.is_none() {
            return;
        }
        let Ok(facts) = attributes::facts(self.handle()) else { return };
        to.write = to.write.filter(|time| *time != facts.times.write);
        to.access = to.access.filter(|time| *time != facts.times.access);
        to.access_set = to.access.map(|_| true);
        if to.write.is_none() && to.access.is_none() {
            to.change = to.change.filter(|time| *time != facts.times.change);
        } else if to.write.is_none() {
            // That it was read is no change.
            to.change = to.change.or(Some(facts.times.change));
        }
        if (to.write.is_some() || to.change.is_some())
            && let Err(error) = attributes::set(self.handle(), &to)
        {
            tracing::debug!(%error, "times that were set are lost");
        }
    }
}
