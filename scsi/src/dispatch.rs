//! The way of a command: everything that can stand against it, in order of precedence, and then
//! its handler.
//!
//! ```text
//!  logical unit? ─► unit attention? ─► known? ─► reservation? ─► port's state? ─► sanitize?
//!    ─► fields right? ─► medium? ─► handler
//! ```

use std::sync::Arc;

use crate::{
    Completion, Nexus, Request, Sense, SenseKey, Status, asc,
    call::Call,
    cdb::{self, Access, Command, Features, Op, SanitizeAction, Unknown},
    copy::operating_parameters,
    inquiry,
    refusal::{Done, Refusal},
    reports,
    reservation::{Out, Who, parse_out},
    target::Target,
    unit::{Kind, Pattern, Unit, log_sense, start_sanitize},
};

/// Operation codes that are answered whatever a nexus is owed (SAM-5 5.14.1).
const INQUIRY: u8 = 0x12;
const REQUEST_SENSE: u8 = 0x03;
const REPORT_LUNS: u8 = 0xa0;

/// Carries out one command from its bytes to its completion.
pub(crate) async fn execute(
    target: &Arc<Target>,
    nexus: &Nexus,
    request: Request<'_>,
    data_in: &mut Vec<u8>,
) -> Completion {
    let mut wanted = request.data_out.len() as u64;
    let done = match target.unit(nexus, request.lun) {
        Some(unit) => on_unit(target, &unit, nexus, request, data_in, &mut wanted).await,
        None => without_unit(target, nexus, request, data_in),
    };
    let (status, sense) = match &done {
        Ok(()) => (Status::Good, None),
        Err(refusal) => (refusal.status(), refusal.sense()),
    };
    Completion { status, sense, data_out_wanted: wanted }
}

/// Appends as much of an answer as the allocation length lets.
fn reply(data_in: &mut Vec<u8>, bytes: &[u8], allocation: u32) {
    data_in.extend_from_slice(&bytes[..bytes.len().min(allocation as usize)]);
}

fn request_sense(sense: Sense, descriptor: bool) -> Vec<u8> {
    if descriptor { sense.descriptor() } else { sense.fixed().to_vec() }
}

/// What is answered for a number that no unit has (SPC-4 6.6.2, SAM-5 4.7.4).
fn without_unit(
    target: &Target,
    nexus: &Nexus,
    request: Request<'_>,
    data_in: &mut Vec<u8>,
) -> Done {
    let features = Features { unmap: false, anchor: false, atomic: false, explicit_alua: false };
    let missing = Sense::new(SenseKey::IllegalRequest, asc::UNIT_NOT_SUPPORTED);
    let Ok(entry) = cdb::find(request.cdb, features) else { return Err(Refusal::Check(missing)) };
    if !matches!(entry.op, Op::Inquiry | Op::ReportLuns | Op::RequestSense) {
        return Err(Refusal::Check(missing));
    }
    match cdb::parse(entry, features, request.cdb)? {
        Command::Inquiry { page: None, allocation } => {
            let number = reports::number_of(request.lun);
            reply(data_in, &inquiry::absent(number), allocation);
        }
        Command::ReportLuns { select, allocation } => {
            report_luns(target, nexus, select, allocation, data_in)?;
        }
        Command::RequestSense { descriptor, allocation } => {
            reply(data_in, &request_sense(missing, descriptor), allocation);
        }
        _ => return Err(Refusal::in_cdb(1, Some(0))),
    }
    Ok(())
}

fn report_luns(
    target: &Target,
    nexus: &Nexus,
    select: u8,
    allocation: u32,
    data_in: &mut Vec<u8>,
) -> Done {
    let units = target.visible(nexus);
    let numbers: Vec<u16> = units.iter().map(|unit| unit.number).collect();
    reply(data_in, &reports::luns(select, &numbers)?, allocation);
    for unit in units.iter().filter(|unit| unit.attentions.any()) {
        unit.attentions.clear(nexus.id, asc::LUNS_CHANGED);
    }
    Ok(())
}

