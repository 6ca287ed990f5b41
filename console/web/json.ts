// JSON with whole numbers up to 2^64: identities of sessions and opens do not fit JavaScript's numbers.
import type { U64 } from "./types";

/** Reads JSON; whole numbers of sixteen digits and more become strings. */
export function parse<T>(text: string): T {
  const part = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
  const large = /^\d{16,}$/;
  return JSON.parse(text.replace(part, (it) => (large.test(it) ? `"${it}"` : it))) as T;
}

/** A whole number on its way back, as it came. */
export class Whole {
  constructor(readonly value: U64) {
    if (!/^\d{1,20}$/.test(String(value))) throw new Error("no whole number");
  }

  toString(): string {
    return String(this.value);
  }
}

/** Writes JSON with whole numbers as they are. */
export function write(value: unknown): string {
  if (value instanceof Whole) return String(value);
  if (Array.isArray(value)) return `[${value.map(write).join(",")}]`;
  if (value && typeof value === "object") {
    const pairs = Object.entries(value).filter(([, inner]) => inner !== undefined);
    return `{${pairs.map(([name, inner]) => `${JSON.stringify(name)}:${write(inner)}`).join(",")}}`;
  }
  return JSON.stringify(value);
}
