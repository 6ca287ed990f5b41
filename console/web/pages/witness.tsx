// The cluster as clients see it: the role that is served here, nodes of the witness service, its clients.
import { useId, useState } from "preact/hooks";
import { Action, Command, RoleNote } from "../action";
import { counted } from "../format";
import { last } from "../live";
import { Name, Names } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { Table } from "../table";
import type { WitnessClient, WitnessNode } from "../types";

function State({ of }: { of: string }) {
  return <Badge kind={of === "up" ? "good" : of === "down" ? "bad" : "plain"}>{of}</Badge>;
}

function Nodes({ nodes, after }: { nodes: WitnessNode[]; after: () => void }) {
  const tell = (node: WitnessNode, state: "up" | "down") => (
    <Action
      verb="witness-state"
      fields={{ node: node.name, state }}
      label={`Say it is ${state}`}
      of={node.name}
      danger={state === "down"}
      ask={{
        title: state === "down" ? "Tell clients that this node is down?" : "Tell clients that this node is up?",
        text: (
          <p>
            {state === "down" ? (
              <>
                Clients that are registered for <Name of={node.name} /> are told at once, and leave it for another. The node itself
                is not touched.
              </>
            ) : (
              <>
                Clients that are registered for <Name of={node.name} /> are told that it is there again.
              </>
            )}
          </p>
        ),
        confirm: `Say it is ${state}`,
      }}
      done={() => `Clients are told that the node is ${state}.`}
      after={after}
    />
  );
  return (
    <Table<WitnessNode>
      caption="Nodes"
      columns={[
        {
          head: "Node",
          cell: (it) => (
            <>
              <Name of={it.name} /> {it.own && <span class="quiet">this one</span>}
            </>
          ),
          by: (it) => it.name,
        },
        { head: "State", cell: (it) => <State of={it.state} />, by: (it) => it.state },
        { head: "Addresses", cell: (it) => <Names of={it.addresses} />, by: (it) => it.addresses.join(" ") },
        {
          head: "Actions",
          kind: "actions",
          cell: (it) => (
            <span class="line">
              {it.state !== "up" && tell(it, "up")} {it.state !== "down" && tell(it, "down")}
            </span>
          ),
        },
      ]}
      rows={nodes}
      id={(it) => it.name}
      empty={<p>The witness service knows no node.</p>}
    />
  );
}

function Move({ clients, nodes, after }: { clients: WitnessClient[]; nodes: WitnessNode[]; after: () => void }) {
  const [who, setWho] = useState("");
  const [goal, setGoal] = useState("");
  const [whoId, goalId, list] = [useId(), useId(), useId()];
  const [kind, value] = who === "" ? ["", ""] : [who.slice(0, who.indexOf(":")), who.slice(who.indexOf(":") + 1)];
  const names = [...new Set(clients.map((it) => it.client))];
  const shares = [...new Set(clients.map((it) => it.share).filter((it) => it !== null))];
  return (
    <Card title="Have clients go elsewhere">
      <div class="form">
        <label for={whoId}>Who</label>
        <select id={whoId} value={who} onInput={(event) => setWho(event.currentTarget.value)}>
          <option value="">Choose …</option>
          {names.map((name) => (
            <option value={`client:${name}`}>the client {name}</option>
          ))}
          {shares.map((name) => (
            <option value={`share:${name}`}>all that use the share {name}</option>
          ))}
        </select>
        <label for={goalId}>To the node or address</label>
        <input id={goalId} list={list} value={goal} autocapitalize="none" spellcheck={false} onInput={(event) => setGoal(event.currentTarget.value)} />
        <datalist id={list}>
          {nodes.map((it) => (
            <option value={it.name} />
          ))}
        </datalist>
        <Action<{ count: number }>
          verb="witness-move"
          fields={{ client: kind === "client" ? value : null, share: kind === "share" ? value : null, to: goal }}
          label="Have them go"
          missing={kind && goal ? null : "Say who is to go, and where, first."}
          ask={{
            title: "Have these clients go elsewhere?",
            text: (
              <p>
                {kind === "client" ? "The client " : "Clients that use the share "}
                <Name of={value} /> {kind === "client" ? "is" : "are"} told to go to <Name of={goal} />. They connect there and go on
                with what they have open, if the share is continuously available.
              </p>
            ),
            confirm: "Have them go",
          }}
          done={({ count }) => `${counted(count, "registration")} told.`}
          after={after}
        />
      </div>
    </Card>
  );
}

export function Witness() {
  const { value, error, again } = useCall<{ nodes: WitnessNode[]; clients: WitnessClient[]; configured: boolean }>("witness-list", 3);
  const roles = last.value?.get("bulkhead_cluster_role") ?? [];
  return (
    <Page
      title="Cluster"
      about="The witness service tells clients at once when a node is lost, so that they go to another without waiting."
      error={error}
    >
      <RoleNote verbs={["witness-state"]} />
      {roles.length > 0 && (
        <p>
          This server serves{" "}
          {roles.map((it) => (
            <>
              the role <Name of={it.labels.role ?? ""} /> on node <Name of={it.labels.node ?? ""} />
            </>
          ))}
          .
        </p>
      )}
      {value && !value.configured ? (
        <div class="empty">
          <p>
            This server has no witness service. <code>[witness]</code> in its configuration makes one, and a restart begins it;{" "}
            <code>docs/witness.md</code> says what it is good for.
          </p>
          <Command verb="witness-list" />
        </div>
      ) : value ? (
        <>
          <Card title="Nodes">
            <Nodes nodes={value.nodes} after={again} />
          </Card>
          <Card title="Clients">
            <Table<WitnessClient>
              caption="Clients of the witness service"
              columns={[
                { head: "Client", cell: (it) => <Name of={it.client} />, by: (it) => it.client },
                { head: "User", cell: (it) => <Name of={it.user} />, by: (it) => it.user },
                { head: "Uses", cell: (it) => <Name of={it.address} />, by: (it) => it.address },
                { head: "Name", cell: (it) => <Name of={it.net_name} />, by: (it) => it.net_name },
                { head: "Share", cell: (it) => <Name of={it.share ?? ""} />, by: (it) => it.share ?? "" },
                { head: "Version", cell: (it) => it.version, by: (it) => it.version, kind: "number" },
                { head: "Listens", cell: (it) => (it.waiting ? "yes" : "no"), by: (it) => (it.waiting ? "yes" : "no") },
              ]}
              rows={value.clients}
              id={(it) => String(it.id)}
              empty={<p>No client is registered. Clients register when they use a continuously available share of a cluster.</p>}
            />
          </Card>
          {value.clients.length > 0 && <Move clients={value.clients} nodes={value.nodes} after={again} />}
          <Command verb="witness-list" />
        </>
      ) : (
        !error && <Waiting />
      )}
    </Page>
  );
}
