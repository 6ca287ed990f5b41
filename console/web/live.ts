// What the charts show: the page of metrics every two seconds, as rates, for the last five minutes.
import { signal } from "@preact/signals";
import { page } from "./api";
import { ALERTED } from "./health";
import { growth, type Metrics, only, parse, quantile } from "./metrics";

/** Seconds between two looks. */
export const EVERY = 2;
/** Looks that are kept: those of five minutes. */
const KEPT = 150;

/** What happened between two looks. */
export interface Point {
  /** When, in seconds since 1970. */
  time: number;
  /** Operations a second: read, written, other. Null where nobody looked. */
  operations: [number | null, number | null, number | null];
  /** Bytes a second: read, written. */
  bytes: [number | null, number | null];
  /** Seconds: half of the requests were faster, and 99 of 100. Null without requests. */
  latency: [number | null, number | null];
}

const BREAK: Omit<Point, "time"> = { operations: [null, null, null], bytes: [null, null], latency: [null, null] };

export const points = signal<Point[]>([]);
/** A page as alerts need it, with its time in seconds on a clock that nobody sets. */
export interface Seen {
  time: number;
  metrics: Metrics;
}

/** Seconds between two pages that are kept for alerts, and how long they are. */
const STEP = 30;
export const WINDOW = 15 * 60;

/** Pages of the last quarter of an hour, the oldest first, and the last. */
export const pages = signal<Seen[]>([]);
export const last = signal<Metrics | null>(null);
/** Why there is no new page. */
export const trouble = signal<string | null>(null);

let taken = 0;

/** Pages with one more: the last is always there, the others stand some time apart. */
export function slid(old: Seen[], page: Seen): Seen[] {
  const kept = old.filter((it) => it.time >= page.time - WINDOW - STEP);
  const before = kept.at(-2);
  // The last one stays only if it is far enough from the one before it.
  if (kept.length > 1 && before && (kept.at(-1)?.time ?? 0) - before.time < STEP) kept.pop();
  return [...kept, page];
}

/** What happened between two pages of which the second came so many seconds later. */
export function between(before: Metrics, after: Metrics, passed: number, time: number): Point {
  const rate = (name: string, kind: string) =>
    (growth(before, after, `bulkhead_smbd_share_${name}_total`, { kind }) +
      growth(before, after, `bulkhead_lun_${name === "operations" ? "commands" : name}_total`, { kind })) /
    passed;
  const below = (part: number) => quantile(before, after, "bulkhead_smbd_request_seconds", part);
  return {
    time,
    operations: [rate("operations", "read"), rate("operations", "write"), rate("operations", "other")],
    bytes: [rate("bytes", "read"), rate("bytes", "write")],
    latency: [below(0.5), below(0.99)],
  };
}

/** Reads the page once. */
export async function look(): Promise<void> {
  try {
    const now = parse(await page("metrics"));
    const time = performance.now() / 1000;
    const before = last.value;
    const passed = time - taken;
    if (before) {
      // After a long break a rate would say little about any moment, and a line would be made up.
      const point = passed < 10 * EVERY ? between(before, now, Math.max(passed, 0.1), Date.now() / 1000) : null;
      const kept = points.value.filter((it) => it.time > Date.now() / 1000 - KEPT * EVERY);
      points.value = [...kept, point ?? { ...BREAK, time: Date.now() / 1000 }];
    }
    pages.value = slid(pages.value, { time, metrics: only(now, ALERTED) });
    [last.value, taken, trouble.value] = [now, time, null];
  } catch (error) {
    trouble.value = (error as Error).message;
  }
}

/** Forgets all, as for another user. */
export function forget(): void {
  [points.value, pages.value, last.value, trouble.value] = [[], [], null, null];
}
