// How the server is, in sentences, and what needs a look: with the bounds of the rules for Prometheus
// (conf/prometheus), over the time that the console is open.
import { bytes, count, counted, duration, rate, seconds } from "./format";
import type { Point } from "./live";
import { growth, type Metrics, quantile, sum } from "./metrics";
import { shown } from "./name";
import type { Status } from "./types";

export interface Alert {
  severity: "critical" | "warning";
  summary: string;
  remedy: string;
}

/** How the server is, one sentence each. */
export function sentences(status: Status, metrics: Metrics | null, points: Point[]): string[] {
  const { name, version, uptime_s, shares, connections, sessions, opens, files } = status;
  const said = [
    `${shown(name)} serves ${counted(shares, "share")} and has run for ${duration(uptime_s)} (version ${version}).`,
    sessions === 0
      ? `Nobody is logged in; ${connections === 1 ? "1 client is" : `${count(connections)} clients are`} connected.`
      : `${counted(sessions, "session")} on ${counted(connections, "connection")} ${sessions === 1 ? "has" : "have"} ${counted(files, "file or folder", "files and folders")} open (${counted(opens, "open")}).`,
  ];
  said.push(...work(points));
  if (!metrics) return said;
  for (const { labels } of metrics.get("bulkhead_cluster_role") ?? []) {
    said.push(`It serves the role ${shown(labels.role ?? "")} of its cluster, on node ${shown(labels.node ?? "")}.`);
  }
  const initiators = sum(metrics, "bulkhead_target_sessions");
  if (initiators > 0) said.push(`${counted(initiators, "iSCSI initiator")} ${initiators === 1 ? "is" : "are"} logged in.`);
  const persistent = sum(metrics, "bulkhead_smbd_persistent_opens");
  if (persistent > 0) said.push(`${counted(persistent, "open")} would outlive a restart of the server.`);
  return said;
}

/** What was done in the last minute. */
function work(points: Point[]): string[] {
  const since = (points.at(-1)?.time ?? 0) - 60;
  const recent = points.filter((it) => it.time > since && it.operations[0] !== null);
  const mean = (of: (point: Point) => number) => recent.reduce((all, it) => all + of(it), 0) / recent.length;
  if (recent.length === 0) return [];
  const operations = mean((it) => it.operations.reduce<number>((all, one) => all + (one ?? 0), 0));
  if (operations < 0.05) return ["Nobody has asked for anything in the last minute."];
  const moved = mean((it) => (it.bytes[0] ?? 0) + (it.bytes[1] ?? 0));
  const slow = recent.map((it) => it.latency[1]).filter((it) => it !== null);
  const worst = slow.length > 0 ? `, 99 of 100 answers within ${seconds(Math.max(...slow))}` : "";
  return [`In the last minute it did ${rate(operations)} operations and moved ${bytes(moved)} a second${worst}.`];
}

/** Names of a label's values. */
function values(metrics: Metrics, name: string, label: string): string[] {
  return [...new Set((metrics.get(name) ?? []).map((it) => it.labels[label] ?? ""))];
}

/** What needs a look, by what happened between two pages. */
export function alerts(first: Metrics, last: Metrics, points: Point[]): Alert[] {
  const found: Alert[] = [];
  const tell = (severity: Alert["severity"], summary: string, remedy: string) => found.push({ severity, summary, remedy });
  const grown = (name: string) => growth(first, last, name);
  const up = "bulkhead_smbd_uptime_seconds";
  if (sum(last, up) < sum(first, up)) {
    tell("critical", "The server was started anew while you looked.", "Read its log: the supervisor says how the last one ended.");
  }
  const forged = grown("bulkhead_smbd_signature_refusals_total");
  if (forged > 0) {
    tell("critical", `${counted(forged, "request")} came with a wrong signature.`, "Somebody changes what is on the way, or a client is broken: the log names its address at level debug.");
  }
  const bare = grown("bulkhead_smbd_protection_refusals_total");
  if (bare > 0) {
    tell("warning", `${counted(bare, "request")} came without the signature or encryption that they must have.`, "See signing and encryption in the configuration, and which clients cannot follow.");
  }
  const guesses = grown("bulkhead_api_failed_logins_total");
  if (guesses > 20) {
    tell("warning", `${count(guesses)} wrong passwords or tokens were shown to this interface.`, "Keep api.listen to a management network; the log of level debug has the addresses.");
  }
  for (const [kind, bound] of [["read", 0.1], ["write", 0.5]] as const) {
    for (const share of values(last, "bulkhead_smbd_share_operations_total", "share")) {
      const slow = quantile(first, last, "bulkhead_smbd_share_seconds", 0.99, { share, kind });
      if (slow !== null && slow > bound) {
        tell("warning", `One ${kind} in a hundred of share ${shown(share)} takes longer than ${seconds(slow)}.`, "Look at the disks below the share, and at what else uses them.");
      }
    }
  }
  for (const target of values(last, "bulkhead_lun_failed_total", "target")) {
    const failed = growth(first, last, "bulkhead_lun_failed_total", { target });
    const delayed = growth(first, last, "bulkhead_lun_delayed_total", { target });
    if (failed > 100) tell("warning", `${counted(failed, "command")} to LUNs of ${shown(target)} failed.`, "Look at the log, and at the storage below the images.");
    if (delayed > 100) tell("warning", `${counted(delayed, "command")} to LUNs of ${shown(target)} waited for a limit.`, "Raise max_iops or max_bandwidth, or let its users have less.");
  }
  const passed = points.length > 1 ? (points.at(-1)?.time ?? 0) - (points[0]?.time ?? 0) : 0;
  if (passed > 60 && grown("bulkhead_smbd_breaks_total") / passed > 50) {
    tell("warning", "Clients take what they cache from each other more than 50 times a second.", "See on the page of open files which files several clients use.");
  }
  return found;
}
