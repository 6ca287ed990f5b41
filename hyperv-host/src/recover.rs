//! What a host does after its start: VMs that ran run again, hand-overs that were cut short are
//! resolved.

use std::sync::Arc;

use host_api::{AfterHostFailure, VmState};

use crate::{
    handover::Standing,
    host::{Host, HostError, machine::Managed, records::Record, spawn},
    migrate::leave::resolve,
    worker::{launch, machine::Machine, remote::Remote},
};

/// Takes up what the records say after a start of the daemon: VMs that ran are started
/// afresh (if they want it), VMs that were being handed over are asked for.
///
/// # Errors
/// What the state folder says.
pub fn recover(host: &Arc<Host>) -> Result<(), HostError> {
    host.store.recover_arrivals().map_err(HostError::Store)?;
    let mut workers = launch::find(&host.config.host.state_dir).map_err(HostError::Store)?;
    for (definition, record) in host.store.load().map_err(HostError::Store)? {
        let managed = Managed::new(definition, VmState::Off);
        host.take_up(&managed);
        let host = host.clone();
        let is_its = |worker: &Remote| {
            let built = worker.definition();
            built.name == *managed.name() && built.id == managed.definition().id
        };
        let worker = workers.iter().position(is_its).map(|at| workers.swap_remove(at));
        if let Some(worker) = worker {
            if record == Record::Running {
                let process = worker.process();
                tracing::info!(vm = %managed.name(), %process, "runs on in its worker");
                host.adopt(&managed, Machine::Apart(Arc::new(worker)));
                spawn(format!("{}/thaw", managed.name()), move || {
                    if let Some(agent) = managed.agent() {
                        agent.thaw_what_was_left();
                    }
                });
                continue;
            }
            workers.push(worker);
        }
        match record {
            Record::Off => {}
            Record::Running | Record::MovingOut { .. } => {
                let name = managed.name().clone();
                host.store.record(&name, &Record::Running).map_err(HostError::Store)?;
                if managed.definition().after_host_failure == AfterHostFailure::Restart {
                    tracing::info!(vm = %name, "ran when this host stopped, starting it");
                    managed.update(|inner| inner.starting = true);
                    spawn(format!("{name}/start"), move || host.start_in_time(&managed));
                } else {
                    host.store.record(&name, &Record::Off).map_err(HostError::Store)?;
                    managed.update(|inner| {
                        inner.reason = Some("its host failed while it ran".into());
                    });
                }
            }
            Record::HandedOver { id, peer } => {
                // The target is answered from now on.
                host.outgoing.set(&id, Some(Standing::Given));
                managed.update(|inner| inner.state = VmState::InDoubt);
                spawn(format!("{}/resolve", managed.name()), move || {
                    resolve(&host, &managed, &id, &peer);
                });
            }
        }
    }
    for worker in workers {
        tracing::warn!(vm = %worker.definition().name, "by the records it does not run here: its worker is ended");
        worker.kill();
    }
    Ok(())
}
