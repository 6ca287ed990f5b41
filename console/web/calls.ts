// The one list of calls: where on the pages each one is, who may make it, and the verb of `bulkhead`.
import table from "./calls.json";
import type { Role, VmDefinition } from "./types";

export interface Call {
  verb: string;
  method: string;
  path: string;
  /** Who may make it; nobody in particular for null. */
  role: Role | null;
  pages: string[];
  /** The same on a command line, with fields in braces. */
  command: string | null;
}

export type Fields = Record<string, unknown>;

const ROLES: readonly Role[] = ["viewer", "operator", "administrator"];

export function callOf(verb: string): Call {
  const found = (table as Call[]).find((call) => call.verb === verb);
  if (!found) throw new Error(`no call ${verb}`);
  return found;
}

/** Why somebody of a role may not make a call; null if they may. */
export function refusal(verb: string, role: Role): string | null {
  const needed = callOf(verb).role;
  if (!needed || ROLES.indexOf(role) >= ROLES.indexOf(needed)) return null;
  return `This is for ${needed === "operator" ? "an operator or an administrator" : "an administrator"}; you are ${role === "viewer" ? "a viewer" : "an operator"}.`;
}

/** A word as a shell takes it. */
export function quoted(word: string): string {
  if (/^[A-Za-z0-9@%+=:,./_-]+$/.test(word)) return word;
  // Letters that a terminal would not show as they are stand as escapes (bash, zsh: $'…').
  if (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(word)) {
    const escape = (letter: string) => {
      if (letter === "\\" || letter === "'") return `\\${letter}`;
      if (!/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(letter)) return letter;
      return `\\U${(letter.codePointAt(0) ?? 0).toString(16).padStart(8, "0")}`;
    };
    return `$'${Array.from(word, escape).join("")}'`;
  }
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A number as the tool's tables name sessions and opens. */
export function hex(id: unknown): string {
  return BigInt(String(id)).toString(16);
}

/** An option with its value, which may begin like an option itself. */
export function valued(name: string, value: string): string {
  return value.startsWith("-") ? `${name}=${quoted(value)}` : `${name} ${quoted(value)}`;
}

/** What of a VM is another, as options of the tool. */
function changes(was: VmDefinition, is: VmDefinition): string {
  const words = [];
  if (was.memory_mib !== is.memory_mib) words.push(`--memory ${is.memory_mib}M`);
  if (was.vcpus !== is.vcpus) words.push(`--cpus ${is.vcpus}`);
  return words.join(" ");
}

/** What the tool has as options where the call has a structure. */
function option(name: string, fields: Fields): string {
  switch (name) {
    case "which": {
      const target = (fields.target ?? {}) as Record<string, unknown>;
      return Object.entries(target)
        .map(([kind, value]) => (kind === "user" || kind === "address" ? valued(`--${kind}`, String(value)) : `--${kind} ${hex(value)}`))
        .join(" ");
    }
    case "who":
      return ["client", "share"]
        .filter((kind) => fields[kind])
        .map((kind) => valued(`--${kind}`, String(fields[kind])))
        .join(" ");
    case "options":
      return ["plan", "cut", "prune", "force"].filter((flag) => fields[flag]).map((flag) => `--${flag}`).join(" ");
    case "file":
      return "storage.toml";
    case "out":
      return "my.token";
    case "vm":
      return "vm.toml";
    case "peer":
      return quoted(String((fields.options as Fields | undefined)?.to ?? ""));
    case "size":
      return `${String(fields.mib)}M`;
    case "decision":
      return fields.run ? "--run" : "--discard";
    case "changes":
      return changes(fields.was as VmDefinition, fields.definition as VmDefinition);
    default:
      return quoted(String(fields[name] ?? ""));
  }
}

/** Fields that are written as options, or as a name of the console's own. */
const STRUCTURED = ["which", "who", "options", "file", "out", "vm", "size", "decision", "changes"];

/** The command line that does the same. */
export function commandOf(verb: string, fields: Fields = {}): string | null {
  const { command } = callOf(verb);
  if (command === null) return null;
  const [words, places]: [string[], string[]] = [[], []];
  const template = command.split(" ");
  for (const [index, word] of template.entries()) {
    const name = /^\{(\w+)\}$/.exec(word)?.[1];
    const before = template[index - 1] ?? "";
    if (!name) words.push(word);
    else if (before.startsWith("--") && typeof fields[name] === "string") words.splice(-1, 1, valued(before, String(fields[name])));
    else if (before.startsWith("--") || STRUCTURED.includes(name)) words.push(option(name, fields));
    else {
      places.push(word);
      words.push(word);
    }
  }
  // What stands for itself and begins like an option comes behind all options, and after a sign.
  const values = places.map((word) => option(word.slice(1, -1), fields));
  const apart = values.some((value) => /^'?-/.test(value) || value.startsWith("$'-"));
  const line = words.map((word) => (places.includes(word) ? (apart ? "" : (values[places.indexOf(word)] ?? "")) : word));
  return [...line, ...(apart ? ["--", ...values] : [])].filter((word) => word !== "").join(" ");
}
