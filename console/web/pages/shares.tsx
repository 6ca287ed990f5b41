// The shares, and how much each is used.
import { Command } from "../action";
import { count } from "../format";
import { Name } from "../name";
import { Badge, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { to } from "../route";
import { type Column, Table } from "../table";
import type { Share } from "../types";

const COLUMNS: Column<Share>[] = [
  {
    head: "Share",
    cell: (it) => (
      <a href={to("shares", it.name)}>
        <Name of={it.name} />
      </a>
    ),
    by: (it) => it.name,
  },
  {
    head: "Mode",
    cell: (it) => (it.read_only ? <Badge kind="plain">read-only</Badge> : <Badge kind="good">read and write</Badge>),
    by: (it) => (it.read_only ? "read-only" : "read and write"),
  },
  { head: "Connected", cell: (it) => count(it.connected), by: (it) => it.connected, kind: "number" },
  { head: "Opens", cell: (it) => count(it.opens), by: (it) => it.opens, kind: "number" },
  { head: "Previous versions", cell: (it) => count(it.snapshots), by: (it) => it.snapshots, kind: "number" },
  { head: "Folder", kind: "wide", cell: (it) => <Name of={it.path} mono />, by: (it) => it.path },
  { head: "Comment", cell: (it) => <Name of={it.comment} />, by: (it) => it.comment },
];

export function Shares() {
  const { value, error } = useCall<{ shares: Share[] }>("shares", 5);
  return (
    <Page title="Shares" about="Open a share to see who uses it, its previous versions, and how to mount it." error={error}>
      {value ? (
        <Table
          caption="Shares"
          columns={COLUMNS}
          rows={value.shares}
          id={(it) => it.name}
          empty={
            <p>
              There is no share yet. Declare one in a file and apply it (<a href={to("settings")}>Settings</a>), or write{" "}
              <code>[[share]]</code> into the configuration and reload it.
            </p>
          }
        />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="shares" />
    </Page>
  );
}
