// Numbers and times as people read them.
import type { U64 } from "./types";

const whole = new Intl.NumberFormat("en");
const rounded = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** With three digits that mean something, or more before the point. */
function short(value: number): string {
  return (value >= 100 ? rounded : significant).format(value);
}

export function count(value: number): string {
  return whole.format(value);
}

/** A number with its noun: `1 session`, `3 sessions`. */
export function counted(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

export function bytes(value: U64): string {
  let rest = Number(value);
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (rest < 1024) return `${short(rest)} ${unit}`;
    rest /= 1024;
  }
  return `${short(rest)} PiB`;
}

/** Operations in a second, as an axis has them. */
export function rate(value: number): string {
  if (value >= 1e6) return `${short(value / 1e6)} M`;
  if (value >= 1e4) return `${short(value / 1e3)} k`;
  return short(value);
}

export function seconds(value: number): string {
  if (value === 0) return "0";
  if (value < 1e-3) return `${short(value * 1e6)} µs`;
  if (value < 1) return `${short(value * 1e3)} ms`;
  return `${short(value)} s`;
}

/** How long, in the two largest units. */
export function duration(value: number): string {
  const parts: [number, string][] = [
    [Math.floor(value / 86400), "day"],
    [Math.floor(value / 3600) % 24, "hour"],
    [Math.floor(value / 60) % 60, "minute"],
    [Math.floor(value) % 60, "second"],
  ];
  const first = parts.findIndex(([number]) => number > 0);
  if (first < 0) return "0 seconds";
  const said = parts.slice(first, first + 2).filter(([number]) => number > 0);
  return said.map(([number, unit]) => counted(number, unit)).join(" and ");
}

/** A moment, in seconds since 1970. */
export function moment(value: number): string {
  return new Date(value * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

/** When a snapshot was taken, by its name; null if that is none. */
export function snapshotTime(name: string): Date | null {
  const parts = /^@GMT-(\d{4})\.(\d\d)\.(\d\d)-(\d\d)\.(\d\d)\.(\d\d)$/.exec(name);
  if (!parts) return null;
  const [year, month, ...rest] = parts.slice(1).map(Number) as [number, number, number, number, number, number];
  return new Date(Date.UTC(year, month - 1, ...rest));
}

/** How long ago. */
export function ago(then: Date): string {
  const passed = (Date.now() - then.getTime()) / 1000;
  return passed < 5 ? "just now" : `${duration(passed)} ago`;
}
