// iSCSI targets with their LUNs, and the initiators that are logged in.
import { Action, Command, RoleNote } from "../action";
import { bytes, count } from "../format";
import { Whole } from "../json";
import { Name, Names } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { to } from "../route";
import { Table } from "../table";
import type { Lun, Target, TargetSession, U64 } from "../types";

function Luns({ target, after }: { target: Target; after: () => void }) {
  return (
    <Table<Lun>
      caption={`LUNs of ${target.name}`}
      columns={[
        { head: "LUN", cell: (it) => it.number, by: (it) => it.number, kind: "number" },
        { head: "Image or device", kind: "wide", cell: (it) => <Name of={it.path} mono />, by: (it) => it.path },
        { head: "Size", cell: (it) => bytes(it.size), by: (it) => Number(it.size), kind: "number" },
        { head: "Block", cell: (it) => bytes(it.block), by: (it) => it.block, kind: "number" },
        {
          head: "State",
          cell: (it) => (
            <>
              {it.read_only ? <Badge kind="plain">read-only</Badge> : <Badge kind="good">read and write</Badge>}
              {it.reserved && (
                <>
                  {" "}
                  <Badge kind="warn">reserved</Badge>
                </>
              )}
            </>
          ),
          by: (it) => `${it.read_only ? "read-only" : "read and write"}${it.reserved ? " reserved" : ""}`,
        },
        { head: "Registrations", cell: (it) => count(it.registrations), by: (it) => it.registrations, kind: "number" },
        {
          head: "Actions",
          kind: "actions",
          cell: (it) => (
            <Action<{ size: U64 }>
              verb="lun-resize"
              fields={{ target: target.name, lun: it.number }}
              label="Take new size"
              of={`LUN ${it.number} of ${target.name}`}
              ask={{
                title: "Take the size that the image has now?",
                text: (
                  <p>
                    The server looks again how large <Name of={it.path} mono /> is. If it has another size than{" "}
                    {bytes(it.size)}, initiators are told; no data are touched. Make the image itself larger before, with{" "}
                    <code>bulkhead disk resize</code>.
                  </p>
                ),
                confirm: "Take new size",
              }}
              done={({ size }) => `The LUN has ${bytes(size)}.`}
              after={after}
            />
          ),
        },
      ]}
      rows={target.luns}
      id={(it) => String(it.number)}
      empty={
        <p>
          This target has no LUN. Add one with <code>bulkhead lun add</code>.
        </p>
      }
    />
  );
}

export function Iscsi() {
  const targets = useCall<{ targets: Target[] }>("targets", 5);
  const sessions = useCall<{ sessions: TargetSession[] }>("target-sessions", 3);
  return (
    <Page title="iSCSI" about="Targets with their LUNs, and the initiators that are logged in." error={targets.error ?? sessions.error}>
      <RoleNote verbs={["lun-resize", "target-disconnect"]} />
      {!targets.value && !targets.error && <Waiting />}
      {targets.value?.targets.length === 0 && (
        <div class="empty">
          <p>
            This server has no iSCSI target. Make one with <code>bulkhead target add</code>, or declare one in a file and apply it
            (<a href={to("settings")}>Settings</a>).
          </p>
        </div>
      )}
      {targets.value?.targets.map((target) => (
        <section class="card" key={target.name}>
          <div class="head">
            <h2>
              <Name of={target.name} />
            </h2>
          </div>
          <Luns target={target} after={targets.again} />
        </section>
      ))}
      <Command verb="targets" />
      <Card title="Initiators">
        {sessions.value ? (
          <Table<TargetSession>
            caption="Sessions of initiators"
            columns={[
              { head: "Initiator", kind: "wide", cell: (it) => <Name of={it.initiator} />, by: (it) => it.initiator },
              { head: "Target", kind: "wide", cell: (it) => <Name of={it.target} />, by: (it) => it.target },
              { head: "From", cell: (it) => <Names of={it.clients} />, by: (it) => it.clients.join(" ") },
              { head: "Commands", cell: (it) => count(it.commands), by: (it) => it.commands, kind: "number" },
              { head: "Session", cell: (it) => <code>{String(it.id)}</code>, by: (it) => String(it.id) },
              {
                head: "Actions",
                kind: "actions",
                cell: (it) => (
                  <Action
                    verb="target-disconnect"
                    fields={{ session: new Whole(it.id) }}
                    label="Disconnect"
                    of={it.initiator}
                    danger
                    ask={{
                      title: "Disconnect this initiator?",
                      text: (
                        <p>
                          The session of <Name of={it.initiator} /> with <Name of={it.target} /> ends, with {count(it.commands)} commands
                          that run or wait. Most initiators log in again within seconds and send them anew.
                        </p>
                      ),
                      confirm: "Disconnect",
                    }}
                    done={() => "The initiator's session is ended."}
                    after={sessions.again}
                  />
                ),
              },
            ]}
            rows={sessions.value.sessions}
            id={(it) => String(it.id)}
            empty={<p>No initiator is logged in.</p>}
          />
        ) : (
          !sessions.error && <Waiting />
        )}
        <Command verb="target-sessions" />
      </Card>
    </Page>
  );
}
