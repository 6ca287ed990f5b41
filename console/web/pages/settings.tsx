// What is in force, reading the configuration again, applying declared objects, the upgrade.
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { Action, Command, RoleNote } from "../action";
import { call } from "../api";
import { commandOf, callOf, type Fields } from "../calls";
import { counted, moment } from "../format";
import { Name, shown } from "../name";
import { Badge, Card, Page } from "../page";
import { useCall } from "../poll";
import { mayNot, me, own } from "../session";
import { Table } from "../table";
import type { Declared, ObjectChange, Status } from "../types";

export function Settings() {
  const { value, error } = useCall<{ status: Status }>("status", 10);
  const [round, setRound] = useState(0);
  const status = value?.status;
  return (
    <Page title="Settings" error={error}>
      <RoleNote verbs={["reload"]} />
      <Card title="Server">
        {status && (
          <dl class="facts">
            <dt>Name</dt>
            <dd>
              <Name of={status.name} />
            </dd>
            <dt>Version</dt>
            <dd>{status.version}</dd>
            <dt>Process</dt>
            <dd>{status.pid}</dd>
            <dt>Listens on</dt>
            <dd>{status.listen.join(", ")}</dd>
          </dl>
        )}
        <div class="acts">
          <div>
            <Action
              verb="reload"
              label="Read the configuration again"
              primary
              done={() => "The configuration is read, and in force."}
              after={() => setRound(round + 1)}
            />
            <p class="quiet small">Users, shares, policies and limits change; no client is dropped. A mistake in the file changes nothing.</p>
            <Command verb="reload" />
          </div>
          <div>
            <Action
              verb="upgrade"
              label="Upgrade to the installed program"
              danger
              ask={{
                title: "Have the installed program take over?",
                text: (
                  <p>
                    The program that is installed now takes the place of the one that runs (version {status?.version}). Clients see a
                    pause of some tenths of a second and connect again by themselves; persistent opens stay. Opens of shares that
                    are not continuously available are lost where their clients cannot make them again.
                  </p>
                ),
                confirm: "Upgrade",
              }}
              done={() => "The installed program takes over."}
            />
            <p class="quiet small">For a server that runs with --supervise.</p>
          </div>
        </div>
      </Card>
      <InForce round={round} onApplied={() => setRound(round + 1)} />
      <You />
    </Page>
  );
}

/** Who one is, and what is the same for all servers. */
function You() {
  return (
    <Card title="You">
      <dl class="facts">
        <dt>User</dt>
        <dd>
          <Name of={me.value?.user ?? ""} />
        </dd>
        <dt>Role</dt>
        <dd>{me.value?.role}</dd>
        <dt>From</dt>
        <dd>
          <Name of={me.value?.from ?? ""} />
        </dd>
        {own.value && (
          <>
            <dt>Logged in until</dt>
            <dd>{moment(own.value.expires)}</dd>
          </>
        )}
      </dl>
      <Command verb="whoami" />
      <p class="quiet small">
        From another machine each command takes <code>--host {location.origin} --token-file FILE</code> before it.
      </p>
      <p>
        <a href={callOf("describe").path} target="_blank" rel="noreferrer">
          The description of all calls (OpenAPI)
        </a>{" "}
        ·{" "}
        <a href="/notices.txt" target="_blank" rel="noreferrer">
          What others wrote in this console
        </a>
      </p>
      <Command verb="describe" />
    </Card>
  );
}

/** What a VM host has of settings. */
export function HostSettings() {
  return (
    <Page title="Settings" about="The host's configuration is a file; a reload takes users and certificate of its control interface anew.">
      <You />
    </Page>
  );
}

/** An object without secrets, as JSON that can be changed and applied. */
function text(declared: Declared): string {
  return JSON.stringify(declared, null, 2);
}

function InForce({ round, onApplied }: { round: number; onApplied: () => void }) {
  const refused = mayNot("declared-show");
  const [declared, setDeclared] = useState<Declared | null>(null);
  const [error, setError] = useState<string | null>(null);
  useEffect(() => {
    if (refused) return;
    call<{ declared: Declared }>("declared-show").then(
      (it) => {
        setDeclared(it.declared);
        setError(null);
      },
      (failure: Error) => setError(failure.message),
    );
  }, [round, refused]);
  if (refused) {
    return (
      <Card title="In force">
        <p class="empty">{refused} What is configured is shown to administrators.</p>
      </Card>
    );
  }
  return (
    <Card title="In force">
      {error && (
        <p class="refusal" role="alert">
          {shown(error)}
        </p>
      )}
      <p class="quiet">Shares, users and targets as they are in force, without secrets.</p>
      {declared &&
        (["share", "user", "target"] as const).map((kind) => {
          const rows = declared[kind] ?? [];
          return (
            <details key={kind}>
              <summary>
                {rows.length} {rows.length === 1 ? kind : `${kind}s`}
              </summary>
              {rows.map((it) => (
                <dl class="facts object">
                  {Object.entries(it).map(([key, value]) => (
                    <>
                      <dt>{key}</dt>
                      <dd>
                        <Name of={typeof value === "string" ? value : JSON.stringify(value)} mono />
                      </dd>
                    </>
                  ))}
                </dl>
              ))}
            </details>
          );
        })}
      <Command verb="declared-show" />
      {declared && <Apply start={declared} onApplied={onApplied} />}
    </Card>
  );
}

