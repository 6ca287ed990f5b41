// A chart over time (uPlot), with the last values in words below it.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export interface Line {
  name: string;
  /** A variable of console.css. */
  color: string;
}

interface Props {
  title: string;
  /** What a value is in. */
  unit: string;
  lines: Line[];
  /** Seconds since 1970, and for each line a value or null. */
  times: number[];
  values: (number | null)[][];
  format: (value: number) => string;
  /** How high it is at least, so that nothing looks like nothing. */
  least: number;
  /** Marks stand at powers of two. */
  binary?: boolean;
}

/** Steps between marks of bytes. */
const POWERS = Array.from({ length: 60 }, (_, power) => 2 ** power);

/** Seconds that a chart is wide at least. */
const WIDE = 120;
const HEIGHT = 170;

function variable(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** From when to when a chart reaches: now without anything to show. */
function span(times: number[]): [number, number] {
  const last = times.at(-1) ?? Date.now() / 1000;
  return [Math.min(times[0] ?? last, last - WIDE), last];
}

export function Chart({ title, unit, lines, times, values, format, least, binary = false }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const seen = useRef(times);
  seen.current = times;
  const data = [times, ...values] as uPlot.AlignedData;
  const shape = lines.length;
  useEffect(() => {
    const node = place.current;
    if (!node) return;
    const axis = (): uPlot.Axis => ({
      stroke: () => variable("--quiet"),
      grid: { stroke: () => variable("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    });
    plot.current = new uPlot(
      {
        width: node.clientWidth || 300,
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false } },
        padding: [8, 26, 0, 0],
        scales: {
          x: { time: true, range: () => span(seen.current) },
          y: { range: (_, __, max) => [0, Math.max(max ?? 0, least) * 1.1] },
        },
        axes: [
          { ...axis(), size: 26, space: 70, values: [[86400, "{DD}.{MM}.", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] },
          { ...axis(), size: 68, space: 34, ...(binary ? { incrs: POWERS } : {}), values: (_, splits) => splits.map(format) },
        ],
        series: [
          {},
          ...lines.map(
            ({ name, color }): uPlot.Series => ({
              label: name,
              stroke: () => variable(color),
              width: 1.75,
              points: { show: false },
            }),
          ),
        ],
      },
      data,
      node,
    );
    const size = new ResizeObserver(() => plot.current?.setSize({ width: node.clientWidth, height: HEIGHT }));
    size.observe(node);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => plot.current?.redraw(false);
    dark.addEventListener("change", redraw);
    return () => {
      size.disconnect();
      dark.removeEventListener("change", redraw);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(data));
  const last = values.map((line) => line.at(-1) ?? null);
  return (
    <figure class="chart">
      <figcaption>
        <h3>{title}</h3>
        <ul class="legend">
          {lines.map(({ name, color }, index) => (
            <li>
              <span class="swatch" data-color={color} aria-hidden="true" />
              {name}{" "}
              <strong>
                {last[index] === null || last[index] === undefined ? "–" : format(last[index])}
                {unit}
              </strong>
            </li>
          ))}
        </ul>
      </figcaption>
      <div ref={place} aria-hidden="true" class="plot" />
    </figure>
  );
}
