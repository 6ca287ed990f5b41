// One VM: how it is, what its disks do, its last move; and what one can do with it.
import { useId, useState } from "preact/hooks";
import { Action, Command, RoleNote } from "../action";
import { bytes, count, counted } from "../format";
import { Name, shown } from "../name";
import { Badge, Card, Page, Waiting } from "../page";
import { useCall } from "../poll";
import { to } from "../route";
import { Table } from "../table";
import type { DiskReport, VmDefinition, VmDetail, VmDisk, VmMove } from "../types";
import { Reports, State } from "./vms";

export function Vm({ name }: { name: string }) {
  const { value, error, again } = useCall<{ vm: VmDetail }>("vm-show", 2, { name });
  const vm = value?.vm;
  const above = (
    <p class="above">
      <a href={to("")}>Virtual machines</a>
    </p>
  );
  return (
    <Page title={name} above={above} error={error}>
      <RoleNote verbs={["vm-start", "vm-delete"]} />
      {vm ? (
        <>
          <Now vm={vm} again={again} />
          <Disks of={vm.disks} />
          {vm.disks.length > 0 && <Slow name={name} />}
          {vm.last_move && <LastMove of={vm.last_move} />}
          <Change key={vm.summary.state} vm={vm} again={again} />
        </>
      ) : (
        !error && <Waiting />
      )}
      <Command verb="vm-show" fields={{ name }} />
    </Page>
  );
}

function Now({ vm, again }: { vm: VmDetail; again: () => void }) {
  const { name, state } = vm.summary;
  const runs = state !== "off" && state !== "failed" && state !== "moving-in";
  return (
    <Card title="Now" aside={<State of={state} />}>
      <dl class="facts">
        {vm.reason && (
          <>
            <dt>Why</dt>
            <dd>
              <Name of={vm.reason} />
            </dd>
          </>
        )}
        <dt>CPUs and memory</dt>
        <dd>
          {counted(vm.summary.vcpus, "CPU")}, {bytes(vm.summary.memory_mib * 2 ** 20)}
          {vm.memory && `; ${bytes(vm.memory.resident)} of the host's`}
          {vm.memory?.balloon && `; its guest goes along with ${bytes(vm.memory.balloon.has)}`}
        </dd>
        {vm.agent && (
          <>
            <dt>Guest</dt>
            <dd>
              <Name of={vm.agent.os ?? vm.agent.reason ?? vm.agent.state} />{" "}
              <Name of={(vm.agent.interfaces ?? []).flatMap((it) => it.addresses).join(", ")} mono />
            </dd>
          </>
        )}
        {vm.watchdog && (
          <>
            <dt>Watchdog</dt>
            <dd>
              {vm.watchdog.enabled ? "runs" : "does not run"}, expired {counted(vm.watchdog.expired, "time")}
            </dd>
          </>
        )}
        <dt>Pauses by the host</dt>
        <dd>
          {count(vm.pauses)}, the longest {(vm.longest_pause_us / 1000).toFixed(1)} ms
        </dd>
        {vm.waiting && vm.waiting.length > 0 && (
          <>
            <dt>Waits for its next start</dt>
            <dd>
              <Name of={vm.waiting.join(", ")} mono />
            </dd>
          </>
        )}
      </dl>
      <div class="buttons left">
        {!runs && state !== "moving-in" && <Action verb="vm-start" fields={{ name }} label="Start" of={name} primary done={() => `${shown(name)} runs.`} after={again} />}
        {state === "paused" && <Action verb="vm-resume" fields={{ name }} label="Run on" of={name} primary done={() => `${shown(name)} runs on.`} after={again} />}
        {runs && <Action verb="vm-stop" fields={{ name }} label="Shut down" of={name} done={() => `${shown(name)} is off.`} after={again} />}
        {runs && (
          <Action
            verb="vm-stop"
            fields={{ name, force: true }}
            label="End at once"
            of={name}
            danger
            ask={{ title: "End it at once?", text: <p>As after a loss of power: what the guest had not written yet is lost.</p>, confirm: "End it" }}
            done={() => `${shown(name)} is off.`}
            after={again}
          />
        )}
        {state === "moving-out" && <Action verb="vm-cancel-move" fields={{ name }} label="Call the move off" of={name} done={() => "The move is called off; it runs on here."} after={again} />}
        {state === "in-doubt" && <Doubt name={name} again={again} />}
      </div>
    </Card>
  );
}