const BADGES = { create: "good", change: "warn", remove: "bad", nothing: "plain" } as const;

function Apply({ start, onApplied }: { start: Declared; onApplied: () => void }) {
  const [open, setOpen] = useState(false);
  const [written, setWritten] = useState("");
  const [cut, setCut] = useState(false);
  const [prune, setPrune] = useState(false);
  /** What was asked about, and what would come of it. */
  const [planned, setPlanned] = useState<{ fields: Fields; changes: ObjectChange[] } | null>(null);
  /** How often what there is to be was changed: an answer about what stood there before is for nobody. */
  const version = useRef(0);
  const [box, cutId, pruneId] = [useId(), useId(), useId()];
  let declared: unknown = null;
  let wrong: string | null = null;
  try {
    declared = JSON.parse(written || "{}");
  } catch (error) {
    wrong = `This is no JSON: ${(error as Error).message}`;
  }
  const fields = { declared, cut, prune };
  const asked = version.current;
  const changed = () => {
    version.current += 1;
    setPlanned(null);
  };
  return (
    <details
      open={open}
      onToggle={(event) => {
        setOpen(event.currentTarget.open);
        if (event.currentTarget.open && written === "") setWritten(text({ share: [], user: [], target: [] }));
      }}
    >
      <summary>Declare shares, users and targets</summary>
      <p class="quiet small">
        JSON with lists <code>share</code>, <code>user</code> and <code>target</code>, with the keys of the configuration. What is not
        named stays, unless you prune. All of it is made so, or nothing is.
      </p>
      <label for={box}>What there is to be</label>
      <textarea
        id={box}
        rows={12}
        spellcheck={false}
        value={written}
        aria-invalid={wrong !== null}
        onInput={(event) => {
          setWritten(event.currentTarget.value);
          changed();
        }}
      />
      <p>
        <button type="button" class="bare" onClick={() => (setWritten(text(start)), changed())}>
          Begin with what is in force
        </button>
      </p>
      <p>
        <input id={cutId} type="checkbox" checked={cut} onInput={(event) => (setCut(event.currentTarget.checked), changed())} />{" "}
        <label for={cutId}>Also change and remove what clients use now (their sessions end)</label>
      </p>
      <p>
        <input id={pruneId} type="checkbox" checked={prune} onInput={(event) => (setPrune(event.currentTarget.checked), changed())} />{" "}
        <label for={pruneId}>Remove what was declared before and is not named here</label>
      </p>
      {wrong ? (
        <p class="refusal" role="alert">
          {wrong}
        </p>
      ) : (
        <div class="buttons left">
          <Action<{ changes: ObjectChange[] }>
            verb="apply"
            fields={{ ...fields, plan: true }}
            label="Show what would change"
            done={({ changes }) => `${counted(changes.filter((it) => it.action !== "nothing").length, "object")} would change.`}
            after={({ changes }) => {
              if (asked === version.current) setPlanned({ fields, changes });
            }}
          />
          {planned && planned.changes.some((it) => it.action !== "nothing") && (
            <Action<{ changes: ObjectChange[] }>
              verb="apply"
              fields={{ ...planned.fields, plan: false }}
              label="Apply"
              danger
              ask={{
                title: "Make it so?",
                text: (
                  <ul>
                    {planned.changes
                      .filter((it) => it.action !== "nothing")
                      .map((it) => (
                        <li>
                          {it.action} {it.kind} <Name of={it.name} />
                          {it.users > 0 && `, in use ${it.users} times`}
                        </li>
                      ))}
                  </ul>
                ),
                confirm: "Apply",
              }}
              done={() => "It is so."}
              after={() => {
                setPlanned(null);
                onApplied();
              }}
            />
          )}
        </div>
      )}
      {planned && <Changes of={planned.changes} />}
      {commandOf("apply") && <Command verb="apply" fields={{ ...fields, plan: planned === null }} />}
    </details>
  );
}

function Changes({ of }: { of: ObjectChange[] }) {
  return (
    <Table<ObjectChange>
      caption="What would change"
      columns={[
        { head: "Object", cell: (it) => it.kind, by: (it) => it.kind },
        { head: "Name", cell: (it) => <Name of={it.name} />, by: (it) => it.name },
        { head: "Is", cell: (it) => <Badge kind={BADGES[it.action]}>{it.action === "nothing" ? "as it is" : `${it.action}d`}</Badge>, by: (it) => it.action },
        {
          head: "Keys",
          kind: "wide",
          cell: (it) => (
            <>
              {Object.entries(it.difference).map(([key, [before, after]]) => (
                <div>
                  {key}: <Name of={JSON.stringify(before)} mono /> → <Name of={JSON.stringify(after)} mono />
                </div>
              ))}
            </>
          ),
        },
        { head: "In use", cell: (it) => it.users, by: (it) => it.users, kind: "number" },
      ]}
      rows={of}
      id={(it) => `${it.kind} ${it.name}`}
      empty={<p>Nothing would change: all of it is so already.</p>}
    />
  );
}
