// What was changed, by whom, and what was before and after it.
import { useId, useState } from "preact/hooks";
import { Command } from "../action";
import { Name, shown } from "../name";
import { Badge, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { mayNot } from "../session";
import { Table } from "../table";
import type { AuditRecord } from "../types";

/** What was asked for, in a line: the verb and its fields. */
function what(of: AuditRecord): string {
  const { op, ...fields } = of.what;
  const rest = Object.entries(fields).map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`);
  return [String(op), ...rest].join(", ");
}

function Outcome({ of }: { of: AuditRecord }) {
  const refused = of.result.refused;
  if (refused === undefined) return <Badge kind="good">done</Badge>;
  return (
    <>
      <Badge kind="bad">refused</Badge> <Name of={String(refused)} />
    </>
  );
}

function States({ of }: { of: AuditRecord }) {
  const text = (value: unknown) => JSON.stringify(value, null, 2) ?? "–";
  return (
    <details>
      <summary>Before and after</summary>
      <div class="states">
        <pre tabIndex={0} aria-label="Before">
          {shown(text(of.before)).replaceAll("\\u000a", "\n")}
        </pre>
        <pre tabIndex={0} aria-label="After">
          {shown(text(of.after)).replaceAll("\\u000a", "\n")}
        </pre>
      </div>
    </details>
  );
}

function when(of: AuditRecord): string {
  const time = new Date(of.time);
  return Number.isNaN(time.getTime()) ? of.time : time.toLocaleString("en-GB");
}

export function Audit() {
  const refused = mayNot("audit");
  return refused ? (
    <Page title="Changes">
      <div class="empty">
        <p>{refused} An administrator can show you what was changed.</p>
      </div>
    </Page>
  ) : (
    <Records />
  );
}

function Records() {
  const [limit, setLimit] = useState(100);
  const { value, error } = useCall<{ records: AuditRecord[] }>("audit", 5, {}, `?limit=${limit}`);
  const box = useId();
  return (
    <Page title="Changes" about="Every change, the last first, whichever way it was asked for." error={error}>
      <div class="form">
        <label for={box}>Show the last</label>
        <select id={box} value={limit} onInput={(event) => setLimit(Number(event.currentTarget.value))}>
          {[100, 300, 1000].map((it) => (
            <option value={it}>{it}</option>
          ))}
        </select>
      </div>
      {value ? (
        <Table<AuditRecord & { at: number }>
          caption="Changes"
          columns={[
            { head: "When", cell: when, by: (it) => it.time },
            {
              head: "Who",
              cell: (it) => (
                <>
                  <Name of={it.who} /> <span class="quiet">{it.role}</span>
                </>
              ),
              by: (it) => `${it.who} ${it.role}`,
            },
            { head: "From", cell: (it) => <Name of={it.from} />, by: (it) => it.from },
            { head: "What", kind: "wide", cell: (it) => <Name of={what(it)} />, by: what },
            { head: "Outcome", cell: (it) => <Outcome of={it} />, by: (it) => (it.result.refused === undefined ? "done" : "refused") },
            { head: "States", cell: (it) => <States of={it} /> },
          ]}
          rows={value.records.map((it, index) => ({ ...it, at: value.records.length - index }))}
          id={(it) => `${it.time} ${it.at}`}
          empty={<p>Nothing has been changed yet. Every change will stand here with who made it.</p>}
        />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="audit" fields={{ limit }} />
    </Page>
  );
}