async fn on_unit(
    target: &Arc<Target>,
    unit: &Arc<Unit>,
    nexus: &Nexus,
    request: Request<'_>,
    data_in: &mut Vec<u8>,
    wanted: &mut u64,
) -> Done {
    let code = request.cdb.first().copied();
    let always = matches!(code, Some(INQUIRY | REQUEST_SENSE | REPORT_LUNS));
    let owed = !always && unit.attentions.any();
    if let Some(code) = owed.then(|| unit.attentions.take(nexus.id)).flatten() {
        return Err(Refusal::check(SenseKey::UnitAttention, code));
    }
    let features = unit.features(target.ports.explicit());
    let entry = cdb::find(request.cdb, features).map_err(|unknown| match unknown {
        Unknown::OperationCode => Refusal::illegal(asc::OPERATION_CODE),
        Unknown::ServiceAction => Refusal::in_cdb(1, Some(4)),
    })?;
    let parsed = cdb::parse(entry, features, request.cdb);
    if let Ok(command) = &parsed {
        *wanted = command.data_out(unit.block());
    }
    unit.reservations.check(nexus, entry.access)?;
    target.ports.check(nexus.port, entry.op)?;
    if !always && (unit.sanitize.running() || (needs_medium(entry.op) && entry.op != Op::Sanitize))
    {
        unit.sanitize.check()?;
    }
    let command = parsed?;
    if needs_medium(entry.op) {
        unit.has_medium()?;
        unit.not_crowded()?;
    }
    let (kind, bytes) = moved(&command, unit.block());
    if needs_medium(entry.op) {
        let waited = unit.meter.pass(request.rank, bytes).await;
        if let (Some(waited), Some(queue)) = (waited, &unit.options.queue) {
            queue.waited(waited);
        }
    }
    let call = Call { target, unit, nexus, data_out: request.data_out };
    let done = call.run(command, data_in).await;
    unit.meter.count(kind, bytes, done.is_ok());
    done
}

/// What a command is counted as, and the bytes that it moves.
fn moved(command: &Command, block: u32) -> (Kind, u64) {
    match command {
        Command::Read(extent) => (Kind::Read, u64::from(extent.blocks) * u64::from(block)),
        Command::Write(_)
        | Command::OrWrite(_)
        | Command::WriteAtomic { .. }
        | Command::CompareAndWrite(_)
        | Command::WriteVerify(..) => (Kind::Write, command.data_out(block)),
        _ => (Kind::Other, command.data_out(block)),
    }
}

/// Commands that there is nothing to do for without a medium.
fn needs_medium(op: Op) -> bool {
    !matches!(
        op,
        Op::Inquiry
            | Op::RequestSense
            | Op::ReportLuns
            | Op::ModeSense6
            | Op::ModeSense10
            | Op::LogSense
            | Op::ModeSelect6
            | Op::ModeSelect10
            | Op::StartStopUnit
            | Op::PreventAllow
            | Op::SendDiagnostic
            | Op::Reserve
            | Op::Release
            | Op::ReportOpcodes
            | Op::ReportTaskManagement
            | Op::ReportTargetPortGroups
            | Op::SetTargetPortGroups
            | Op::PersistentReserveIn
            | Op::PersistentReserveOut
            | Op::CopyParameters
            | Op::CopyStatus1
            | Op::CopyStatus4
            | Op::RodTokenInformation
    )
}

