//! A board for Grafana.

use serde_json::{Value, json};

/// Lines of a chart: an expression, and what a line is called.
type Lines = &'static [(&'static str, &'static str)];

struct Chart {
    title: &'static str,
    /// As Grafana names it.
    unit: &'static str,
    lines: Lines,
}

const fn chart(title: &'static str, unit: &'static str, lines: Lines) -> Chart {
    Chart { title, unit, lines }
}

const CHARTS: &[Chart] = &[
    chart(
        "Operations by share",
        "ops",
        &[(
            "sum by (share, kind) (rate(bulkhead_smbd_share_operations_total{instance=~\"$instance\"}[$__rate_interval]))",
            "{{share}} {{kind}}",
        )],
    ),
    chart(
        "Bytes by share",
        "Bps",
        &[(
            "sum by (share, kind) (rate(bulkhead_smbd_share_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
            "{{share}} {{kind}}",
        )],
    ),
    chart(
        "Time of reads and writes by share, 99 of 100",
        "s",
        &[(
            "histogram_quantile(0.99, sum by (share, kind, le) \
             (rate(bulkhead_smbd_share_seconds_bucket{instance=~\"$instance\",kind!=\"other\"}[$__rate_interval])))",
            "{{share}} {{kind}}",
        )],
    ),
    chart(
        "Time of requests by share, along their way",
        "s",
        &[(
            "sum by (share, phase) (rate(bulkhead_smbd_share_path_seconds_sum{instance=~\"$instance\"}[$__rate_interval]))",
            "{{share}} {{phase}}",
        )],
    ),
    chart(
        "Time of all requests",
        "s",
        &[
            (
                "histogram_quantile(0.5, sum by (kind, le) \
                 (rate(bulkhead_smbd_request_seconds_bucket{instance=~\"$instance\"}[$__rate_interval])))",
                "{{kind}}, half",
            ),
            (
                "histogram_quantile(0.99, sum by (kind, le) \
                 (rate(bulkhead_smbd_request_seconds_bucket{instance=~\"$instance\"}[$__rate_interval])))",
                "{{kind}}, 99 of 100",
            ),
        ],
    ),
    chart(
        "Network",
        "Bps",
        &[
            (
                "sum(rate(bulkhead_smbd_received_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
                "from clients",
            ),
            (
                "sum(rate(bulkhead_smbd_sent_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
                "to clients",
            ),
        ],
    ),
    chart(
        "Answers",
        "ops",
        &[(
            "sum by (command, class) (rate(bulkhead_smbd_requests_total{instance=~\"$instance\"}[$__rate_interval]))",
            "{{command}} {{class}}",
        )],
    ),
    chart(
        "Sessions and channels",
        "short",
        &[
            ("sum(bulkhead_smbd_sessions{instance=~\"$instance\"})", "sessions"),
            ("sum(bulkhead_smbd_connections{instance=~\"$instance\"})", "connections"),
            (
                "sum by (transport) (bulkhead_smbd_channels{instance=~\"$instance\"})",
                "channels {{transport}}",
            ),
            ("sum(bulkhead_witness_registrations{instance=~\"$instance\"})", "witness"),
        ],
    ),
    chart(
        "Opens",
        "short",
        &[
            ("sum(bulkhead_smbd_opens{instance=~\"$instance\"})", "opens"),
            ("sum(bulkhead_smbd_open_files{instance=~\"$instance\"})", "files"),
            ("sum(bulkhead_smbd_persistent_opens{instance=~\"$instance\"})", "persistent"),
        ],
    ),
    chart(
        "What clients wait for",
        "ops",
        &[
            (
                "sum(rate(bulkhead_smbd_waits_total{instance=~\"$instance\"}[$__rate_interval]))",
                "requests that wait",
            ),
            (
                "sum by (kind) (rate(bulkhead_smbd_breaks_total{instance=~\"$instance\"}[$__rate_interval]))",
                "{{kind}} breaks",
            ),
            (
                "sum(rate(bulkhead_smbd_state_commits_total{instance=~\"$instance\"}[$__rate_interval]))",
                "commits of the state store",
            ),
        ],
    ),
    chart(
        "Credits",
        "short",
        &[("sum(bulkhead_smbd_credits{instance=~\"$instance\"})", "held by clients")],
    ),
    chart(
        "Commands by LUN",
        "ops",
        &[(
            "sum by (target, lun, kind) (rate(bulkhead_lun_commands_total{instance=~\"$instance\"}[$__rate_interval]))",
            "{{target}} {{lun}} {{kind}}",
        )],
    ),
    chart(
        "Bytes by LUN",
        "Bps",
        &[(
            "sum by (target, lun, kind) (rate(bulkhead_lun_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
            "{{target}} {{lun}} {{kind}}",
        )],
    ),
    chart(
        "LUNs: failed, and delayed by a limit",
        "ops",
        &[
            (
                "sum by (target, lun) (rate(bulkhead_lun_failed_total{instance=~\"$instance\"}[$__rate_interval]))",
                "{{target}} {{lun}} failed",
            ),
            (
                "sum by (target, lun) (rate(bulkhead_lun_delayed_total{instance=~\"$instance\"}[$__rate_interval]))",
                "{{target}} {{lun}} delayed",
            ),
        ],
    ),
    chart(
        "Who serves which role",
        "short",
        &[("max by (role, node) (bulkhead_cluster_role)", "{{role}} on {{node}}")],
    ),
    chart(
        "Control interface",
        "short",
        &[
            ("sum(bulkhead_api_connections{instance=~\"$instance\"})", "connections"),
            (
                "sum by (class) (rate(bulkhead_api_requests_total{instance=~\"$instance\"}[$__rate_interval]))",
                "calls {{class}} in a second",
            ),
        ],
    ),
    chart(
        "Refused for want of protection",
        "ops",
        &[
            (
                "sum(rate(bulkhead_smbd_signature_refusals_total{instance=~\"$instance\"}[$__rate_interval]))",
                "wrong signature",
            ),
            (
                "sum(rate(bulkhead_smbd_protection_refusals_total{instance=~\"$instance\"}[$__rate_interval]))",
                "neither signed nor encrypted",
            ),
        ],
    ),
    chart(
        "VMs by state",
        "short",
        &[("sum by (state) (bulkhead_host_vms{instance=~\"$instance\"})", "{{state}}")],
    ),
    chart(
        "Memory of VMs",
        "bytes",
        &[
            ("bulkhead_vm_resident_bytes{instance=~\"$instance\"}", "{{vm}} of the host's"),
            ("bulkhead_vm_memory_bytes{instance=~\"$instance\"}", "{{vm}} of its own"),
        ],
    ),
    chart(
        "Operations of guests by disk",
        "ops",
        &[
            (
                "sum by (vm, disk, kind) (rate(bulkhead_vm_disk_operations_total{instance=~\"$instance\"}[$__rate_interval]))",
                "{{vm}}/{{disk}} {{kind}}",
            ),
            (
                "sum by (vm, disk) (rate(bulkhead_vm_disk_delayed_total{instance=~\"$instance\"}[$__rate_interval]))",
                "{{vm}}/{{disk}} waited for a limit",
            ),
        ],
    ),
    chart(
        "Bytes of guests by disk",
        "Bps",
        &[(
            "sum by (vm, disk, kind) (rate(bulkhead_vm_disk_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
            "{{vm}}/{{disk}} {{kind}}",
        )],
    ),
    chart(
        "Time of guests' requests by disk, 99 of 100",
        "s",
        &[(
            "histogram_quantile(0.99, sum by (vm, disk, part, le) \
             (rate(bulkhead_vm_disk_seconds_bucket{instance=~\"$instance\"}[$__rate_interval])))",
            "{{vm}}/{{disk}} {{part}}",
        )],
    ),
    chart(
        "Pauses of guests",
        "short",
        &[
            (
                "increase(bulkhead_vm_pauses_total{instance=~\"$instance\"}[$__rate_interval])",
                "{{vm}}, by the host",
            ),
            (
                "increase(bulkhead_vm_disk_pauses_total{instance=~\"$instance\"}[$__rate_interval])",
                "{{vm}}/{{disk}}, by its storage",
            ),
        ],
    ),
    chart(
        "Last moves: how long the guest stood still",
        "s",
        &[("bulkhead_vm_move_downtime_seconds{instance=~\"$instance\"}", "{{vm}} {{direction}}")],
    ),
];

