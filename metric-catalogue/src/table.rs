//! The table.

use crate::{Kind, Metric, Unit};

/// Makes a constant of each metric, and the list of all.
macro_rules! catalogue {
    ($($constant:ident: $kind:ident, $unit:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help, ".")]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All metrics, in the order in which pages and documents show them.
        pub const CATALOGUE: &[&Metric] = &[$(&$constant),*];
    };
}

catalogue! {
    BUILD: Info, Things, "bulkhead_smbd_build", ["version"],
        "the version that serves";
    UPTIME: Gauge, Seconds, "bulkhead_smbd_uptime_seconds", [],
        "time since the start";
    CONNECTIONS: Gauge, Things, "bulkhead_smbd_connections", [],
        "connections of SMB clients, those that have not logged in as well";
    CHANNELS: Gauge, Things, "bulkhead_smbd_channels", ["transport"],
        "connections of sessions, by what carries them (tcp, rdma)";
    SESSIONS: Gauge, Things, "bulkhead_smbd_sessions", [],
        "sessions of SMB clients";
    OPENS: Gauge, Things, "bulkhead_smbd_opens", [],
        "opens of files and folders";
    PERSISTENT_OPENS: Gauge, Things, "bulkhead_smbd_persistent_opens", [],
        "opens that outlive the server (persistent handles)";
    OPEN_FILES: Gauge, Things, "bulkhead_smbd_open_files", [],
        "files and folders that are open";
    OFFLOAD_TOKENS: Gauge, Things, "bulkhead_smbd_offload_tokens", [],
        "tokens of offloaded transfers that are good";
    CREDITS: Gauge, Things, "bulkhead_smbd_credits", [],
        "credits that clients hold: requests that they may send without waiting for an answer";
    REQUESTS: Counter, Things, "bulkhead_smbd_requests", ["command", "class"],
        "answers, by command and severity of the status (success, information, warning, error)";
    REQUEST_TIME: Histogram, Seconds, "bulkhead_smbd_request_seconds", ["kind"],
        "time from taking up a request to its answer, of one request in 16 (read, write, other)";
    WAITS: Counter, Things, "bulkhead_smbd_waits", [],
        "requests that could not be answered at once: cache misses, durable writes, locks, breaks";
    RECEIVED: Counter, Bytes, "bulkhead_smbd_received_bytes", [],
        "bytes from SMB clients";
    SENT: Counter, Bytes, "bulkhead_smbd_sent_bytes", [],
        "bytes to SMB clients";
    SHARE_OPERATIONS: Counter, Things, "bulkhead_smbd_share_operations", ["share", "kind"],
        "answers about a share, refusals as well (read, write, other)";
    SHARE_MOVED: Counter, Bytes, "bulkhead_smbd_share_bytes", ["share", "kind"],
        "bytes that were read from the files of a share and written to them (read, write)";
    SHARE_TIME: Histogram, Seconds, "bulkhead_smbd_share_seconds", ["share", "kind"],
        "time from taking up a request about a share to its answer, of one request in 16";
    SHARE_PATH: Histogram, Seconds, "bulkhead_smbd_share_path_seconds", ["share", "phase"],
        "time that requests about a share spent in each part of their way (queue, break, lock, crypto, read, write, sync, send); what is quick is sampled and counts for all";
    BREAKS: Counter, Things, "bulkhead_smbd_breaks", ["kind"],
        "times that somebody was told to give up what they cache (lease, oplock)";
    STATE_COMMITS: Counter, Things, "bulkhead_smbd_state_commits", [],
        "times that the state store was made durable: at most once for each open and close of a persistent handle";
    LONGEST_TURN: Gauge, Seconds, "bulkhead_smbd_longest_turn_seconds", [],
        "longest time that a connection kept a thread without a break";
    SIGNATURE_REFUSALS: Counter, Things, "bulkhead_smbd_signature_refusals", [],
        "requests with a wrong signature";
    PROTECTION_REFUSALS: Counter, Things, "bulkhead_smbd_protection_refusals", [],
        "requests without the signature or encryption that they must have";
    TARGET_SESSIONS: Gauge, Things, "bulkhead_target_sessions", ["target"],
        "sessions of iSCSI initiators with a target";
    LUN_COMMANDS: Counter, Things, "bulkhead_lun_commands", ["target", "lun", "kind"],
        "commands that a LUN carried out (read, write, other)";
    LUN_MOVED: Counter, Bytes, "bulkhead_lun_bytes", ["target", "lun", "kind"],
        "bytes to initiators (read) and from them (write)";
    LUN_FAILED: Counter, Things, "bulkhead_lun_failed", ["target", "lun"],
        "commands that did not end with GOOD";
    LUN_DELAYED: Counter, Things, "bulkhead_lun_delayed", ["target", "lun"],
        "commands that waited for a limit of the LUN";
    WITNESS_REGISTRATIONS: Gauge, Things, "bulkhead_witness_registrations", [],
        "clients that are registered with the witness service";
    CLUSTER_ROLE: Gauge, Things, "bulkhead_cluster_role", ["role", "node"],
        "1 for the role that this server serves, with the node that it is on";
    API_CONNECTIONS: Gauge, Things, "bulkhead_api_connections", [],
        "connections to the control interface from other machines";
    API_REQUESTS: Counter, Things, "bulkhead_api_requests", ["class"],
        "calls of the control interface that were carried out (done), refused, or failed";
    API_FAILED_LOGINS: Counter, Things, "bulkhead_api_failed_logins", [],
        "wrong passwords and wrong tokens that were shown to the control interface";
    HOST_BUILD: Info, Things, "bulkhead_host_build", ["version"],
        "the version of the VM host";
    VMS: Gauge, Things, "bulkhead_host_vms", ["state"],
        "VMs of the host by their state, as `bulkhead vm list` names it";
    VM_RESIDENT: Gauge, Bytes, "bulkhead_vm_resident_bytes", ["vm"],
        "what the memory of a VM's guest takes of the host's";
    VM_MEMORY: Gauge, Bytes, "bulkhead_vm_memory_bytes", ["vm"],
        "what a guest with a balloon goes along with";
    VM_PAUSES: Counter, Things, "bulkhead_vm_pauses", ["vm"],
        "times that the host paused a guest since its machine is here";
    VM_WATCHDOG: Counter, Things, "bulkhead_vm_watchdog_expired", ["vm"],
        "times that a VM's watchdog has expired since its machine is here";
    VM_MOVE_DOWNTIME: Gauge, Seconds, "bulkhead_vm_move_downtime_seconds", ["vm", "direction"],
        "how long the guest stood still in the last move (out, in)";
    VM_DISK_OPERATIONS: Counter, Things, "bulkhead_vm_disk_operations", ["vm", "disk", "kind"],
        "requests of a guest that its disk carried out (read, write, sync)";
    VM_DISK_MOVED: Counter, Bytes, "bulkhead_vm_disk_bytes", ["vm", "disk", "kind"],
        "bytes that a guest read from its disk and wrote to it (read, write)";
    VM_DISK_FAILED: Counter, Things, "bulkhead_vm_disk_failed", ["vm", "disk"],
        "requests of a guest that ended in an error";
    VM_DISK_DELAYED: Counter, Things, "bulkhead_vm_disk_delayed", ["vm", "disk"],
        "times that requests of a guest waited for a limit of its disk";
    VM_DISK_PAUSES: Counter, Things, "bulkhead_vm_disk_pauses", ["vm", "disk"],
        "times that requests were under way and none was completed for 20 ms or longer";
    VM_DISK_TIME: Histogram, Seconds, "bulkhead_vm_disk_seconds", ["vm", "disk", "part"],
        "time of a guest's requests: whole, and of that in the storage (read, write, sync)";
}