impl Call<'_> {
    async fn run(&self, command: Command, data_in: &mut Vec<u8>) -> Done {
        match command {
            Command::Read(extent) => self.read(extent, data_in).await,
            Command::Write(extent) => self.write(extent).await,
            Command::Verify(extent, check) => self.verify(extent, check).await,
            Command::WriteVerify(extent, check) => self.write_verify(extent, check).await,
            Command::SynchronizeCache(extent) => self.synchronize_cache(extent).await,
            Command::PreFetch(extent) => self.pre_fetch(extent),
            Command::WriteSame { extent, unmap, no_data } => {
                self.write_same(extent, unmap, no_data).await
            }
            Command::Unmap { length } => self.unmap(length).await,
            Command::CompareAndWrite(extent) => self.compare_and_write(extent).await,
            Command::OrWrite(extent) => self.or_write(extent).await,
            Command::WriteAtomic { extent, boundary } => self.write_atomic(extent, boundary).await,
            Command::GetLbaStatus { lba, allocation } => {
                let bytes = self.lba_status(lba, allocation).await?;
                reply(data_in, &bytes, allocation);
                Ok(())
            }
            Command::Sanitize { action, immediate, length } => {
                self.sanitize(action, immediate, length).await
            }
            Command::PersistentReserveOut { .. } => self.persistent_reserve_out(command).await,
            Command::ExtendedCopy { long_list, length } => {
                self.extended_copy(long_list, length).await
            }
            Command::PopulateToken { list, length } => self.populate_token(list, length).await,
            Command::WriteUsingToken { list, length } => self.write_using_token(list, length).await,
            Command::ModeSelect { ten, page_format, save, length } => {
                self.mode_select(ten, page_format, save, length).await
            }
            Command::StartStopUnit { start, load_eject, power_condition } => {
                self.start_stop(start, load_eject, power_condition).await
            }
            Command::ReportLuns { select, allocation } => {
                report_luns(self.target, self.nexus, select, allocation, data_in)
            }
            other => match self.change(other) {
                Some(done) => done,
                None => {
                    let (bytes, allocation) = self.report(other)?;
                    reply(data_in, &bytes, allocation);
                    Ok(())
                }
            },
        }
    }

    /// Commands without data that change something at once; `None` for others.
    fn change(&self, command: Command) -> Option<Done> {
        let (unit, nexus) = (self.unit, self.nexus);
        Some(match command {
            // The default self-test: there is nothing that could be broken and answer.
            Command::TestUnitReady | Command::SendDiagnostic => Ok(()),
            Command::Reserve => unit.reservations.reserve(nexus.id, &Who::of(nexus)),
            Command::Release => {
                unit.reservations.release(nexus.id);
                Ok(())
            }
            Command::PreventAllow { prevent } => {
                let access = if prevent { Access::Write } else { Access::Always };
                unit.reservations.check(nexus, access).map(|()| unit.prevent(nexus.id, prevent))
            }
            Command::SetTargetPortGroups { length } => {
                self.target.ports.request(self.list(length)).map(|different| {
                    for unit in self.target.all().iter().filter(|_| different) {
                        self.target.tell_all(unit, Some(nexus.id), asc::ACCESS_CHANGED);
                    }
                })
            }
            _ => return None,
        })
    }

    /// What a command tells, and the allocation length.
    fn report(&self, command: Command) -> Result<(Vec<u8>, u32), Refusal> {
        let (unit, ports, nexus) = (self.unit, &self.target.ports, self.nexus);
        let features = unit.features(ports.explicit());
        Ok(match command {
            Command::Inquiry { page: None, allocation } => {
                (inquiry::standard(unit, ports), allocation)
            }
            Command::Inquiry { page: Some(page), allocation } => {
                (inquiry::page(unit, ports, nexus.port, page)?, allocation)
            }
            Command::RequestSense { descriptor, allocation } => {
                let attention = unit.attentions.take(nexus.id);
                let sense = attention
                    .map(|code| Sense::new(SenseKey::UnitAttention, code))
                    .or_else(|| unit.sanitize.sense())
                    .unwrap_or(Sense::new(SenseKey::NoSense, asc::NONE));
                (request_sense(sense, descriptor), allocation)
            }
            Command::ModeSense(request) => {
                (unit.mode.sense(&request, unit.shape(), unit.room())?, request.allocation)
            }
            Command::LogSense { control, page, subpage, pointer, allocation } => {
                (log_sense(unit.room(), (control, page, subpage), pointer)?, allocation)
            }
            Command::ReadCapacity10 => (reports::capacity_10(unit), u32::MAX),
            Command::ReadCapacity16 { allocation } => (reports::capacity_16(unit), allocation),
            Command::ReadDefectData { ten, format, allocation } => {
                (reports::defects(ten, format), allocation)
            }
            Command::ReportOpcodes { timeouts, options, code, action, allocation } => {
                (reports::opcodes(features, timeouts, options, code, action)?, allocation)
            }
            Command::ReportTaskManagement { extended, allocation } => {
                (reports::task_management(extended), allocation)
            }
            Command::ReportTargetPortGroups { extended, allocation } => {
                (ports.report(extended), allocation)
            }
            Command::PersistentReserveIn { action, allocation } => {
                (unit.reservations.report(action, self.target.store.is_some()), allocation)
            }
            Command::CopyStatus { long_list, list, allocation } => {
                (self.target.results.status(nexus.id, long_list, list)?, allocation)
            }
            Command::CopyParameters { allocation } => (operating_parameters(), allocation),
            Command::RodTokenInformation { list, allocation } => {
                (self.target.results.token_information(nexus.id, list)?, allocation)
            }
            _ => return Err(Refusal::illegal(asc::OPERATION_CODE)),
        })
    }

    async fn mode_select(&self, ten: bool, page_format: bool, save: bool, length: u32) -> Done {
        if save {
            return Err(Refusal::in_cdb(1, Some(0)));
        }
        let list = self.list(length);
        if list.len() < length as usize {
            return Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH));
        }
        if !page_format && !list.is_empty() {
            return Err(Refusal::in_cdb(1, Some(4)));
        }
        let different = self.unit.mode.select(list, ten)?;
        if different {
            self.target.tell_all(self.unit, Some(self.nexus.id), asc::MODE_CHANGED);
        }
        // Without a cache nothing is left in it.
        if different {
            let disk = self.unit.disk();
            self.unit.settle(&*disk, false).await?;
        }
        Ok(())
    }

    /// START STOP UNIT (SBC-3 5.31). A virtual disk has no motor: stopping it means that nothing
    /// is left in the cache.
    async fn start_stop(&self, start: bool, load_eject: bool, power_condition: u8) -> Done {
        let access = if start && power_condition == 0 { Access::Free } else { Access::Write };
        self.unit.reservations.check(self.nexus, access)?;
        if power_condition != 0 {
            return Ok(());
        }
        if load_eject && !self.unit.options.removable {
            return Err(Refusal::in_cdb(4, Some(1)));
        }
        if !start {
            self.unit.flush(&*self.unit.disk()).await?;
        }
        if load_eject && self.unit.load(start)? {
            self.target.tell_all(self.unit, Some(self.nexus.id), asc::MEDIUM_CHANGED);
        }
        Ok(())
    }

    async fn persistent_reserve_out(&self, command: Command) -> Done {
        let Command::PersistentReserveOut { action, scope, kind, length } = command else {
            return Err(Refusal::illegal(asc::OPERATION_CODE));
        };
        self.unit.reservations.unless_legacy(self.nexus.id)?;
        let list = self.list(length);
        if list.len() < length as usize {
            return Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH));
        }
        let who = Who::of(self.nexus);
        let present: Vec<_> =
            self.target.present().into_iter().map(|nexus| nexus.initiator).collect();
        let ports = self.target.ports.all();
        let request = parse_out(&Out {
            action,
            scope,
            kind,
            list,
            who: &who,
            ports: &ports,
            present: &present,
        })?;
        let store = self.target.store.as_deref();
        let unit = self.unit;
        let effects =
            unit.reservations.change(&who, &request, unit.options.identity, store).await?;
        self.target.tell(unit, &effects.tell);
        if effects.fence && !unit.sanitize.running() {
            // What those who were preempted had under way is over; what they have on its way
            // looks again before it lands.
            drop(unit.ranges.alone(0, u64::MAX).await);
        }
        Ok(())
    }

    async fn sanitize(&self, action: SanitizeAction, immediate: bool, length: u32) -> Done {
        self.unit.writable()?;
        let pattern = match action {
            SanitizeAction::Overwrite => self.overwrite_pattern(length)?,
            _ if length != 0 => return Err(Refusal::in_cdb(7, Some(7))),
            SanitizeAction::BlockErase => Pattern::Erase,
            SanitizeAction::ExitFailureMode => {
                let store = self.target.store.as_deref();
                return self.unit.sanitize.exit_failure(self.unit.options.identity, store).await;
            }
        };
        let told = start_sanitize(self.unit, self.target.store.clone(), pattern).await?;
        self.target.tokens.all_changed(self.unit);
        if immediate { Ok(()) } else { told.end().await }
    }

    /// The parameter list of an overwrite (SBC-3 5.30.2.2).
    fn overwrite_pattern(&self, length: u32) -> Result<Pattern, Refusal> {
        let list = self.list(length);
        if length < 5 || length > self.unit.block() + 4 {
            return Err(Refusal::in_cdb(7, Some(7)));
        }
        if list.len() < length as usize {
            return Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH));
        }
        let (first, times) = (list[0], list[0] & 0x1f);
        if times == 0 || first & 0x60 != 0 {
            return Err(Refusal::in_list(0));
        }
        let pattern = usize::from(u16::from_be_bytes([list[2], list[3]]));
        if pattern == 0 || pattern + 4 != list.len() {
            return Err(Refusal::in_list(2));
        }
        let bytes = list[4..].to_vec();
        Ok(Pattern::Overwrite { bytes, times, invert: first & 0x80 != 0 })
    }
}
