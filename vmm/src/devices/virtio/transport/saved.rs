//! What a virtio function takes along when its machine moves or is saved.

use serde::{Deserialize, Serialize};

use super::VirtioPci;
use crate::{
    devices::{
        pci::{
            config::SavedConfig,
            msix::{NO_VECTOR, SavedMsix},
        },
        virtio::SavedDevice,
    },
    platform::error::Error,
};

/// Saved form of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) vector: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

impl SavedQueue {
    /// A queue as the driver finds it after a reset.
    pub(super) fn blank(size: u16) -> Self {
        Self {
            size,
            ready: false,
            vector: NO_VECTOR,
            desc: 0,
            avail: 0,
            used: 0,
            next_avail: 0,
            next_used: 0,
        }
    }
}

/// Saved form of a virtio function.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedVirtio {
    kind: u16,
    config: SavedConfig,
    msix: SavedMsix,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    queue_select: u16,
    status: u8,
    isr: u8,
    queues: Vec<SavedQueue>,
    /// None of a device without, and from a host of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<SavedDevice>,
}

impl VirtioPci {
    /// Saves a paused function.
    pub fn save(&self) -> SavedVirtio {
        SavedVirtio {
            kind: self.backend.kind(),
            config: self.config.save(),
            msix: self.msix.save(),
            driver_features: self.driver_features,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            config_vector: self.config_vector,
            queue_select: self.queue_select,
            status: self.status,
            isr: self.isr,
            queues: self.slots.iter().map(|slot| slot.saved).collect(),
            device: self.backend.save(),
        }
    }

    /// Restores a function that has not run; the router must be committed afterwards. A function of an
    /// earlier version may have had fewer queues, and then its driver knows of those alone.
    pub fn restore(&mut self, saved: &SavedVirtio) -> Result<(), Error> {
        let (kind, queues) = (self.backend.kind(), self.slots.len());
        if saved.kind != kind || saved.queues.len() > queues {
            let (their_kind, theirs) = (saved.kind, saved.queues.len());
            return Err(Error::Config(format!(
                "saved virtio device of type {their_kind} with {theirs} queues, here type {kind} \
                 with {queues}"
            )));
        }
        if saved.driver_features & !self.features() != 0 {
            let unknown = saved.driver_features & !self.features();
            return Err(Error::Config(format!("virtio features {unknown:#x} are unknown here")));
        }
        if let Some(device) = &saved.device {
            self.backend.restore(device)?;
        }
        self.config.restore(&saved.config);
        self.follow_bar();
        self.msix.restore(&saved.msix)?;
        self.driver_features = saved.driver_features;
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.config_vector = saved.config_vector;
        self.queue_select = saved.queue_select;
        self.status = saved.status;
        self.isr = saved.isr;
        for (slot, saved) in self.slots.iter_mut().zip(&saved.queues) {
            slot.saved = *saved;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a host of an earlier version has saved of a console with two queues.
    #[test]
    fn a_state_without_what_came_later_is_read() {
        let queue = r#"{"size":64,"ready":true,"vector":1,"desc":0,"avail":0,"used":0,"next_avail":0,"next_used":0}"#;
        let entry = r#"{"address":0,"data":0,"control":1}"#;
        let config = serde_json::to_string(
            &crate::devices::pci::config::ConfigSpace::new(0x1af4, 0x1043, 0).save(),
        )
        .unwrap();
        let text = format!(
            r#"{{"kind":3,"config":{config},"msix":{{"enabled":true,"function_masked":false,
                "entries":[{entry},{entry},{entry}],"pending":0}},"driver_features":4294967296,
                "device_feature_select":0,"driver_feature_select":0,"config_vector":0,"queue_select":0,
                "status":15,"isr":0,"queues":[{queue},{queue}]}}"#
        );
        let saved: SavedVirtio = serde_json::from_str(&text).unwrap();
        assert!(saved.device.is_none() && saved.queues.len() == 2);
        assert!(!serde_json::to_string(&saved).unwrap().contains("device\":null"));
    }
}
