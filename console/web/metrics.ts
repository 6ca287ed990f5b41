// The page of metrics (OpenMetrics 1.0), and what can be said of two of them.

export interface Sample {
  labels: Record<string, string>;
  value: number;
}

/** Samples by their names. */
export type Metrics = Map<string, Sample[]>;

const LINE = /^([a-z_0-9]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-z_0-9]+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES: Record<string, string> = { n: "\n", '"': '"', "\\": "\\" };

export function parse(page: string): Metrics {
  const all: Metrics = new Map();
  for (const line of page.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (!found) continue;
    const labels: Record<string, string> = Object.create(null) as Record<string, string>;
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name as string] = (value as string).replace(/\\(.)/g, (_, letter: string) => ESCAPES[letter] ?? letter);
    }
    const name = found[1] as string;
    const samples = all.get(name) ?? [];
    samples.push({ labels, value: Number(found[3]) });
    all.set(name, samples);
  }
  return all;
}

/** The samples of some names, of which those of a histogram have endings. */
export function only(metrics: Metrics, names: readonly string[]): Metrics {
  return new Map([...metrics].filter(([name]) => names.includes(name)));
}

/** What has these labels, among others. */
export type Where = Record<string, string>;

function matches(sample: Sample, where: Where): boolean {
  return Object.entries(where).every(([name, value]) => sample.labels[name] === value);
}

/** The sum of the samples of a name. */
export function sum(metrics: Metrics, name: string, where: Where = {}): number {
  return (metrics.get(name) ?? []).filter((it) => matches(it, where)).reduce((all, it) => all + it.value, 0);
}

/** How much a counter grew; what it is where it began anew. */
export function growth(before: Metrics, after: Metrics, name: string, where: Where = {}): number {
  const [old, now] = [sum(before, name, where), sum(after, name, where)];
  return now >= old ? now - old : now;
}

/**
 * The time below which a part of the requests between two pages were answered, in seconds; null where
 * there were none. Within a bucket values are taken as evenly spread.
 */
export function quantile(before: Metrics, after: Metrics, name: string, part: number, where: Where = {}): number | null {
  const below = (metrics: Metrics) => {
    const buckets = new Map<number, number>();
    for (const { labels, value } of (metrics.get(`${name}_bucket`) ?? []).filter((it) => matches(it, where))) {
      const end = labels.le === "+Inf" ? Infinity : Number(labels.le);
      buckets.set(end, (buckets.get(end) ?? 0) + value);
    }
    return buckets;
  };
  const old = below(before);
  const grown = [...below(after)].map(([end, value]) => [end, value - (old.get(end) ?? 0)] as const);
  grown.sort(([one], [other]) => one - other);
  const all = grown.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let [from, counted] = [0, 0];
  for (const [end, value] of grown) {
    if (value >= all * part) {
      if (end === Infinity) return from;
      return from + ((all * part - counted) / Math.max(value - counted, 1e-9)) * (end - from);
    }
    [from, counted] = [end, value];
  }
  return from;
}
