// What is open on the whole server, and which ranges of files are locked.
import { Command, RoleNote } from "../action";
import { Page, Waiting } from "../page";
import { useCall, useEvents } from "../poll";
import type { Lock, Open } from "../types";
import { LockTable, OpenTable } from "./lists";

export function Files() {
  const { value, error, again } = useEvents<{ opens: Open[] }>("opens");
  return (
    <Page
      title="Open files"
      about="Files and folders that clients have open, with the oplock or lease by which they may cache them."
      error={error}
    >
      <RoleNote verbs={["disconnect"]} />
      {value ? (
        <OpenTable rows={value.opens} after={again} empty="Nothing is open. A file appears here when a client opens it." />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="opens" />
    </Page>
  );
}

export function Locks() {
  const { value, error } = useCall<{ locks: Lock[] }>("locks", 3);
  return (
    <Page title="Locks" about="Byte ranges of files that clients have locked. Closing an open lets its locks go." error={error}>
      {value ? (
        <LockTable rows={value.locks} empty="No range is locked. Programs such as databases lock ranges while they write." />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="locks" />
    </Page>
  );
}
