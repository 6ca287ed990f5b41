// What the console reckons and writes, module by module, without a browser: `node --test units.mjs`.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";

const { modules, sources } = JSON.parse(process.env.BULKHEAD_CONSOLE_UNITS);
const esbuild = createRequire(join(modules, "package.json"))("esbuild");
const names = ["calls", "format", "health", "json", "live", "metrics", "name"];
const built = await esbuild.build({
  stdin: { contents: names.map((it) => `export * as ${it} from "./web/${it}";`).join("\n"), resolveDir: sources },
  bundle: true,
  write: false,
  format: "esm",
  jsx: "automatic",
  jsxImportSource: "preact",
  nodePaths: [join(modules, "node_modules")],
});
globalThis.sessionStorage = { getItem: () => null };
const url = `data:text/javascript;base64,${Buffer.from(built.outputFiles[0].contents).toString("base64")}`;
const { calls, format, health, json, live, metrics, name } = await import(url);

test("whole numbers beyond 2^53 come and go unchanged, and no text is taken for one", () => {
  const text = '{"id":18446744073709551615,"a":[-1,12.5e3,0.12345678901234567890],"s":"9\\"99999999999999999","t":"12345678901234567890"}';
  const value = json.parse(text);
  assert.equal(value.id, "18446744073709551615");
  assert.deepEqual(value.a, [-1, 12500, 0.12345678901234568]);
  assert.equal(value.s, '9"99999999999999999');
  assert.equal(value.t, "12345678901234567890");
  assert.equal(json.write({ target: { session: new json.Whole(value.id) }, none: undefined, s: 'x"' }), '{"target":{"session":18446744073709551615},"s":"x\\""}');
  for (const bad of ["", "-1", "1e3", "0x1", "1,2", "111111111111111111111"]) assert.throws(() => new json.Whole(bad), bad);
});

test("a command line is the same words in any shell", () => {
  assert.equal(calls.commandOf("snapshot-create", { share: "vms" }), "bulkhead share snapshot vms");
  assert.equal(calls.commandOf("snapshot-create", { share: "a b'c;$(x)" }), "bulkhead share snapshot 'a b'\\''c;$(x)'");
  assert.equal(calls.commandOf("snapshot-create", { share: "\u202ea'\n" }), "bulkhead share snapshot $'\\U0000202ea\\'\\U0000000a'");
  assert.equal(calls.commandOf("disconnect", { target: { session: new json.Whole("18446744073709551615") } }), "bulkhead server disconnect --session ffffffffffffffff");
  assert.equal(calls.commandOf("disconnect", { target: { user: "o'x" } }), "bulkhead server disconnect --user 'o'\\''x'");
  assert.equal(calls.commandOf("witness-move", { client: null, share: "vms", to: "n1" }), "bulkhead witness move --share vms n1");
  assert.equal(calls.commandOf("metrics"), null);
  assert.equal(calls.commandOf("snapshot-delete", { share: "vms", time: "@GMT-x" }), "bulkhead share snapshot vms --delete @GMT-x");
  assert.equal(calls.commandOf("witness-state", { node: "n1", state: "up" }), "bulkhead witness state n1 up");
  // What begins like an option is none.
  assert.equal(calls.commandOf("disconnect", { target: { user: "--all" } }), "bulkhead server disconnect --user=--all");
  assert.equal(calls.commandOf("snapshot-create", { share: "--list" }), "bulkhead share snapshot -- --list");
  assert.equal(calls.commandOf("snapshot-delete", { share: "-x y", time: "@GMT-x" }), "bulkhead share snapshot --delete @GMT-x -- '-x y'");
  assert.equal(calls.commandOf("witness-state", { node: "-n", state: "up" }), "bulkhead witness state -- -n up");
  assert.equal(calls.commandOf("witness-move", { client: "-c", share: null, to: "-t" }), "bulkhead witness move --client=-c -- -t");
  assert.equal(calls.commandOf("token-create", { hours: 12, role: "viewer", note: "-n" }), "bulkhead api token create --hours 12 --role viewer --note=-n --out my.token");
});

test("each role may make its calls", () => {
  assert.equal(calls.refusal("sessions", "viewer"), null);
  assert.match(calls.refusal("disconnect", "viewer"), /operator or an administrator; you are a viewer/);
  assert.equal(calls.refusal("disconnect", "operator"), null);
  assert.match(calls.refusal("reload", "operator"), /an administrator; you are an operator/);
  for (const verb of ["reload", "disconnect", "login"]) assert.equal(calls.refusal(verb, "administrator"), null);
});

const PAGE = `# TYPE bulkhead_smbd_share_operations counter
bulkhead_smbd_share_operations_total{share="a\\"b\\\\c\\nd",kind="read"} 100
bulkhead_smbd_share_operations_total{share="x",kind="read"} 20
bulkhead_smbd_request_seconds_bucket{kind="read",le="0.001"} 10
bulkhead_smbd_request_seconds_bucket{kind="read",le="0.002"} 10
bulkhead_smbd_request_seconds_bucket{kind="read",le="+Inf"} 10
bulkhead_smbd_uptime_seconds 50
# EOF`;

