// The VMs of a host, which of their disks are slow, and making one.
import { useId, useState } from "preact/hooks";
import { Action, Command, RoleNote } from "../action";
import { call } from "../api";
import { bytes, count } from "../format";
import { Name, shown } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall, useEvents } from "../poll";
import { to } from "../route";
import { say } from "../say";
import { mayNot } from "../session";
import { type Column, Table } from "../table";
import type { DiskReport, VmDefinition, VmSummary } from "../types";

const KINDS: Record<string, "good" | "warn" | "bad" | "plain"> = {
  running: "good",
  off: "plain",
  "moving-out": "warn",
  "moving-in": "warn",
  paused: "warn",
};

/** The state of a VM in a word; all that is not known here is bad. */
export function State({ of }: { of: string }) {
  return <Badge kind={KINDS[of] ?? "bad"}>{of}</Badge>;
}

const COLUMNS: Column<VmSummary>[] = [
  {
    head: "VM",
    cell: (it) => (
      <a href={to("vms", it.name)}>
        <Name of={it.name} />
      </a>
    ),
    by: (it) => it.name,
  },
  { head: "State", cell: (it) => <State of={it.state} />, by: (it) => it.state },
  { head: "CPUs", cell: (it) => count(it.vcpus), by: (it) => it.vcpus, kind: "number" },
  { head: "Memory", cell: (it) => bytes(it.memory_mib * 2 ** 20), by: (it) => it.memory_mib, kind: "number" },
  { head: "Why", kind: "wide", cell: (it) => <Name of={it.reason ?? ""} />, by: (it) => it.reason ?? "" },
];

export function Vms() {
  const { value, error, again } = useEvents<{ vms: VmSummary[] }>("list");
  return (
    <Page title="Virtual machines" about="The list follows the host by itself. Open a VM to run, move and change it." error={error}>
      <RoleNote verbs={["vm-create"]} />
      {value ? (
        <Table
          caption="Virtual machines"
          columns={COLUMNS}
          rows={value.vms}
          id={(it) => it.name}
          empty={<p>There is no VM yet. Make one below, or with a disk from an image: <code>bulkhead vm create</code>.</p>}
        />
      ) : (
        !error && <Waiting />
      )}
      <Command verb="vm-list" />
      <Create after={again} />
    </Page>
  );
}

/** What a VM may start from. */
const STARTS = [
  ["uefi", "UEFI, from its first disk"],
  ["bios", "BIOS, from its first disk"],
] as const;

function Create({ after }: { after: () => void }) {
  const [name, setName] = useState("");
  const [memory, setMemory] = useState("2048");
  const [cpus, setCpus] = useState("2");
  const [disk, setDisk] = useState("");
  const [bridge, setBridge] = useState("");
  const [start, setStart] = useState<string>("uefi");
  const [fits, setFits] = useState<string | null>(null);
  const [nameId, memoryId, cpusId, diskId, bridgeId, startId] = [useId(), useId(), useId(), useId(), useId(), useId()];
  const definition: VmDefinition = {
    name,
    memory_mib: Number(memory),
    vcpus: Number(cpus),
    firmware: { kind: start },
    ...(disk && { disk: [{ location: disk }] }),
    ...(bridge && { nic: [{ bridge }] }),
  };
  const whole = (text: string) => /^[1-9]\d{0,9}$/.test(text);
  const missing = !name ? "Give it a name first." : !whole(memory) || !whole(cpus) ? "Memory and CPUs are whole numbers." : !disk ? "Say where its disk is." : null;
  const check = () => {
    if (missing) return say(missing, true);
    call("vm-check", { definition, new: [] }).then(
      () => setFits("The host would take it."),
      (failure: Error) => setFits(failure.message),
    );
  };
  const field = (id: string, label: string, value: string, set: (value: string) => void, hint?: string) => (
    <>
      <label for={id}>{label}</label>
      <input
        id={id}
        value={value}
        placeholder={hint}
        autocapitalize="none"
        spellcheck={false}
        onInput={(event) => {
          set(event.currentTarget.value);
          setFits(null);
        }}
      />
    </>
  );
  return (
    <Card title="Make a VM">
      <div class="form">
        {field(nameId, "Name", name, setName)}
        {field(memoryId, "Memory in MiB", memory, setMemory)}
        {field(cpusId, "CPUs", cpus, setCpus)}
        {field(diskId, "Disk that is there", disk, setDisk, "smb://user@files/vms/web.vhdx")}
        {field(bridgeId, "Network card in the bridge, if any", bridge, setBridge)}
        <label for={startId}>Starts by</label>
        <select id={startId} value={start} onInput={(event) => setStart(event.currentTarget.value)}>
          {STARTS.map(([kind, text]) => (
            <option value={kind}>{text}</option>
          ))}
        </select>
        <button type="button" data-verb="vm-check" aria-disabled={mayNot("vm-check") !== null} onClick={check}>
          Would it fit?
        </button>
        <Action verb="vm-create" fields={{ definition }} label="Make it" primary missing={missing} done={() => `${shown(name)} is made, and off.`} after={after} />
      </div>
      {fits && (
        <p role="status">
          <bdi>{shown(fits)}</bdi>
        </p>
      )}
    </Card>
  );
}

/** Why disks of VMs are slow. */
export function VmWhy() {
  const { value, error } = useCall<{ reports: DiskReport[] }>("vm-why", 5);
  return (
    <Page title="Why is it slow?" about="What the host sees of each disk: the guest's queue, its own, and the storage." error={error}>
      {value ? <Reports of={value.reports} /> : !error && <Waiting />}
      <Command verb="vm-why" />
    </Page>
  );
}

/** Reports of disks, what is wrong first. */
export function Reports({ of }: { of: DiskReport[] }) {
  if (of.length === 0) return <p class="empty">No VM runs here that has a disk.</p>;
  return (
    <ul class="alerts" aria-label="Disks">
      {of.map((it) => (
        <li class={it.causes.length > 0 ? "warning" : ""}>
          <Badge kind={it.causes.length > 0 ? "warn" : "good"}>{it.causes[0]?.cause ?? "well"}</Badge>{" "}
          <strong>
            <Name of={`${it.vm}/${it.disk}`} />
          </strong>{" "}
          <bdi>{shown(it.sentence)}</bdi>
          <ul class="small quiet">
            {it.causes.flatMap((cause) => [cause.sentence, ...cause.evidence]).map((line) => (
              <li>
                <bdi>{shown(line)}</bdi>
              </li>
            ))}
          </ul>
        </li>
      ))}
    </ul>
  );
}
