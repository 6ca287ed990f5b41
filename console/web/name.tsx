// Names come from others. They are shown as text, set apart from the direction of the text around them,
// and letters that would steer that stand as escapes.
import type { ComponentChildren } from "preact";

/** Controls, marks of direction, and letters that take no room (as `bulkhead` shows them, and some more). */
const STEERS = /[\p{Cc}\p{Zl}\p{Zp}\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]/gu;

/** A text as it may stand in an attribute or a message. */
export function shown(text: string): string {
  return text.replace(STEERS, (letter) => `\\u${(letter.codePointAt(0) ?? 0).toString(16).padStart(4, "0")}`);
}

/** A name among other text. */
export function Name({ of, mono }: { of: string; mono?: boolean }) {
  const parts: ComponentChildren[] = [];
  let from = 0;
  for (const found of of.matchAll(STEERS)) {
    parts.push(of.slice(from, found.index), <span class="escape">{shown(found[0])}</span>);
    from = found.index + found[0].length;
  }
  parts.push(of.slice(from));
  return <bdi class={mono ? "name mono" : "name"}>{of === "" ? "–" : parts}</bdi>;
}

/** Names one behind the other. */
export function Names({ of, none = "–" }: { of: string[]; none?: string }) {
  if (of.length === 0) return <span class="quiet">{none}</span>;
  return (
    <>
      {of.map((name, index) => (
        <>
          {index > 0 && ", "}
          <Name of={name} />
        </>
      ))}
    </>
  );
}
