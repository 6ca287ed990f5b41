// The frame around the pages: who one is, where one can go, and which page is seen.
import { signal } from "@preact/signals";
import { Asking } from "./action";
import { forget, look, EVERY } from "./live";
import { shown } from "./name";
import { useEvery } from "./poll";
import { route, to } from "./route";
import { Said } from "./say";
import { held, logOut, me, onVmHost, own, place } from "./session";
import { Page } from "./page";
import { Audit } from "./pages/audit";
import { Files, Locks } from "./pages/files";
import { Iscsi } from "./pages/iscsi";
import { LogIn } from "./pages/login";
import { Overview } from "./pages/overview";
import { Sessions } from "./pages/sessions";
import { HostSettings, Settings } from "./pages/settings";
import { Share } from "./pages/share";
import { Shares } from "./pages/shares";
import { Tokens } from "./pages/tokens";
import { Vm } from "./pages/vm";
import { Vms, VmWhy } from "./pages/vms";
import { Why } from "./pages/why";
import { Witness } from "./pages/witness";

/** Where one can go on a VM host. */
const HOST_PLACES = [
  ["", "Virtual machines"],
  ["why", "Why is it slow?"],
  ["changes", "Changes"],
  ["tokens", "Tokens"],
  ["settings", "Settings"],
] as const;

/** Where one can go on a file server. */
const PLACES = [
  ["", "Overview"],
  ["why", "Why is it slow?"],
  ["shares", "Shares"],
  ["sessions", "Sessions"],
  ["files", "Open files"],
  ["locks", "Locks"],
  ["iscsi", "iSCSI"],
  ["cluster", "Cluster"],
  ["changes", "Changes"],
  ["tokens", "Tokens"],
  ["settings", "Settings"],
] as const;

/** On a narrow screen the places fold away. */
const unfolded = signal(false);

function Seen() {
  const [first = "", name, part = ""] = route.value;
  if (onVmHost.value) {
    if (first === "") return <Vms />;
    if (first === "vms" && name) return <Vm key={name} name={name} />;
    if (first === "why") return <VmWhy />;
    if (first === "settings") return <HostSettings />;
    if (!HOST_PLACES.some(([path]) => path === first)) return <Nothing />;
  }
  switch (first) {
    case "":
      return <Overview />;
    case "why":
      return name ? <Why key={name} of={name} /> : <Why />;
    case "shares":
      return name ? <Share key={name} name={name} part={part} /> : <Shares />;
    case "sessions":
      return <Sessions />;
    case "files":
      return <Files />;
    case "locks":
      return <Locks />;
    case "iscsi":
      return <Iscsi />;
    case "cluster":
      return <Witness />;
    case "changes":
      return <Audit />;
    case "tokens":
      return <Tokens />;
    case "settings":
      return <Settings />;
    default:
      return <Nothing />;
  }
}

function Nothing() {
  return (
    <Page title="No such page">
      <div class="empty">
        <p>
          Nothing is at this address. <a href={to("")}>Go to the overview.</a>
        </p>
      </div>
    </Page>
  );
}

function Inside() {
  // A VM host has figures of its own on each page.
  useEvery(EVERY, async () => {
    if (!onVmHost.value) await look();
  });
  const at = route.value[0] ?? "";
  const leave = () => {
    forget();
    void logOut();
  };
  const skip = (event: Event) => {
    event.preventDefault();
    document.getElementById("main")?.focus();
  };
  return (
    <div class="frame">
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <header class="bar">
        <p class="brand">
          <img src="/icon.svg" alt="" width="24" height="24" /> Bulkhead
        </p>
        <button
          type="button"
          class="menu"
          aria-expanded={unfolded.value}
          aria-controls="places"
          onClick={() => (unfolded.value = !unfolded.value)}
        >
          Menu
        </button>
        <nav id="places" class={unfolded.value ? "open" : ""} aria-label="Pages">
          <ul>
            {(onVmHost.value ? HOST_PLACES : PLACES).map(([path, name]) => (
              <li>
                <a href={to(path)} aria-current={path === at ? "page" : undefined} onClick={() => (unfolded.value = false)}>
                  {name}
                </a>
              </li>
            ))}
          </ul>
          <div class="who">
            <p>
              <bdi>{shown(me.value?.user ?? "")}</bdi> <span class="quiet">{me.value?.role}</span>
            </p>
            {own.value ? (
              <button type="button" onClick={leave}>
                Log out
              </button>
            ) : (
              <p class="quiet small">At the server's own socket; nobody is logged in.</p>
            )}
          </div>
        </nav>
      </header>
      <main id="main" tabIndex={-1}>
        <Seen />
      </main>
      <Asking />
      <Said />
    </div>
  );
}

export function App() {
  switch (place.value) {
    case "starting":
      return (
        <p class="empty" role="status">
          {held.value ? `${shown(held.value)} …` : "Asking the server …"}
        </p>
      );
    case "out":
      return <LogIn />;
    case "in":
      return <Inside />;
  }
}
