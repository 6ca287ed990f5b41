//! VMs whose storage is away or is another's: they do not run, say why, and run again by themselves
//! when it is back.

use std::{sync::Arc, time::Duration};

use vmm::{
    Vm,
    devices::virtio::storage::{LossRule, Trouble},
    platform::lifecycle::EndReason,
};

use super::{Host, machine::Managed, watchdog};
use crate::config::StorageLoss;

/// How often a machine's storage is looked at, beside when something is told of it.
const LOOK: Duration = Duration::from_millis(500);

impl Host {
    /// What guests see of storage that is away.
    pub fn loss_rule(&self) -> LossRule {
        match self.config.storage.on_storage_loss {
            StorageLoss::Pause => LossRule::Pause,
            StorageLoss::Report => LossRule::Report,
        }
    }

    /// How long opening or closing a disk may take.
    pub fn disk_limit(&self) -> Duration {
        Duration::from_secs(self.config.storage.reconnect_s.into())
    }

    /// Waits for a machine's end; why it came. Meanwhile the machine is halted while its storage is
    /// away.
    pub(super) fn watch_over(&self, managed: &Arc<Managed>, vm: &Arc<Vm>) -> EndReason {
        let mut seen = 0;
        loop {
            if let Some(reason) = vm.control().wait_news(&mut seen, LOOK) {
                return reason;
            }
            self.look_after(managed, vm);
        }
    }

    fn look_after(&self, managed: &Arc<Managed>, vm: &Arc<Vm>) {
        let patience = Duration::from_secs(self.config.storage.pause_after_s.into());
        if vm.has_panicked() {
            self.tell_of_panic(managed, vm);
        }
        let trouble = vm.trouble(patience);
        let watchdog = watchdog::standing(vm);
        let halts = trouble.is_some() || watchdog.is_some_and(|standing| standing.paused);
        // One that was not parked in time is kicked again.
        vm.halt(halts);
        if let Some(standing) = watchdog {
            self.tell_of_watchdog(managed, vm, standing);
        }
        let (was, is_here) = managed.update(|inner| {
            let is_here = inner.vm.as_ref().is_some_and(|current| Arc::ptr_eq(current, vm));
            let was = if is_here { inner.trouble.clone() } else { None };
            if is_here {
                inner.trouble.clone_from(&trouble);
            }
            (was, is_here)
        });
        if !is_here {
            return;
        }
        let name = managed.name();
        match (&was, &trouble) {
            (Some(Trouble::Fenced(_)), _)
            | (None, None)
            | (Some(Trouble::Away(_)), Some(Trouble::Away(_))) => {}
            (_, Some(Trouble::Away(why))) => {
                tracing::error!(vm = %name, why, "its storage is away, the guest waits");
            }
            (Some(Trouble::Away(_)), None) => {
                tracing::info!(vm = %name, "its storage is back, the guest goes on");
                self.correct_clock(managed);
            }
            (_, Some(Trouble::Fenced(why))) => {
                tracing::error!(vm = %name, why, "its storage is another's, the guest is paused for good");
                self.give_up_fenced(managed, vm);
            }
        }
    }

    /// A guest whose kernel has panicked says nothing else any more.
    fn tell_of_panic(&self, managed: &Managed, vm: &Arc<Vm>) {
        let why = "the guest's kernel has panicked";
        let told = managed.update(|inner| {
            let here = inner.vm.as_ref().is_some_and(|current| Arc::ptr_eq(current, vm));
            let new = here && inner.reason.as_deref() != Some(why);
            if new {
                inner.reason = Some(why.to_owned());
            }
            new
        });
        if told {
            tracing::error!(vm = %managed.name(), why, "it is as it was left");
        }
    }

    /// What another run has taken is not taken back by a start of this host.
    fn give_up_fenced(&self, managed: &Managed, vm: &Arc<Vm>) {
        let _operation = managed.operate();
        if managed.vm().is_some_and(|current| Arc::ptr_eq(&current, vm)) {
            self.record_off(managed);
        }
    }
}
