// The log-in: a name and a password for a token that this tab keeps.
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { farewell, logIn } from "../session";
import { Command } from "../action";

export function LogIn() {
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [user, setUser] = useState("");
  const name = useId();
  const password = useId();
  const hours = useId();
  const first = useRef<HTMLInputElement>(null);
  useEffect(() => {
    document.title = "Log in · Bulkhead";
    first.current?.focus();
  }, []);
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    if (busy) return;
    const form = new FormData(event.currentTarget as HTMLFormElement);
    setBusy(true);
    setError(null);
    logIn(user, String(form.get("password")), Number(form.get("hours"))).catch((failure: Error) => {
      setError(failure.message);
      setBusy(false);
    });
  };
  return (
    <main class="login" id="main">
      <div class="panel">
        <p class="brand">
          <img src="/icon.svg" alt="" width="28" height="28" /> Bulkhead
        </p>
        <h1>Log in</h1>
        <p class="about">
          To the file server at <bdi>{location.host}</bdi>.
        </p>
        {farewell.value && (
          <p class="note" role="status">
            {farewell.value}
          </p>
        )}
        <form onSubmit={submit}>
          <label for={name}>Name</label>
          <input
            id={name}
            ref={first}
            name="user"
            required
            autocomplete="username"
            autocapitalize="none"
            spellcheck={false}
            onInput={(event) => setUser(event.currentTarget.value)}
          />
          <label for={password}>Password</label>
          <input id={password} name="password" type="password" required autocomplete="current-password" />
          <label for={hours}>Stay logged in for</label>
          <select id={hours} name="hours">
            <option value="1">1 hour</option>
            <option value="12" selected>
              12 hours
            </option>
          </select>
          {error && (
            <p class="refusal" role="alert">
              {error}
            </p>
          )}
          <button type="submit" class="primary" aria-disabled={busy}>
            Log in
          </button>
        </form>
        <p class="quiet small">
          The users here are those of the control interface, not of shares: <code>bulkhead api user add</code> makes one.
        </p>
        <Command verb="login" fields={{ user: user || "NAME", hours: 12 }} />
      </div>
    </main>
  );
}
