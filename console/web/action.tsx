// What a person can do: one button is one call, with the command that does the same.
import { effect, signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { call } from "./api";
import { commandOf, type Fields } from "./calls";
import { route } from "./route";
import { mayNot, place } from "./session";
import { say } from "./say";
import { shown } from "./name";
import { CLOSED } from "./table";

/** A question before something is done. */
interface Question {
  title: string;
  /** What will happen. */
  text: ComponentChildren;
  /** The word on the button that does it. */
  confirm: string;
  verb: string;
  fields: Fields;
  danger: boolean;
  run: () => Promise<void>;
}

const question = signal<Question | null>(null);

// A question is of one page and one person: it goes with either.
effect(() => {
  void [route.value, place.value];
  question.value = null;
});

export function Copy({ text, what }: { text: string; what: string }) {
  const copy = () => {
    const copied = navigator.clipboard?.writeText(text) ?? Promise.reject(new Error());
    copied.then(
      () => say(`Copied: ${what}.`),
      () => say("This browser does not let the page copy: mark the text instead.", true),
    );
  };
  return (
    <button type="button" class="bare copy" onClick={copy} aria-label={`Copy ${what}`}>
      Copy
    </button>
  );
}

/** The command line that does the same, folded away. */
export function Command({ verb, fields = {} }: { verb: string; fields?: Fields }) {
  const command = commandOf(verb, fields);
  if (!command) return null;
  return (
    <details class="command">
      <summary>As a command</summary>
      <div class="line">
        <code>
          <bdi>{shown(command)}</bdi>
        </code>
        <Copy text={command} what="the command" />
      </div>
    </details>
  );
}

export interface ActionProps<T> {
  verb: string;
  fields?: Fields;
  /** What the button says, and what it says of the thing to those who see only the button. */
  label: string;
  of?: string;
  /** Asks before it does. */
  ask?: { title: string; text: ComponentChildren; confirm: string };
  danger?: boolean;
  primary?: boolean;
  /** What must be said first; nothing when all is there. */
  missing?: string | null;
  /** What the person is told of the answer. */
  done: (answer: T) => string;
  after?: (answer: T) => void;
}

export function Action<T = unknown>(props: ActionProps<T>) {
  const { verb, fields = {}, label, of, ask, danger = false, primary = false, missing, done, after } = props;
  const [busy, setBusy] = useState(false);
  const why = useId();
  const refused = mayNot(verb) ?? missing ?? null;
  const run = async () => {
    const answer = await call<T>(verb, fields);
    say(done(answer));
    after?.(answer);
  };
  const start = () => {
    if (refused) return say(refused, true);
    if (ask) {
      question.value = { ...ask, verb, fields, danger, run };
      return;
    }
    setBusy(true);
    run()
      .catch((error: Error) => say(error.message, true))
      .finally(() => setBusy(false));
  };
  const look = danger ? "danger" : primary ? "primary" : "";
  return (
    <>
      <button
        type="button"
        class={look}
        data-verb={verb}
        aria-disabled={refused !== null || busy}
        title={refused ?? undefined}
        aria-describedby={refused ? why : undefined}
        onClick={start}
      >
        {label}
        {of !== undefined && <span class="unseen"> {shown(of)}</span>}
      </button>
      {refused && (
        <span id={why} class="unseen">
          {refused}
        </span>
      )}
    </>
  );
}

/** The question that stands, if one does. */
export function Asking() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const asked = question.value;
  const title = useId();
  const text = useId();
  useEffect(() => {
    setError(null);
    setBusy(false);
    if (asked && !dialog.current?.open) dialog.current?.showModal();
  }, [asked]);
  useEffect(() => {
    if (asked) return;
    dialog.current?.close();
    document.dispatchEvent(new Event(CLOSED));
  }, [asked]);
  if (!asked) return null;
  const close = () => {
    dialog.current?.close();
    question.value = null;
  };
  const confirm = () => {
    if (busy) return;
    setBusy(true);
    setError(null);
    const stands = () => question.value === asked;
    asked.run().then(
      () => stands() && close(),
      (failure: Error) => {
        if (!stands()) return say(`${asked.title} The server refuses: ${failure.message}`, true);
        setError(failure.message);
        setBusy(false);
      },
    );
  };
  return (
    <dialog ref={dialog} aria-labelledby={title} aria-describedby={text} onClose={() => (question.value = null)}>
      <h2 id={title}>{asked.title}</h2>
      <div id={text} class="stack">
        {asked.text}
      </div>
      <Command verb={asked.verb} fields={asked.fields} />
      {error && (
        <p class="refusal" role="alert">
          <strong>The server refuses:</strong> {shown(error)}
        </p>
      )}
      <div class="buttons">
        <button type="button" onClick={close} autofocus>
          Cancel
        </button>
        <button type="button" class={asked.danger ? "danger solid" : "primary"} aria-disabled={busy} onClick={confirm}>
          {asked.confirm}
        </button>
      </div>
    </dialog>
  );
}

/** Says to somebody what of a page is not for them. */
export function RoleNote({ verbs }: { verbs: string[] }) {
  const reasons = new Set(verbs.map(mayNot).filter((it) => it !== null));
  if (reasons.size === 0) return null;
  return <p class="note">Buttons with a dashed line are not for you. {[...reasons][0]}</p>;
}
