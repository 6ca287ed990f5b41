// Previous versions of a share: what there is, taking one, removing one, and how people reach them.
import { Action, Command, Copy, RoleNote } from "../action";
import { ago, snapshotTime } from "../format";
import { Name, shown } from "../name";
import { Card, Waiting } from "../page";
import { useCall } from "../poll";
import { Table } from "../table";
import type { Share } from "../types";

export function Versions({ share }: { share: Share }) {
  const fields = { share: share.name };
  const { value, error, again } = useCall<{ times: string[] }>("snapshot-list", 10, fields);
  const path = (time: string) => `\\\\${location.hostname}\\${share.name}\\${time}`;
  return (
    <Card
      title="Previous versions"
      aside={
        <div>
          <Action<{ time: string }>
            verb="snapshot-create"
            fields={fields}
            label="Take one now"
            primary
            done={({ time }) => `Taken: ${time}.`}
            after={again}
          />
          <Command verb="snapshot-create" fields={fields} />
        </div>
      }
    >
      <RoleNote verbs={["snapshot-create", "snapshot-delete"]} />
      {error && (
        <p class="refusal" role="alert">
          {shown(error)}
        </p>
      )}
      {value ? (
        <Table
          caption="Previous versions"
          columns={[
            { head: "Taken", cell: (time) => snapshotTime(time)?.toLocaleString("en-GB") ?? "–", by: (time) => time },
            {
              head: "How long ago",
              cell: (time) => {
                const then = snapshotTime(time);
                return then ? ago(then) : "–";
              },
            },
            {
              head: "Browse at",
              kind: "wide",
              cell: (time) => (
                <span class="line">
                  <Name of={path(time)} mono /> <Copy text={path(time)} what={`the path of ${time}`} />
                </span>
              ),
              by: (time) => time,
            },
            {
              head: "Actions",
              kind: "actions",
              cell: (time) => (
                <Action
                  verb="snapshot-delete"
                  fields={{ ...fields, time }}
                  label="Remove"
                  of={time}
                  danger
                  ask={{
                    title: "Remove this previous version?",
                    text: (
                      <p>
                        The files of <Name of={share.name} /> as they were at <Name of={time} mono /> are gone for good. The share
                        itself and its other previous versions stay.
                      </p>
                    ),
                    confirm: "Remove",
                  }}
                  done={() => "The previous version is removed."}
                  after={again}
                />
              ),
            },
          ]}
          rows={value.times}
          id={(time) => time}
          empty={<p>There are none yet. “Take one now” keeps the share's files as they are at this moment.</p>}
        />
      ) : (
        !error && <Waiting />
      )}
      <p class="quiet small">
        In Windows they are on the tab “Previous Versions” of a file's properties, or at the paths above in the Explorer; with
        smbclient, <code>cd @GMT-…</code>. Their files are read-only and have the rights that they had. The share must be on Btrfs
        or on XFS with reflink.
      </p>
      <Command verb="snapshot-list" fields={fields} />
    </Card>
  );
}
