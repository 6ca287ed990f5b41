// Why something is slow: what the server says of shares, of the files that are used most and of LUNs.
import { Command } from "../action";
import { count, counted, duration, seconds } from "../format";
import { Name, shown } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { to } from "../route";
import { Table } from "../table";
import type { Cause, Phase, Report } from "../types";

/** What each part of the way is. */
const PARTS: Record<string, string> = {
  queue: "received, until it was taken up",
  break: "waited until others gave up what they cache or have open",
  lock: "waited for a byte range that others lock",
  crypto: "signatures and encryption",
  read: "reading from the file system",
  write: "writing to the file system",
  sync: "making durable",
  send: "answered, until it was sent",
};

/** What a list of one thing has for a call, whichever it is. */
function useReports(of: string | undefined) {
  const all = useCall<{ reports: Report[] }>(of === undefined ? "why" : "why-of", 5, of === undefined ? {} : { what: of });
  return all;
}

function Causes({ of }: { of: Cause[] }) {
  return (
    <ul class="alerts" aria-label="Causes">
      {of.map((it) => (
        <li class="warning">
          <Badge kind="warn">{it.cause}</Badge>{" "}
          <strong>
            <bdi>{shown(it.sentence)}</bdi>
          </strong>{" "}
          {it.since_s > 0 ? `For ${duration(it.since_s)}.` : "Seen just now."}
          <ul class="small quiet">
            {it.evidence.map((line) => (
              <li>
                <bdi>{shown(line)}</bdi>
              </li>
            ))}
          </ul>
        </li>
      ))}
    </ul>
  );
}

function One({ report }: { report: Report }) {
  const wrong = report.causes.length > 0;
  return (
    <Card title={wrong ? "What is wrong" : "Nothing is wrong"}>
      {wrong ? (
        <Causes of={report.causes} />
      ) : (
        <p>
          <Badge kind="good">Well</Badge> <bdi>{shown(report.sentence)}</bdi>
        </p>
      )}
      <h3>Where the time went</h3>
      <Table<Phase>
        caption="Where the time went"
        columns={[
          { head: "Part", cell: (it) => PARTS[it.phase] ?? it.phase },
          { head: "Times", cell: (it) => count(it.count), kind: "number" },
          { head: "Mean", cell: (it) => seconds(it.mean_us / 1e6), kind: "number" },
          { head: "99 of 100 within", cell: (it) => seconds(it.p99_us / 1e6), kind: "number" },
        ]}
        rows={report.phases}
        id={(it) => it.phase}
        empty={<p>Nobody asked anything of it.</p>}
      />
      <p class="quiet small">
        {counted(report.operations, "operation")} in the last {duration(report.window_s)}.
      </p>
    </Card>
  );
}

export function Why({ of }: { of?: string }) {
  const { value, error } = useReports(of);
  const reports = value?.reports ?? [];
  const wrong = reports.filter((it) => it.causes.length > 0).length;
  return (
    <Page
      title={of ?? "Why is it slow?"}
      above={
        of !== undefined && (
          <nav aria-label="Where this is">
            <a href={to("why")}>Why is it slow?</a> <span aria-hidden="true">›</span>
          </nav>
        )
      }
      about="Shares, the files that are used most, and LUNs: the cause where one is slow, or that nothing is wrong with it."
      error={error}
    >
      {!value && !error && <Waiting />}
      {value && of !== undefined && reports.map((report) => <One key={report.subject} report={report} />)}
      {value && of === undefined && (
        <>
          <p role="status">
            <Badge kind={wrong > 0 ? "warn" : "good"}>
              {wrong === 0 ? "Nothing is wrong" : `${count(wrong)} of ${count(reports.length)} ${wrong === 1 ? "has" : "have"} a cause`}
            </Badge>
          </p>
          <Table<Report>
            caption="Shares, files and LUNs"
            columns={[
              {
                head: "Name",
                cell: (it) => (
                  <a href={to("why", it.subject)}>
                    <Name of={it.subject} />
                  </a>
                ),
                by: (it) => it.subject,
              },
              { head: "Kind", cell: (it) => it.kind, by: (it) => it.kind },
              {
                head: "Cause",
                cell: (it) =>
                  it.causes[0] ? <Badge kind="warn">{it.causes[0].cause}</Badge> : <Badge kind="good">none</Badge>,
                by: (it) => it.causes[0]?.cause ?? "",
              },
              { head: "In a sentence", kind: "wide", cell: (it) => <bdi>{shown(it.sentence)}</bdi>, by: (it) => it.sentence },
              { head: "Operations", cell: (it) => count(it.operations), by: (it) => it.operations, kind: "number" },
            ]}
            rows={reports}
            id={(it) => `${it.kind} ${it.subject}`}
            empty={<p>There is no share and no LUN.</p>}
          />
        </>
      )}
      {of === undefined ? <Command verb="why" /> : <Command verb="why-of" fields={{ what: of }} />}
    </Page>
  );
}
