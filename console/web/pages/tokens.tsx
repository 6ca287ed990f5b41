// Tokens: those that there are, making one for a program, revoking one.
import { useId, useState } from "preact/hooks";
import { Action, Command, Copy } from "../action";
import { moment } from "../format";
import { Name } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { me, own } from "../session";
import { Table } from "../table";
import type { Role, TokenInfo, TokenMade } from "../types";

const ROLES: Role[] = ["viewer", "operator", "administrator"];

export function Tokens() {
  const { value, error, again } = useCall<{ tokens: TokenInfo[] }>("tokens", 10);
  const all = me.value?.role === "administrator";
  return (
    <Page
      title="Tokens"
      about={all ? "Tokens of all users. A token is good until it expires, is revoked, or its user is gone." : "Your tokens. A token is good until it expires or is revoked."}
      error={error}
    >
      {value ? (
        <Table<TokenInfo>
          caption="Tokens"
          columns={[
            { head: "Number", cell: (it) => it.id, by: (it) => it.id, kind: "number" },
            {
              head: "User",
              cell: (it) => (
                <>
                  <Name of={it.user} /> {it.id === own.value?.id && <Badge kind="plain">this tab</Badge>}
                </>
              ),
              by: (it) => it.user,
            },
            { head: "Role", cell: (it) => it.role, by: (it) => it.role },
            { head: "For", kind: "wide", cell: (it) => <Name of={it.note} />, by: (it) => it.note },
            { head: "Made", cell: (it) => moment(it.created), by: (it) => it.created },
            { head: "Expires", cell: (it) => moment(it.expires), by: (it) => it.expires },
            {
              head: "Actions",
              kind: "actions",
              cell: (it) => (
                <Action
                  verb="token-revoke"
                  fields={{ id: it.id }}
                  label="Revoke"
                  of={`token ${it.id} of ${it.user}`}
                  danger
                  ask={{
                    title: `Revoke token ${it.id}?`,
                    text: (
                      <p>
                        Whoever shows this token of <Name of={it.user} /> is refused from now on.{" "}
                        {it.id === own.value?.id ? "It is the one of this tab: you will have to log in again." : "Nothing brings it back."}
                      </p>
                    ),
                    confirm: "Revoke",
                  }}
                  done={() => `Token ${it.id} is revoked.`}
                  after={again}
                />
              ),
            },
          ]}
          rows={value.tokens}
          id={(it) => String(it.id)}
          empty={<p>There is no token. Make one below for a program that is to ask this server.</p>}
        />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="tokens" />
      <Make after={again} />
    </Page>
  );
}

function Make({ after }: { after: () => void }) {
  const [hours, setHours] = useState(8760);
  const [wanted, setWanted] = useState<Role>("viewer");
  const [note, setNote] = useState("");
  const [made, setMade] = useState<TokenMade | null>(null);
  const [hoursId, roleId, noteId] = [useId(), useId(), useId()];
  const mine = me.value?.role ?? "viewer";
  const fields = { hours, role: wanted, note };
  return (
    <Card title="Make a token for a program">
      <div class="form">
        <label for={hoursId}>Good for, in hours</label>
        <input id={hoursId} type="number" min="1" max="8784" value={hours} onInput={(event) => setHours(Math.trunc(event.currentTarget.valueAsNumber) || 0)} />
        <label for={roleId}>May act as</label>
        <select id={roleId} value={wanted} onInput={(event) => setWanted(event.currentTarget.value as Role)}>
          {ROLES.slice(0, ROLES.indexOf(mine) + 1).map((it) => (
            <option value={it}>{it}</option>
          ))}
        </select>
        <label for={noteId}>What it is for</label>
        <input id={noteId} maxLength={200} placeholder="prometheus" value={note} onInput={(event) => setNote(event.currentTarget.value)} />
        <Action<TokenMade>
          verb="token-create"
          fields={fields}
          label="Make a token"
          primary
          done={({ id }) => `Token ${id} is made: copy it now.`}
          after={(answer) => {
            setMade(answer);
            after();
          }}
        />
      </div>
      {made && (
        <div class="note">
          <p>
            <strong>Token {made.id}</strong>, for a {made.role}, good until {moment(made.expires)}. It is shown here and nowhere else:
            the server keeps a hash of it alone.
          </p>
          <p class="line">
            <code class="secret">{made.token}</code> <Copy text={made.token} what="the token" />
          </p>
          <button type="button" onClick={() => setMade(null)}>
            I have it
          </button>
        </div>
      )}
      <Command verb="token-create" fields={fields} />
    </Card>
  );
}
