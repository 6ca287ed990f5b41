//! VMs whose storage is away or is another's: they do not run, say why, and run again by themselves
//! when it is back.

use std::{sync::Arc, time::Duration};

use vmm::{
    devices::virtio::storage::{LossRule, Trouble},
    platform::lifecycle::EndReason,
};

use super::{Host, machine::Managed};
use crate::worker::{look, machine::Machine, protocol::News};

impl Host {
    /// What guests see of storage that is away.
    pub fn loss_rule(&self) -> LossRule {
        self.config.storage.loss_rule()
    }

    /// How long opening or closing a disk may take.
    pub fn disk_limit(&self) -> Duration {
        self.config.storage.disk_limit()
    }

    /// Waits for a machine's end; why it came. Meanwhile the machine is halted while its storage is
    /// away.
    pub(super) fn watch_over(&self, managed: &Arc<Managed>, vm: &Machine) -> EndReason {
        let patience = Duration::from_secs(self.config.storage.pause_after_s.into());
        let (mut seen, mut silent) = (0, false);
        loop {
            match vm.news(seen, patience) {
                Ok(News { end: Some(reason), .. }) => return reason,
                Ok(news) => {
                    if std::mem::take(&mut silent) {
                        tracing::info!(vm = %managed.name(), "its worker answers again");
                        managed.update(|inner| inner.reason = None);
                    }
                    seen = news.seen;
                    self.look_after(managed, vm, news);
                }
                Err(error) => {
                    let why = error.to_string();
                    if !std::mem::replace(&mut silent, true) {
                        tracing::error!(vm = %managed.name(), why, "its worker");
                        managed.update(|inner| inner.reason = Some(why));
                    }
                    // What fails at once is not asked at once again.
                    std::thread::sleep(look::EVERY);
                }
            }
        }
    }

    fn look_after(&self, managed: &Arc<Managed>, vm: &Machine, news: News) {
        let News { panicked, trouble, watchdog, .. } = news;
        if panicked {
            self.tell_of_panic(managed, vm);
        }
        if let Some(standing) = watchdog {
            self.tell_of_watchdog(managed, vm, standing);
        }
        let (was, is_here) = managed.update(|inner| {
            let is_here = inner.has(vm);
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
    fn tell_of_panic(&self, managed: &Managed, vm: &Machine) {
        let why = "the guest's kernel has panicked";
        let told = managed.update(|inner| {
            let here = inner.has(vm);
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
    fn give_up_fenced(&self, managed: &Managed, vm: &Machine) {
        let _operation = managed.operate();
        if managed.has(vm) {
            self.record_off(managed);
        }
    }
}