test("the page of metrics is read as the format says", () => {
  const page = metrics.parse(PAGE);
  assert.equal(metrics.sum(page, "bulkhead_smbd_share_operations_total", { kind: "read" }), 120);
  assert.equal(page.get("bulkhead_smbd_share_operations_total")[0].labels.share, 'a"b\\c\nd');
  assert.equal(metrics.sum(page, "bulkhead_nothing"), 0);
});

test("rates and times are those of what happened between two pages", () => {
  const before = metrics.parse(PAGE);
  const after = metrics.parse(PAGE.replace("} 100", "} 300").replace('le="0.001"} 10', 'le="0.001"} 60').replace('le="0.002"} 10', 'le="0.002"} 109').replace('"+Inf"} 10', '"+Inf"} 110'));
  const point = live.between(before, after, 2, 1000);
  assert.deepEqual(point.operations, [100, 0, 0]);
  assert.equal(point.latency[0], 0.001);
  assert.ok(Math.abs(point.latency[1] - 0.002) < 1e-9);
  // Nothing was asked, and a server that began anew.
  assert.deepEqual(live.between(after, after, 2, 0).latency, [null, null]);
  assert.deepEqual(live.between(after, before, 2, 0).operations, [60, 0, 0]);
});

test("alerts are raised by what happened of late, and by nothing else", () => {
  const old = PAGE.replace("seconds 50", "seconds 5000");
  const at = (time, more = "", page = old) => ({ time, metrics: metrics.parse(`${page}\n${more}`) });
  const severities = (pages) => health.alerts(pages).map((it) => it.severity);
  assert.deepEqual(severities([]), []);
  assert.deepEqual(severities([at(0)]), []);
  assert.deepEqual(severities([at(0), at(600)]), []);
  const counts = (forged, guesses) => `bulkhead_smbd_signature_refusals_total ${forged}\nbulkhead_api_failed_logins_total ${guesses}`;
  assert.deepEqual(severities([at(0, counts(0, 0)), at(60, counts(10, 20))]), [], "not more than the bounds");
  const raised = [at(0, counts(0, 0)), at(60, counts(11, 21))];
  assert.deepEqual(severities(raised), ["critical", "warning"]);
  assert.match(health.alerts(raised)[0].summary, /^11 requests came with a wrong signature/);
  // What is longer ago than the rules look is no alert any more, though the page is still open.
  assert.deepEqual(severities([...raised, at(500, counts(11, 21))]), ["critical", "warning"]);
  assert.deepEqual(severities([...raised, at(661, counts(11, 21))]), []);
});

test("a start of the server is told of, and many are worse", () => {
  const at = (time, up) => ({ time, metrics: metrics.parse(PAGE.replace("seconds 50", `seconds ${up}`)) });
  const said = (...pages) => health.alerts(pages).map((it) => [it.severity, it.summary]);
  assert.deepEqual(said(at(0, 5000), at(60, 5)), [["warning", "The server was started anew 5 seconds ago."]]);
  assert.deepEqual(said(at(0, 5)), [], "the first start that a page sees is none that somebody did not expect");
  assert.deepEqual(said(at(0, 5000), at(60, 5), at(120, 4), at(180, 3)), [["critical", "The server was started 3 times in a quarter of an hour."]]);
});

test("pages for alerts stand apart and are few", () => {
  let pages = [];
  for (let time = 0; time <= 4000; time += 2) pages = live.slid(pages, { time, metrics: new Map() });
  assert.equal(pages.at(-1).time, 4000);
  assert.ok(pages.length >= 29 && pages.length <= 35, `${pages.length}`);
  assert.ok(pages[0].time <= 4000 - live.WINDOW + 30 && pages[0].time >= 4000 - live.WINDOW - 60);
});

test("sentences say one and many", () => {
  const status = { name: "NAS\u202e", version: "1", uptime_s: 90061, shares: 1, connections: 1, sessions: 1, opens: 1, files: 1 };
  assert.deepEqual(health.sentences(status, null, []), [
    "NAS\\u202e serves 1 share and has run for 1 day and 1 hour (version 1).",
    "1 session on 1 connection has 1 file or folder open (1 open).",
  ]);
  assert.match(health.sentences({ ...status, sessions: 0, connections: 2 }, null, [])[1], /^Nobody is logged in; 2 clients are connected\.$/);
});

test("numbers and times are as people read them", () => {
  assert.deepEqual([0, 1023, 1536, "18446744073709551615"].map(format.bytes), ["0 B", "1,023 B", "1.5 KiB", "16,384 PiB"]);
  assert.deepEqual([0, 61, 3600, 90000].map(format.duration), ["0 seconds", "1 minute and 1 second", "1 hour", "1 day and 1 hour"]);
  assert.deepEqual([0, 5e-5, 0.0125, 2].map(format.seconds), ["0", "50 µs", "12.5 ms", "2 s"]);
  assert.equal(format.snapshotTime("@GMT-2026.11.21-00.38.05").toISOString(), "2026-11-21T00:38:05.000Z");
  assert.equal(format.snapshotTime("@GMT-x"), null);
});

test("letters that steer are shown as escapes", () => {
  assert.equal(name.shown("a\u202eb\u0007\u200b\u2066 ü 文 👩\u200d👩"), "a\\u202eb\\u0007\\u200b\\u2066 ü 文 👩\u200d👩");
});
