// One share: who uses it, what is open, previous versions, and how to mount it.
import { Command, RoleNote } from "../action";
import { count } from "../format";
import { Name } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall, useEvents } from "../poll";
import { to } from "../route";
import type { Lock, Open, Session, Share as Info } from "../types";
import { LockTable, OpenTable, SessionTable } from "./lists";
import { Mount } from "./mount";
import { Versions } from "./versions";

const PARTS = [
  ["use", "Who uses it"],
  ["files", "Open files"],
  ["versions", "Previous versions"],
  ["mount", "How to mount it"],
] as const;

export function Share({ name, part }: { name: string; part: string }) {
  const { value, error } = useCall<{ shares: Info[] }>("shares", 5);
  const info = value?.shares.find((it) => it.name === name);
  const seen = PARTS.some(([id]) => id === part) ? part : "use";
  return (
    <Page
      title={name}
      above={
        <nav aria-label="Where this is">
          <a href={to("shares")}>Shares</a> <span aria-hidden="true">›</span>
        </nav>
      }
      about={
        info && (
          <>
            <Name of={info.path} mono /> · {info.read_only ? <Badge kind="plain">read-only</Badge> : <Badge kind="good">read and write</Badge>}{" "}
            · {count(info.connected)} connected · {count(info.opens)} open
            {info.comment && (
              <>
                {" "}
                · <Name of={info.comment} />
              </>
            )}
          </>
        )
      }
      error={error}
    >
      {value && !info && (
        <div class="empty">
          <p>
            There is no share of this name now. <a href={to("shares")}>See those that there are.</a>
          </p>
        </div>
      )}
      {info && (
        <>
          <nav class="tabs" aria-label="Parts of the share">
            {PARTS.map(([id, title]) => (
              <a href={to("shares", name, id)} aria-current={id === seen ? "page" : undefined}>
                {title}
              </a>
            ))}
          </nav>
          {seen === "use" && <Users share={name} />}
          {seen === "files" && <Opens share={name} />}
          {seen === "versions" && <Versions share={info} />}
          {seen === "mount" && <Mount share={name} />}
        </>
      )}
    </Page>
  );
}

/** Lists name shares folded. */
function same(one: string, other: string): boolean {
  return one.toUpperCase() === other.toUpperCase();
}

function Users({ share }: { share: string }) {
  const { value, error, again } = useEvents<{ sessions: Session[] }>("sessions");
  if (!value) return error ? <p class="refusal">{error}</p> : <Waiting />;
  const rows = value.sessions.filter((it) => it.shares.some((one) => same(one, share)));
  return (
    <Card title="Who uses it">
      <RoleNote verbs={["disconnect"]} />
      <SessionTable rows={rows} after={again} empty="Nobody is connected to this share. “How to mount it” says how to." />
      <Command verb="sessions" />
    </Card>
  );
}

function Opens({ share }: { share: string }) {
  const { value, error, again } = useEvents<{ opens: Open[] }>("opens");
  const locks = useCall<{ locks: Lock[] }>("locks", 3);
  if (!value) return error ? <p class="refusal">{error}</p> : <Waiting />;
  return (
    <>
      <Card title="Open files">
        <RoleNote verbs={["disconnect"]} />
        <OpenTable share rows={value.opens.filter((it) => same(it.share, share))} after={again} empty="Nothing of this share is open." />
        <Command verb="opens" />
      </Card>
      <Card title="Locks">
        <LockTable share rows={(locks.value?.locks ?? []).filter((it) => same(it.share, share))} empty="No range of a file is locked." />
        <Command verb="locks" />
      </Card>
    </>
  );
}
