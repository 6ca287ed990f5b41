// Sessions, open files and locks, as tables: each for the whole server or for one share.
import { Action } from "../action";
import { hex } from "../calls";
import { bytes, count, counted } from "../format";
import { Whole } from "../json";
import { Name, Names, shown } from "../name";
import { Badge } from "../page";
import { type Column, Table } from "../table";
import type { Lock, Open, Session } from "../types";

interface Ended {
  count: number;
}

/** Rights that a mask has (MS-SMB2 2.2.13.1), as people say them. */
function rights(mask: number): string {
  const has = (bits: number) => (mask & bits) !== 0;
  const words = [
    has(0x8000_0001 | 0x1000_0000) && "read",
    has(0x4000_0006 | 0x1000_0000) && "write",
    has(0x0001_0000 | 0x1000_0000) && "delete",
  ].filter((it) => it !== false);
  return words.join(", ") || "attributes";
}

/** What a client may cache, by the letters of leases (MS-SMB2 2.2.13.2.8). */
function cached(letters: string): string {
  const words = { R: "reads", W: "writes", H: "the handle" };
  return Object.entries(words)
    .filter(([letter]) => letters.includes(letter))
    .map(([, word]) => word)
    .join(", ");
}

function Protection({ of }: { of: Session }) {
  if (of.encrypted) {
    return (
      <>
        <Badge kind="good">encrypted</Badge> <span class="quiet small">{of.cipher}</span>
      </>
    );
  }
  if (of.signed) return <Badge kind="plain">signed</Badge>;
  return <Badge kind="warn">neither signed nor encrypted</Badge>;
}

function protection(of: Session): string {
  return of.encrypted ? `encrypted ${of.cipher ?? ""}` : of.signed ? "signed" : "neither signed nor encrypted";
}

export function SessionTable({ rows, after, empty }: { rows: Session[]; after: () => void; empty: string }) {
  const columns: Column<Session>[] = [
    {
      head: "User",
      cell: (it) => (
        <>
          <Name of={it.user} />
          <div class="quiet small">
            <code>{hex(it.id)}</code>
          </div>
        </>
      ),
      by: (it) => `${it.user} ${hex(it.id)}`,
    },
    { head: "Client", cell: (it) => <Names of={it.clients} none="no connection" />, by: (it) => it.clients.join(" ") },
    {
      head: "Carried by",
      cell: (it) => {
        const why = [...new Set(it.why_not_rdma.filter((one) => one !== null))];
        const names = [...new Set(it.transports)].join(", ").toUpperCase() || "–";
        return why.length === 0 ? names : <span title={shown(`No RDMA: ${why.join("; ")}`)}>{names}</span>;
      },
      by: (it) => it.transports.join(" "),
    },
    { head: "Dialect", cell: (it) => it.dialect, by: (it) => it.dialect },
    { head: "Protection", cell: (it) => <Protection of={it} />, by: protection },
    { head: "Shares", cell: (it) => <Names of={it.shares} />, by: (it) => it.shares.join(" ") },
    { head: "Opens", cell: (it) => count(it.opens), by: (it) => it.opens, kind: "number" },
    {
      head: "Actions",
      kind: "actions",
      cell: (it) => (
        <Action<Ended>
          verb="disconnect"
          fields={{ target: { session: new Whole(it.id) } }}
          label="Disconnect"
          of={`${it.user}, session ${hex(it.id)}`}
          danger
          ask={{
            title: "Disconnect this session?",
            text: (
              <p>
                The session of <Name of={it.user} /> from <Names of={it.clients} none="no address" /> ends.{" "}
                {it.opens === 0
                  ? "It has nothing open."
                  : `All that it has open is closed (${counted(it.opens, "file or folder", "files and folders")}); what its programs had not written yet is lost.`}{" "}
                The client may log in again.
              </p>
            ),
            confirm: "Disconnect",
          }}
          done={({ count: ended }) => `${counted(ended, "session")} ended.`}
          after={after}
        />
      ),
    },
  ];
  return <Table caption="Sessions" columns={columns} rows={rows} id={(it) => String(it.id)} empty={<p>{empty}</p>} />;
}

export function OpenTable({ rows, after, share, empty }: { rows: Open[]; after: () => void; share?: boolean; empty: string }) {
  const columns: Column<Open>[] = [
    {
      head: "Path",
      kind: "wide",
      cell: (it) => (
        <>
          <Name of={it.path || "\\"} mono /> {it.directory && <span class="quiet">folder</span>}
        </>
      ),
      by: (it) => it.path,
    },
    { head: "Share", cell: (it) => <Name of={it.share} />, by: (it) => it.share },
    {
      head: "User",
      cell: (it) => (
        <>
          <Name of={it.user} /> {it.session === undefined && <Badge kind="warn">client is away</Badge>}
        </>
      ),
      by: (it) => it.user,
    },
    { head: "May", cell: (it) => rights(it.access), by: (it) => rights(it.access) },
    {
      head: "Caches",
      cell: (it) => cached(it.caching) || <span class="quiet">none</span>,
      by: (it) => cached(it.caching),
    },
    { head: "Locks", cell: (it) => count(it.locks), by: (it) => it.locks, kind: "number" },
    { head: "Open", cell: (it) => <code>{hex(it.id)}</code>, by: (it) => hex(it.id) },
    {
      head: "Actions",
      kind: "actions",
      cell: (it) => (
        <Action<Ended>
          verb="disconnect"
          fields={{ target: { open: new Whole(it.id) } }}
          label="Close"
          of={`${it.path}, open ${hex(it.id)}`}
          danger
          ask={{
            title: "Close this open?",
            text: (
              <p>
                <Name of={it.path} mono /> is closed under the program of <Name of={it.user} /> that has it open, together with its
                locks. What that program had not written yet is lost; its session goes on.
              </p>
            ),
            confirm: "Close",
          }}
          done={({ count: ended }) => `${counted(ended, "open")} closed.`}
          after={after}
        />
      ),
    },
  ];
  const wanted = share ? columns.filter((it) => it.head !== "Share") : columns;
  return <Table caption="Open files and folders" columns={wanted} rows={rows} id={(it) => String(it.id)} empty={<p>{empty}</p>} />;
}

export function LockTable({ rows, share, empty }: { rows: Lock[]; share?: boolean; empty: string }) {
  const columns: Column<Lock>[] = [
    { head: "Path", kind: "wide", cell: (it) => <Name of={it.path} mono />, by: (it) => it.path },
    { head: "Share", cell: (it) => <Name of={it.share} />, by: (it) => it.share },
    { head: "User", cell: (it) => <Name of={it.user} />, by: (it) => it.user },
    { head: "From byte", cell: (it) => <code>{String(it.offset)}</code>, by: (it) => Number(it.offset), kind: "number" },
    { head: "Length", cell: (it) => bytes(it.length), by: (it) => Number(it.length), kind: "number" },
    {
      head: "Kind",
      cell: (it) => (it.exclusive ? "exclusive: nobody else reads or writes" : "shared: nobody writes"),
      by: (it) => (it.exclusive ? "exclusive" : "shared"),
    },
    { head: "Open", cell: (it) => <code>{hex(it.open)}</code>, by: (it) => hex(it.open) },
  ];
  const wanted = share ? columns.filter((it) => it.head !== "Share") : columns;
  const id = (it: Lock) => `${it.open} ${it.offset} ${it.length} ${it.exclusive}`;
  return <Table caption="Byte-range locks" columns={wanted} rows={rows} id={id} empty={<p>{empty}</p>} />;
}
