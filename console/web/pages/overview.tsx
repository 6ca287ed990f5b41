// How the server is: in sentences, alerts, and charts of what it does now.
import { useState } from "preact/hooks";
import { useCall } from "../poll";
import { Chart } from "../chart";
import { Command } from "../action";
import { bytes, count, rate, seconds } from "../format";
import { alerts, sentences } from "../health";
import { last, pages, points, trouble } from "../live";
import { Badge, Card, Page, Waiting } from "../page";
import { to } from "../route";
import type { HistoryPoint, Status } from "../types";

export function Overview() {
  const { value, error } = useCall<{ status: Status }>("status", 2);
  const seen = points.value;
  const found = alerts(pages.value);
  const worst = error ? "bad" : found.some((it) => it.severity === "critical") ? "bad" : found.length > 0 ? "warn" : "good";
  const said = error
    ? "The server does not answer"
    : found.length === 0
      ? "All is well"
      : found.length === 1
        ? "One thing needs a look"
        : `${count(found.length)} things need a look`;
  const times = seen.map((it) => it.time);
  return (
    <Page title="Overview" error={error ?? trouble.value}>
      {value ? (
        <section class={`card health ${worst}`} aria-label="Health">
          <p class="verdict">
            <Badge kind={worst}>{said}</Badge>
          </p>
          {sentences(value.status, last.value, seen).map((sentence) => (
            <p>
              <bdi>{sentence}</bdi>
            </p>
          ))}
          {found.length > 0 && (
            <ul class="alerts" aria-label="Alerts">
              {found.map((it) => (
                <li class={it.severity}>
                  <Badge kind={it.severity === "critical" ? "bad" : "warn"}>{it.severity === "critical" ? "Critical" : "Warning"}</Badge>{" "}
                  <strong>
                    <bdi>{it.summary}</bdi>
                  </strong>{" "}
                  {it.remedy}
                </li>
              ))}
            </ul>
          )}
          <Command verb="status" />
        </section>
      ) : (
        !error && <Waiting />
      )}
      {value && (
        <ul class="figures" aria-label="Figures">
          <Figure href={to("sessions")} name="Sessions" value={value.status.sessions} />
          <Figure href={to("files")} name="Opens" value={value.status.opens} />
          <Figure href={to("shares")} name="Shares" value={value.status.shares} />
          <Figure href={to("sessions")} name="Connections" value={value.status.connections} />
        </ul>
      )}
      <Card title="Now">
        {seen.length === 0 && <p class="quiet">The charts begin with the second look, in two seconds, and reach five minutes back.</p>}
        <div class="charts">
          <Chart
            title="Operations a second"
            unit="/s"
            lines={[
              { name: "Reads", color: "--one" },
              { name: "Writes", color: "--two" },
              { name: "Others", color: "--three" },
            ]}
            times={times}
            values={[0, 1, 2].map((index) => seen.map((it) => it.operations[index] ?? null))}
            format={rate}
            least={10}
          />
          <Chart
            title="Bytes a second"
            unit="/s"
            lines={[
              { name: "Read", color: "--one" },
              { name: "Written", color: "--two" },
            ]}
            times={times}
            values={[0, 1].map((index) => seen.map((it) => it.bytes[index] ?? null))}
            format={bytes}
            least={65536}
            binary
          />
          <Chart
            title="Time to an answer"
            unit=""
            lines={[
              { name: "Half within", color: "--one" },
              { name: "99 of 100 within", color: "--two" },
            ]}
            times={times}
            values={[0, 1].map((index) => seen.map((it) => it.latency[index] ?? null))}
            format={seconds}
            least={0.001}
          />
        </div>
        <p class="quiet small">
          Shares and LUNs together; times of SMB requests, one in 16 is measured. Alerts are about the last quarter of an hour at most, as
          far as this page saw it: for longer ones see <code>docs/metrics.md</code>.
        </p>
      </Card>
      <Past />
    </Page>
  );
}

