// Calls of the control interface. Text of the server comes out as text and goes nowhere else.
import { callOf, type Fields } from "./calls";
import { parse, write } from "./json";

/** Why a call was not carried out: the server's own words, or that it cannot be reached. */
export class CallError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** How long the answer to a question may take, and to a change, in milliseconds. */
const PATIENCE = { GET: 10_000, other: 120_000, long: 3_600_000 };
/** Calls that last as long as what they ask for: a move, a guest that ends. */
const LONG = ["vm-move", "vm-stop"];
/** How long a followed list may be silent: the server says at least each 15 seconds that it is there. */
const SILENCE = 40_000;
const SILENT = "The server does not answer. The console tries again by itself.";

let token: string | null = null;
let onUnknown: () => void = () => {};

/** The token that is shown from now on. */
export function showToken(text: string | null): void {
  token = text;
}

/** What is done when the server does not know who asks. */
export function whenUnknown(then: () => void): void {
  onUnknown = then;
}

async function send(verb: string, fields: Fields, query: string, signal?: AbortSignal): Promise<Response> {
  const { method, path } = callOf(verb);
  const rest = { ...fields };
  const place = path.replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = String(rest[name]);
    delete rest[name];
    return encodeURIComponent(value).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
  });
  const headers: Record<string, string> = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  let body: string | null = null;
  if (Object.keys(rest).length > 0) {
    body = write(rest);
    headers["Content-Type"] = "application/json";
  }
  const shown = token;
  let answer: Response;
  try {
    answer = await fetch(place + query, {
      method,
      headers,
      body,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      signal: signal ?? AbortSignal.timeout(LONG.includes(verb) ? PATIENCE.long : method === "GET" ? PATIENCE.GET : PATIENCE.other),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    // Only questions are asked again; a change may have been made all the same.
    const silent = method === "GET" ? SILENT : "The server has not answered. Look whether it was done before you try again.";
    if ((error as Error).name === "TimeoutError") throw new CallError(0, silent);
    throw new CallError(0, "The server cannot be reached. The console tries again by itself.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401 && shown !== null && shown === token) onUnknown();
  throw new CallError(answer.status, await reason(answer));
}

/** The server's own words. */
async function reason(answer: Response): Promise<string> {
  try {
    const said = parse<{ error?: { message?: string } }>(await answer.text());
    if (said.error?.message) return said.error.message;
  } catch {
    // It is no answer of ours: the number must do.
  }
  return `The server answered ${answer.status}.`;
}

/** Makes a call, with fields for its path and its body. */
export async function call<T>(verb: string, fields: Fields = {}, query = ""): Promise<T> {
  return parse<T>(await text(await send(verb, fields, query)));
}

/** All of an answer's text. */
async function text(answer: Response): Promise<string> {
  try {
    return await answer.text();
  } catch {
    throw new CallError(0, SILENT);
  }
}

/** Reads what is no JSON. */
export async function page(verb: string): Promise<string> {
  return text(await send(verb, {}, ""));
}

/**
 * Follows a list by server-sent events until the signal ends it. EventSource can show no token, so the
 * stream is read here.
 */
export async function follow<T>(list: string, signal: AbortSignal, tell: (list: T) => void): Promise<void> {
  const control = new AbortController();
  const end = () => control.abort();
  signal.addEventListener("abort", end);
  let timer = setTimeout(end, SILENCE);
  try {
    await read(await send("events", { list }, "", control.signal), tell, () => {
      clearTimeout(timer);
      timer = setTimeout(end, SILENCE);
    });
  } catch (error) {
    throw control.signal.aborted && !signal.aborted ? new CallError(0, SILENT) : error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
  }
}

/** Reads a stream of events to its end; `heard` is told of each sign of life. */
async function read<T>(answer: Response, tell: (list: T) => void, heard: () => void): Promise<void> {
  const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  let pieces: string[] = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    pieces.push(value);
    // An event ends with an empty line, which may come in two pieces.
    if (!value.includes("\n")) continue;
    const events = pieces.join("").split("\n\n");
    pieces = [events.pop() ?? ""];
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) tell(parse<T>(data.slice(6)));
    }
  }
}
