// How the server is, in sentences, and what needs a look: with the bounds and times of the rules for
// Prometheus (conf/prometheus), over the last quarter of an hour at most.
import { bytes, count, counted, duration, rate, seconds } from "./format";
import type { Point, Seen } from "./live";
import { growth, type Metrics, quantile, sum, type Where } from "./metrics";
import { shown } from "./name";
import type { Status } from "./types";

/** Seconds of which a rate is worth an alert. */
const SURE = 60;

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

/** The metrics that alerts are about. */
export const ALERTED = [
  "bulkhead_smbd_uptime_seconds",
  "bulkhead_smbd_signature_refusals_total",
  "bulkhead_smbd_protection_refusals_total",
  "bulkhead_api_failed_logins_total",
  "bulkhead_smbd_share_operations_total",
  "bulkhead_smbd_share_seconds_bucket",
  "bulkhead_lun_failed_total",
  "bulkhead_lun_delayed_total",
  "bulkhead_smbd_breaks_total",
] as const;

/** Two pages, and the seconds between them. */
interface Between {
  first: Metrics;
  passed: number;
}

/** The page that stands so many minutes before the last one, or the oldest that there is. */
function back(pages: Seen[], minutes: number): Between {
  const now = pages.at(-1) as Seen;
  const page = pages.find((it) => it.time >= now.time - minutes * 60) ?? now;
  return { first: page.metrics, passed: now.time - page.time };
}

/** How much counters grew from page to page: what began anew in between counts from there. */
function increase(pages: Seen[], minutes: number, name: string, where: Where = {}): number {
  const from = (pages.at(-1) as Seen).time - minutes * 60;
  const within = pages.filter((it) => it.time >= from);
  return within.slice(1).reduce((all, it, index) => all + growth((within[index] as Seen).metrics, it.metrics, name, where), 0);
}

/** What needs a look now, by the pages of the last quarter of an hour: bounds and times are those of the rules for Prometheus. */
export function alerts(pages: Seen[]): Alert[] {
  const found: Alert[] = [];
  const newest = pages.at(-1);
  if (!newest) return found;
  const last = newest.metrics;
  const tell = (severity: Alert["severity"], summary: string, remedy: string) => found.push({ severity, summary, remedy });
  const restarts = pages.slice(1).filter((it, index) => {
    const of = (metrics: Metrics) => sum(metrics, "bulkhead_smbd_uptime_seconds");
    return of(it.metrics) < of((pages[index] as Seen).metrics);
  }).length;
  if (restarts > 2) {
    tell("critical", `The server was started ${count(restarts)} times in a quarter of an hour.`, "Read its log: the supervisor says how each one ended.");
  } else if (restarts > 0) {
    const up = sum(last, "bulkhead_smbd_uptime_seconds");
    tell("warning", `The server was started anew ${duration(up)} ago.`, "Read its log if nobody meant it: the supervisor says how the last one ended.");
  }
  const forged = increase(pages, 10, "bulkhead_smbd_signature_refusals_total");
  if (forged > 10) {
    tell("critical", `${counted(forged, "request")} came with a wrong signature.`, "Somebody changes what is on the way, or a client is broken: the log names its address at level debug.");
  }
  const bare = increase(pages, 10, "bulkhead_smbd_protection_refusals_total");
  if (bare > 100) {
    tell("warning", `${counted(bare, "request")} came without the signature or encryption that they must have.`, "See signing and encryption in the configuration, and which clients cannot follow.");
  }
  const guesses = increase(pages, 10, "bulkhead_api_failed_logins_total");
  if (guesses > 20) {
    tell("warning", `${count(guesses)} wrong passwords or tokens were shown to this interface.`, "Keep api.listen to a management network; the log of level debug has the addresses.");
  }
  const slow = back(pages, 10);
  for (const [kind, bound] of [["read", 0.1], ["write", 0.5]] as const) {
    for (const share of values(last, "bulkhead_smbd_share_operations_total", "share")) {
      const time = quantile(slow.first, last, "bulkhead_smbd_share_seconds", 0.99, { share, kind });
      if (slow.passed >= SURE && time !== null && time > bound) {
        tell("warning", `One ${kind} in a hundred of share ${shown(share)} takes longer than ${seconds(time)}.`, "“Why is it slow?” says what it waits for.");
      }
    }
  }
  const limited = back(pages, 15);
  for (const target of values(last, "bulkhead_lun_failed_total", "target")) {
    for (const { labels } of (last.get("bulkhead_lun_failed_total") ?? []).filter((it) => it.labels.target === target)) {
      const where = { target, lun: labels.lun ?? "" };
      const failed = increase(pages, 5, "bulkhead_lun_failed_total", where);
      const delayed = increase(pages, 15, "bulkhead_lun_delayed_total", where) / Math.max(limited.passed, 1);
      const name = `LUN ${shown(where.lun)} of ${shown(target)}`;
      if (failed > 100) tell("warning", `${counted(failed, "command")} to ${name} failed.`, "Look at the log, and at the storage below its image.");
      if (limited.passed >= SURE && delayed > 10) tell("warning", `Commands to ${name} wait for its limit, ${rate(delayed)} a second.`, "Raise max_iops or max_bandwidth, or let its users have less.");
    }
  }
  const breaks = increase(pages, 10, "bulkhead_smbd_breaks_total") / Math.max(slow.passed, 1);
  if (slow.passed >= SURE && breaks > 50) {
    tell("warning", "Clients take what they cache from each other more than 50 times a second.", "See on the page of open files which files several clients use.");
  }
  return found;
}
