// Lists that are kept fresh while somebody looks: by events where there are some, else by asking again.
import { useEffect, useRef, useState } from "preact/hooks";
import { call, CallError, follow } from "./api";
import type { Fields } from "./calls";
import { place } from "./session";

export interface Fresh<T> {
  value: T | null;
  error: string | null;
  /** Asks again at once. */
  again: () => void;
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
      signal.removeEventListener("abort", done);
      resolve();
    }
    function seen() {
      if (!document.hidden) done();
    }
    document.addEventListener("visibilitychange", seen);
    signal.addEventListener("abort", done);
  });
}

/** Does something now and so many seconds after it was done, while the page is seen. */
export function useEvery(interval: number, work: () => Promise<void>, key = ""): () => void {
  const turn = useRef<() => void>(() => {});
  useEffect(() => {
    const control = new AbortController();
    let busy = false;
    const once = async () => {
      if (busy) return;
      busy = true;
      await work().catch(() => {});
      busy = false;
    };
    turn.current = () => void once();
    void (async () => {
      while (!control.signal.aborted && place.value === "in") {
        if (!document.hidden) await once();
        await pause(interval * 1000, control.signal);
      }
    })();
    return () => control.abort();
  }, [interval, key]);
  return () => turn.current();
}

/** The answer of a call, asked for again every so many seconds. */
export function useCall<T>(verb: string, interval = 5, fields: Fields = {}, query = ""): Fresh<T> {
  const [value, setValue] = useState<T | null>(null);
  const [error, setError] = useState<string | null>(null);
  const key = verb + JSON.stringify(fields) + query;
  const current = useRef(key);
  current.current = key;
  const again = useEvery(
    interval,
    async () => {
      try {
        const answer = await call<T>(verb, fields, query);
        if (current.current !== key) return;
        setValue(answer);
        setError(null);
      } catch (failure) {
        setError((failure as Error).message);
      }
    },
    key,
  );
  return { value, error, again };
}

/** A list that the server tells of by events; asked for instead while it tells nobody more. */
export function useEvents<T>(verb: string): Fresh<T> {
  const [value, setValue] = useState<T | null>(null);
  const [error, setError] = useState<string | null>(null);
  const ask = async () => {
    setValue(await call<T>(verb));
    setError(null);
  };
  useEffect(() => {
    let control = new AbortController();
    const ended = new AbortController();
    // Nobody sees a hidden page, and streams are few.
    const hidden = () => {
      if (document.hidden) control.abort();
    };
    document.addEventListener("visibilitychange", hidden);
    void (async () => {
      while (!ended.signal.aborted && place.value === "in") {
        if (!document.hidden) {
          control = new AbortController();
          try {
            await follow<T>(verb, control.signal, (list) => {
              setValue(list);
              setError(null);
            });
          } catch (failure) {
            if (failure instanceof CallError && failure.status === 429) await ask().catch(() => {});
            else if (!control.signal.aborted) setError((failure as Error).message);
          }
        }
        await pause(2000, ended.signal);
      }
    })();
    return () => {
      document.removeEventListener("visibilitychange", hidden);
      ended.abort();
      control.abort();
    };
  }, [verb]);
  return { value, error, again: () => void ask().catch((failure: Error) => setError(failure.message)) };
}