function Doubt({ name, again }: { name: string; again: () => void }) {
  const text = <p>Look at the other host first: a VM that runs on both loses its data.</p>;
  return (
    <>
      <Action verb="vm-resolve" fields={{ name, run: true }} label="Run it here" of={name} danger ask={{ title: "Run it here?", text, confirm: "Run it here" }} done={() => "It runs here."} after={again} />
      <Action verb="vm-resolve" fields={{ name, run: false }} label="Give it up here" of={name} danger ask={{ title: "Give it up here?", text, confirm: "Give it up" }} done={() => "It is given up here."} after={again} />
    </>
  );
}

function Disks({ of }: { of: VmDisk[] }) {
  return (
    <Card title="Disks">
      <Table
        caption="Disks"
        rows={of}
        id={(it) => it.location}
        empty={<p>It does not run, or has none.</p>}
        columns={[
          { head: "Disk", kind: "wide", cell: (it) => <Name of={it.location} mono />, by: (it) => it.location },
          { head: "Size", kind: "number", cell: (it) => bytes(it.size), by: (it) => Number(it.size) },
          { head: "Read", kind: "number", cell: (it) => `${count(it.reads)}, ${bytes(it.read_bytes)}`, by: (it) => it.reads },
          { head: "Written", kind: "number", cell: (it) => `${count(it.writes)}, ${bytes(it.written_bytes)}`, by: (it) => it.writes },
          { head: "Syncs", kind: "number", cell: (it) => count(it.flushes), by: (it) => it.flushes },
          { head: "Errors", kind: "number", cell: (it) => (it.errors > 0 ? <Badge kind="bad">{count(it.errors)}</Badge> : "0"), by: (it) => it.errors },
          { head: "Stood still", kind: "number", cell: (it) => `${count(it.pauses)}, at most ${(it.longest_pause_us / 1000).toFixed(0)} ms`, by: (it) => it.longest_pause_us },
        ]}
      />
    </Card>
  );
}

function Slow({ name }: { name: string }) {
  const { value } = useCall<{ reports: DiskReport[] }>("vm-why-of", 5, { what: name });
  if (!value) return null;
  return (
    <Card title="Why is it slow?">
      <Reports of={value.reports} />
      <Command verb="vm-why-of" fields={{ what: name }} />
    </Card>
  );
}

function LastMove({ of }: { of: VmMove }) {
  return (
    <Card title={of.direction === "in" ? "How it came here" : "The last move"}>
      <dl class="facts">
        <dt>{of.direction === "in" ? "From" : "To"}</dt>
        <dd>
          <Name of={of.peer} mono />
        </dd>
        <dt>Outcome</dt>
        <dd>
          <Name of={of.outcome} />
        </dd>
        <dt>Took</dt>
        <dd>
          {(of.total_ms / 1000).toFixed(1)} s, {bytes(of.bytes)}, {of.mb_per_s.toFixed(0)} MB/s
        </dd>
        <dt>The guest stood still</dt>
        <dd>
          {of.downtime_ms.toFixed(1)} ms
          {of.downtime_parts.length > 0 && ` (${of.downtime_parts.map(([part, ms]) => `${part} ${ms.toFixed(1)}`).join(", ")})`}
        </dd>
      </dl>
      {of.rounds.length > 0 && (
        <Table
          caption="Rounds"
          rows={of.rounds}
          id={(it) => String(it.number)}
          empty={<p>None.</p>}
          columns={[
            { head: "Round", kind: "number", cell: (it) => count(it.number), by: (it) => it.number },
            { head: "Pages", kind: "number", cell: (it) => count(it.pages), by: (it) => it.pages },
            { head: "Of zeros", kind: "number", cell: (it) => count(it.zero_pages), by: (it) => it.zero_pages },
            { head: "Sent", kind: "number", cell: (it) => bytes(it.bytes), by: (it) => Number(it.bytes) },
            { head: "Took", kind: "number", cell: (it) => `${(it.micros / 1000).toFixed(1)} ms`, by: (it) => it.micros },
          ]}
        />
      )}
    </Card>
  );
}

