// Who uses the console: from a log-in to the log-out, or as the server's own user at its local socket.
import { computed, signal } from "@preact/signals";
import { call, CallError, showToken, whenUnknown } from "./api";
import { refusal } from "./calls";
import type { Role, TokenMade, WhoAmI } from "./types";

/** Where the token is kept, for as long as the tab is open. */
const KEPT = "bulkhead.token";

interface Kept {
  token: string;
  id: number;
  expires: number;
}

export type Place = "starting" | "out" | "in";

export const place = signal<Place>("starting");
export const me = signal<WhoAmI | null>(null);
/** Why one has to log in again. */
export const farewell = signal<string | null>(null);
/** Why it is not known yet who one is. */
export const held = signal<string | null>(null);
/** The token in use; none at the local socket. */
export const own = signal<Kept | null>(null);

/** Whether a VM host answers, and no file server. */
export const onVmHost = computed(() => me.value?.server === "Bulkhead VM host");

export const role = computed<Role>(() => me.value?.role ?? "viewer");

/** Why the user may not make a call; null if they may. */
export function mayNot(verb: string): string | null {
  return refusal(verb, role.value);
}

function keep(kept: Kept | null): void {
  own.value = kept;
  showToken(kept?.token ?? null);
  try {
    if (kept) sessionStorage.setItem(KEPT, JSON.stringify(kept));
    else sessionStorage.removeItem(KEPT);
  } catch {
    // A browser that keeps nothing for pages: the token is as old as the page.
  }
}

function kept(): Kept | null {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT) ?? "null") as Kept | null;
  } catch {
    return null;
  }
}

function leave(why: string | null): void {
  keep(null);
  me.value = null;
  farewell.value = why;
  place.value = "out";
}

/** Goes on with the token of this tab, or without one where the server asks for none. */
export async function start(): Promise<void> {
  keep(kept());
  whenUnknown(() => leave("Your session has ended: the token has expired or was revoked. Please log in again."));
  while (place.value === "starting") {
    try {
      me.value = await call<WhoAmI>("whoami");
      place.value = "in";
    } catch (error) {
      // Only a server that does not know the token ends what it is good for.
      if (error instanceof CallError && [401, 403].includes(error.status)) {
        if (place.value === "starting") leave(error.status === 403 ? error.message : null);
        return;
      }
      held.value = (error as Error).message;
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
}

/** Shows a password; fails with what to say to the person. */
export async function logIn(user: string, password: string, hours: number): Promise<void> {
  try {
    showToken(null);
    const { token, id, expires } = await call<TokenMade>("login", { user, password, hours });
    keep({ token, id, expires });
    me.value = await call<WhoAmI>("whoami");
  } catch (error) {
    if (error instanceof CallError && error.status === 401) {
      throw new CallError(401, "Name or password are not right.");
    }
    if (error instanceof CallError && error.status === 429) {
      throw new CallError(429, `Too many log-ins have failed: ${error.message}.`);
    }
    throw error;
  }
  farewell.value = null;
  place.value = "in";
}

/** Revokes the token, and forgets it. */
export async function logOut(): Promise<void> {
  const id = own.value?.id;
  let said = "You are logged out.";
  try {
    if (id !== undefined) await call("token-revoke", { id });
  } catch (error) {
    if (place.value === "in") {
      said = `This tab has forgotten the token, but the server has not revoked it: ${(error as Error).message}`;
    }
  }
  leave(said);
}
