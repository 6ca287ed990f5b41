// Who is logged in, on the whole server; and ending all sessions of a user or an address.
import { useId, useState } from "preact/hooks";
import { Action, Command, RoleNote } from "../action";
import { counted } from "../format";
import { Name } from "../name";
import { Card, Page, Waiting } from "../page";
import { useEvents } from "../poll";
import type { Session } from "../types";
import { SessionTable } from "./lists";

export function Sessions() {
  const { value, error, again } = useEvents<{ sessions: Session[] }>("sessions");
  return (
    <Page title="Sessions" about="Who is logged in over SMB. The list follows the server by itself." error={error}>
      <RoleNote verbs={["disconnect"]} />
      {value ? (
        <SessionTable
          rows={value.sessions}
          after={again}
          empty="Nobody is logged in. The page of a share says how Windows, Linux and macOS connect to it."
        />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="sessions" />
      <All after={again} />
    </Page>
  );
}

function All({ after }: { after: () => void }) {
  const [kind, setKind] = useState<"user" | "address">("user");
  const [value, setValue] = useState("");
  const which = useId();
  const box = useId();
  return (
    <Card title="End several at once">
      <div class="form">
        <label for={which}>All sessions</label>
        <select id={which} value={kind} onInput={(event) => setKind(event.currentTarget.value as "user" | "address")}>
          <option value="user">of the user</option>
          <option value="address">from the address</option>
        </select>
        <label for={box}>{kind === "user" ? "User" : "Address, with or without port"}</label>
        <input id={box} value={value} autocapitalize="none" spellcheck={false} onInput={(event) => setValue(event.currentTarget.value)} />
        <Action<{ count: number }>
          verb="disconnect"
          fields={{ target: { [kind]: value } }}
          label="Disconnect all"
          danger
          missing={value ? null : `Say which ${kind} first.`}
          ask={{
            title: "Disconnect all of these sessions?",
            text: (
              <p>
                Every session {kind === "user" ? "of the user" : "from"} <Name of={value} /> ends with all that it has open. What
                programs had not written yet is lost. Clients may log in again.
              </p>
            ),
            confirm: "Disconnect all",
          }}
          done={({ count }) => `${counted(count, "session")} ended.`}
          after={after}
        />
      </div>
    </Card>
  );
}
