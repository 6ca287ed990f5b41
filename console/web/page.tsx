// What all pages have: a heading that is read out when one comes to it, and how fresh the page is.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { shown } from "./name";

let arrived = false;

interface Props {
  title: string;
  /** Before the title: where one is. */
  above?: ComponentChildren;
  /** Below the title, in a sentence: what is seen here. */
  about?: ComponentChildren;
  error?: string | null;
  children: ComponentChildren;
}

export function Page({ title, above, about, error, children }: Props) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${shown(title)} · Bulkhead`;
    // The first page has been read out by itself.
    if (arrived) heading.current?.focus();
    arrived = true;
  }, [title]);
  return (
    <>
      <header class="title">
        {above}
        <h1 ref={heading} tabIndex={-1}>
          <bdi>{shown(title)}</bdi>
        </h1>
        {about && <p class="about">{about}</p>}
      </header>
      {error && (
        <p class="refusal" role="alert">
          {shown(error)}
        </p>
      )}
      {children}
    </>
  );
}

/** What stands where something has not come yet. */
export function Waiting() {
  return (
    <p class="empty" role="status">
      Asking the server …
    </p>
  );
}

/** A state in a word, with a mark for those who do not see the colour. */
export function Badge({ kind, children }: { kind: "good" | "warn" | "bad" | "plain"; children: ComponentChildren }) {
  const mark = { good: "●", warn: "▲", bad: "■", plain: "○" }[kind];
  return (
    <span class={`badge ${kind}`}>
      <span aria-hidden="true">{mark}</span> {children}
    </span>
  );
}

export function Card({ title, children, aside }: { title: string; children: ComponentChildren; aside?: ComponentChildren }) {
  return (
    <section class="card">
      <div class="head">
        <h2>{title}</h2>
        {aside}
      </div>
      {children}
    </section>
  );
}