/// Where the choice of servers comes from.
const INSTANCES: &str = "label_values(bulkhead_smbd_uptime_seconds, instance)";

/// The expressions of all charts.
pub(super) fn expressions() -> impl Iterator<Item = &'static str> {
    let lines = CHARTS.iter().flat_map(|chart| chart.lines);
    lines.map(|(expression, _)| *expression).chain([INSTANCES])
}

fn panel(index: usize, chart: &Chart) -> Value {
    let source = json!({ "type": "prometheus", "uid": "${source}" });
    let targets = chart.lines.iter().enumerate().map(|(line, (expression, legend))| {
        let name = char::from(b'A' + line as u8).to_string();
        json!({ "refId": name, "datasource": source, "expr": expression, "legendFormat": legend })
    });
    json!({
        "id": index + 1,
        "type": "timeseries",
        "title": chart.title,
        "datasource": source,
        "gridPos": { "x": index % 2 * 12, "y": index / 2 * 8, "w": 12, "h": 8 },
        "fieldConfig": { "defaults": { "unit": chart.unit, "min": 0 }, "overrides": [] },
        "options": { "legend": { "displayMode": "table", "placement": "right", "calcs": ["lastNotNull"] } },
        "targets": targets.collect::<Vec<_>>(),
    })
}

/// The board, for Grafana's import.
pub(super) fn text() -> String {
    let panels = CHARTS.iter().enumerate().map(|(index, chart)| panel(index, chart));
    let board = json!({
        "uid": "bulkhead-smbd",
        "title": "Bulkhead",
        "tags": ["bulkhead"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "30s",
        "time": { "from": "now-6h", "to": "now" },
        "templating": { "list": [
            { "name": "source", "label": "Data source", "type": "datasource", "query": "prometheus" },
            {
                "name": "instance", "label": "Server", "type": "query", "query": INSTANCES, "refresh": 2,
                "datasource": { "type": "prometheus", "uid": "${source}" },
                "multi": true, "includeAll": true, "current": { "text": "All", "value": "$__all" },
            },
        ] },
        "panels": panels.collect::<Vec<_>>(),
    });
    format!("{board:#}\n")
}
