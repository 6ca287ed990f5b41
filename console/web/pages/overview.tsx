// How the server is: in sentences, alerts, and charts of what it does now.
import { useCall } from "../poll";
import { Chart } from "../chart";
import { Command } from "../action";
import { bytes, count, rate, seconds } from "../format";
import { alerts, sentences } from "../health";
import { first, last, points, trouble } from "../live";
import { Badge, Card, Page, Waiting } from "../page";
import { to } from "../route";
import type { Status } from "../types";

export function Overview() {
  const { value, error } = useCall<{ status: Status }>("status", 2);
  const seen = points.value;
  const found = first.value && last.value ? alerts(first.value, last.value, seen) : [];
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
          Shares and LUNs together; times of SMB requests, one in 16 is measured. Alerts are about the time since this page was
          opened: for longer ones see <code>docs/metrics.md</code>.
        </p>
      </Card>
    </Page>
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