/** A box for one value and the button that uses it. */
function One({ label, start = "", hint, children }: { label: string; start?: string; hint?: string; children: (value: string) => preact.ComponentChildren }) {
  const [value, setValue] = useState(start);
  const id = useId();
  return (
    <div class="form">
      <label for={id}>{label}</label>
      <input id={id} value={value} placeholder={hint} autocapitalize="none" spellcheck={false} onInput={(event) => setValue(event.currentTarget.value)} />
      {children(value.trim())}
    </div>
  );
}

const whole = (text: string) => /^[1-9]\d{0,9}$/.test(text);

function Change({ vm, again }: { vm: VmDetail; again: () => void }) {
  const { name, state } = vm.summary;
  const was = vm.definition;
  const edited = (more: Partial<VmDefinition>) => ({ was, definition: { ...was, ...more } as VmDefinition });
  return (
    <Card title="Change">
      {state === "running" && (
        <One label="Move to the host" hint="hv2.example.com:7777">
          {(host) => (
            <Action
              verb="vm-move"
              fields={{ name, options: { to: host } }}
              label="Move"
              of={name}
              primary
              missing={host ? null : "Say where to first: the migration address of the other host."}
              done={() => `${shown(name)} runs there.`}
              after={again}
            />
          )}
        </One>
      )}
      {state === "running" && vm.memory?.balloon && (
        <One label="Leave the guest with so many MiB" start={String(was.memory_mib)}>
          {(mib) => (
            <Action verb="vm-memory" fields={{ name, mib: Number(mib) }} label="Set" of={name} missing={whole(mib) ? null : "A whole number of MiB."} done={() => "The guest is told."} after={again} />
          )}
        </One>
      )}
      <One label="Memory in MiB" start={String(was.memory_mib)}>
        {(mib) => (
          <Action
            verb="vm-edit"
            fields={edited({ memory_mib: Number(mib) })}
            label="Change memory"
            missing={whole(mib) ? null : "A whole number of MiB."}
            done={() => (state === "off" ? "It has it." : "It has it from its next start on.")}
            after={again}
          />
        )}
      </One>
      <One label="CPUs" start={String(was.vcpus)}>
        {(cpus) => (
          <Action
            verb="vm-edit"
            fields={edited({ vcpus: Number(cpus) })}
            label="Change CPUs"
            missing={whole(cpus) ? null : "A whole number."}
            done={() => (state === "off" ? "It has them." : "It has them from its next start on.")}
            after={again}
          />
        )}
      </One>
      {(state === "off" || state === "failed") && (
        <>
          <One label="Another name">
            {(other) => (
              <Action verb="vm-rename" fields={{ name, to: other }} label="Rename" of={name} missing={other ? null : "Say the name first."} done={() => `It is ${shown(other)} now.`} after={() => (location.hash = to("vms", other).replace(/^.*#/, ""))} />
            )}
          </One>
          <div class="buttons left">
            <Action
              verb="vm-delete"
              fields={{ name }}
              label="Forget"
              of={name}
              danger
              ask={{ title: "Forget this VM?", text: <p>The host forgets what it is. Its disks stay where they are.</p>, confirm: "Forget it" }}
              done={() => `${shown(name)} is forgotten; its disks are there.`}
              after={() => (location.hash = to("").replace(/^.*#/, ""))}
            />
          </div>
        </>
      )}
    </Card>
  );
}