/** How far back one can look, by the server's own history. */
const SPANS = [
  ["hour", "Hour"],
  ["day", "Day"],
  ["month", "30 days"],
] as const;

/** Points with a gap where the server did not run or nobody wrote: a line would be made up there. */
function gaps(points: HistoryPoint[], step: number): (HistoryPoint | number)[] {
  return points.flatMap((point, index) => {
    const before = points[index - 1];
    const hole = before && point.time - point.seconds - before.time > step;
    return hole ? [before.time + 1, point] : [point];
  });
}

function Past() {
  const [span, setSpan] = useState<string>("hour");
  const { value, error } = useCall<{ step_s: number; points: HistoryPoint[] }>("history", 10, { span });
  const all = value ? gaps(value.points, value.step_s) : [];
  const times = all.map((it) => (typeof it === "number" ? it : it.time));
  const line = (of: (point: HistoryPoint) => number | null) => all.map((it) => (typeof it === "number" ? null : of(it)));
  const each = (of: (point: HistoryPoint) => unknown) => line((it) => Number(of(it)) / Math.max(it.seconds, 1));
  const time = (of: (point: HistoryPoint) => number) => line((it) => (of(it) === 0 ? null : of(it) / 1e6));
  const [one, two, three] = ["--one", "--two", "--three"];
  return (
    <Card
      title="Before"
      aside={
        <span class="line" role="group" aria-label="How far back">
          {SPANS.map(([id, name]) => (
            <button type="button" aria-pressed={span === id} onClick={() => setSpan(id)}>
              {name}
            </button>
          ))}
        </span>
      }
    >
      {error && <p class="refusal">{error}</p>}
      {value && value.points.length === 0 && <p class="quiet">Nothing is written down yet: the first point comes after {seconds(value.step_s)}.</p>}
      <div class="charts">
        <Chart
          key={`operations ${span}`}
          title="Operations a second"
          unit="/s"
          lines={[{ name: "Reads", color: one }, { name: "Writes", color: two }, { name: "Others", color: three }]}
          times={times}
          values={[each((it) => it.reads), each((it) => it.writes), each((it) => it.others)]}
          format={rate}
          least={10}
        />
        <Chart
          key={`bytes ${span}`}
          title="Bytes a second"
          unit="/s"
          lines={[{ name: "To clients", color: one }, { name: "From clients", color: two }]}
          times={times}
          values={[each((it) => it.sent), each((it) => it.received)]}
          format={bytes}
          least={65536}
          binary
        />
        <Chart
          key={`times ${span}`}
          title="Time to an answer"
          unit=""
          lines={[{ name: "Half within", color: one }, { name: "99 of 100 within", color: two }]}
          times={times}
          values={[time((it) => it.p50_us), time((it) => it.p99_us)]}
          format={seconds}
          least={0.001}
        />
        <Chart
          key={`errors ${span}`}
          title="Refused or failed, a second"
          unit="/s"
          lines={[{ name: "Errors", color: one }]}
          times={times}
          values={[each((it) => it.errors)]}
          format={rate}
          least={1}
        />
        <Chart
          key={`sessions ${span}`}
          title="Sessions and opens"
          unit=""
          lines={[{ name: "Sessions", color: one }, { name: "Opens", color: two }]}
          times={times}
          values={[line((it) => it.sessions), line((it) => it.opens)]}
          format={rate}
          least={5}
        />
        <Chart
          key={`cpu ${span}`}
          title="Processors used"
          unit=""
          lines={[{ name: "Processors", color: one }]}
          times={times}
          values={[line((it) => it.cpu_permille / 1000)]}
          format={rate}
          least={0.1}
        />
      </div>
      <Command verb="history" fields={{ span }} />
    </Card>
  );
}

function Figure({ href, name, value }: { href: string; name: string; value: number }) {
  return (
    <li>
      <a href={href}>
        <span class="value">{count(value)}</span> <span class="quiet">{name}</span>
      </a>
    </li>
  );
}
