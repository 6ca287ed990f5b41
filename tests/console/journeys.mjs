// Journeys through the console: `node journeys.mjs NAME`. Each is a test of tests/tests/console.rs,
// which starts a server, says where it is, and looks afterwards whether the server has done it.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, command, given, go, heading, journey, logIn, open, PHONE, picture, row, said, settled } from "./browser.mjs";

/** What is known of a token from outside: the status of a call with it. */
async function status(context, token) {
  const answer = await context.request.get(`${given.url}v1/whoami`, { headers: { Authorization: `Bearer ${token}` } });
  return answer.status();
}

function token(page) {
  return page.evaluate(() => JSON.parse(sessionStorage.getItem("bulkhead.token"))?.token ?? null);
}

const PLACES = [
  ["Overview"],
  ["Why is it slow?"],
  ["Shares"],
  ["Sessions"],
  ["Open files"],
  ["Locks"],
  ["iSCSI"],
  ["Cluster"],
  ["Changes"],
  ["Tokens"],
  ["Settings"],
];

const journeys = {
  /** A wrong password is said; the right one leads to the overview; the log-out revokes the token. */
  async login(browser) {
    const { page, context, end } = await open(browser);
    await heading(page, "Log in");
    await page.getByLabel("Name").fill("viewer");
    await page.getByLabel("Password").fill("guess");
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByRole("alert").filter({ hasText: "Name or password are not right." }).waitFor();
    await picture(page, "login-refused");
    await logIn(page, "viewer");
    await page.getByText("All is well").waitFor();
    await page.getByText("serves 5 shares").waitFor();
    assert.equal(await page.title(), "Overview · Bulkhead");
    assert.deepEqual(await context.cookies(), [], "there are no cookies");
    assert.equal(await page.evaluate(() => localStorage.length), 0);
    // Charts have something to show with the second look.
    await page.getByText("The charts begin").waitFor({ state: "detached" });
    assert.equal(await page.locator("canvas").count(), 9);
    for (const name of readdirSync(given.dist)) {
      const served = await context.request.get(given.url + (name === "index.html" ? "" : name));
      assert.ok((await served.body()).equals(readFileSync(join(given.dist, name))), `${name} is what the tree has`);
      assert.equal(served.headers()["content-encoding"], "gzip");
    }
    const shown = await token(page);
    assert.equal(await status(context, shown), 200);
    // Another tab of the browser knows nothing of it.
    const other = await context.newPage();
    await other.goto(given.url);
    await heading(other, "Log in");
    await page.reload();
    await heading(page, "Overview");
    await page.getByRole("button", { name: "Log out" }).click();
    await page.getByText("You are logged out.").waitFor();
    assert.equal(await token(page), null);
    assert.equal(await status(context, shown), 401, "the token is revoked");
    await end();
  },

  /** From the list of shares to who uses one, and the session of a client is cut. */
  async cut(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "operator");
    await go(page, "Shares");
    await row(page, "Shares", "vms").first().getByRole("link", { name: "vms" }).click();
    await heading(page, "vms");
    const session = row(page, "Sessions", given.user.toUpperCase());
    await session.getByRole("button", { name: /^Disconnect/ }).click();
    const dialog = page.getByRole("dialog", { name: "Disconnect this session?" });
    await dialog.getByText("what its programs had not written yet is lost").waitFor();
    assert.match(await command(dialog), /^bulkhead server disconnect --session [0-9a-f]+$/);
    await accessible(page, "the question");
    await picture(page, "share-disconnect");
    await dialog.getByRole("button", { name: "Disconnect" }).click();
    await said(page, "1 session ended.");
    await page.getByText("Nobody is connected to this share.").waitFor();
    await end();
  },

  /** A previous version is taken, and removed. */
  async versions(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "administrator");
    await page.goto(`${given.url}#/shares/versions/versions`);
    await heading(page, "versions");
    await page.getByText("There are none yet.").waitFor();
    await page.getByRole("button", { name: "Take one now" }).click();
    await said(page, "Taken: @GMT-");
    const taken = row(page, "Previous versions", "@GMT-");
    await taken.getByRole("button", { name: /^Remove/ }).click();
    const dialog = page.getByRole("dialog", { name: "Remove this previous version?" });
    assert.match(await command(dialog), /^bulkhead share snapshot versions --delete @GMT-[0-9.-]+$/);
    await accessible(page, "a previous version");
    await picture(page, "share-versions");
    await dialog.getByRole("button", { name: "Remove" }).click();
    await page.getByText("There are none yet.").waitFor();
    // A share that can have none says so in the server's words.
    await page.goto(`${given.url}#/shares/plain/versions`);
    await heading(page, "plain");
    await page.getByRole("button", { name: "Take one now" }).click();
    await said(page, "put the share on Btrfs");
    await end();
  },

  /** A token is made, works, and is revoked. */
  async tokens(browser) {
    const { page, context, end } = await open(browser);
    await logIn(page, "administrator");
    await go(page, "Tokens");
    await page.getByLabel("Good for, in hours").fill("24");
    await page.getByLabel("What it is for").fill("for <b>cron</b>");
    await page.getByRole("button", { name: "Make a token" }).click();
    await page.getByText("It is shown here and nowhere else").waitFor();
    const made = await page.locator(".secret").textContent();
    assert.equal(await status(context, made), 200);
    await page.getByRole("button", { name: "I have it" }).click();
    assert.equal(await page.getByText(made).count(), 0);
    const line = row(page, "Tokens", "for <b>cron</b>");
    await line.getByRole("button", { name: /^Revoke/ }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Revoke" }).click();
    await said(page, "is revoked");
    await line.waitFor({ state: "detached" });
    assert.equal(await status(context, made), 401);
    // What the server refuses is said in its words.
    await page.getByLabel("Good for, in hours").fill("87601");
    await page.getByRole("button", { name: "Make a token" }).click();
    await said(page, "a token is good for 1 to");
    await end();
  },

  /** Who holds a token that is good no more comes to the log-in, and is told why. */
  async expired(browser) {
    const guest = await open(browser);
    await logIn(guest.page, "operator");
    await go(guest.page, "Sessions");
    const { page, end } = await open(browser);
    await logIn(page, "administrator");
    await go(page, "Tokens");
    await row(page, "Tokens", "operator").first().getByRole("button", { name: /^Revoke/ }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Revoke" }).click();
    await said(page, "is revoked");
    await guest.page.getByText("Your session has ended: the token has expired or was revoked.").waitFor();
    await heading(guest.page, "Log in");
    assert.equal(await token(guest.page), null);
    await accessible(guest.page, "the log-in after a token's end");
    await logIn(guest.page, "operator", "Sessions");
    await guest.end();
    await end();
  },

  /** The configuration is read again: a new share is there, and a mistake is said. */
  async reload(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "administrator");
    await go(page, "Settings");
    await page.getByRole("button", { name: "Read the configuration again" }).click();
    await said(page, "The configuration is read, and in force.");
    await page.getByText("6 shares").click();
    await page.getByText("added-by-hand").first().waitFor();
    // Objects are declared, too: first what would be done, then it is done.
    await page.getByText("Declare shares, users and targets").click();
    await page.getByLabel("What there is to be").fill("{ no json");
    await page.getByRole("alert").filter({ hasText: "This is no JSON" }).waitFor();
    const share = { name: "declared", path: given.files, users: [given.user] };
    // What was asked about while something else stands there is not applied.
    let release;
    const released = new Promise((resolve) => (release = resolve));
    await page.route("**/v1/declared", (call) => released.then(() => call.continue()), { times: 1 });
    await page.getByLabel("What there is to be").fill(JSON.stringify({ share: [{ ...share, name: "before" }] }));
    await page.getByRole("button", { name: "Show what would change" }).click();
    await page.getByLabel("What there is to be").fill(JSON.stringify({ share: [share] }));
    release();
    await said(page, "1 object would change.");
    if (await page.getByRole("button", { name: "Apply", exact: true }).count()) {
      throw new Error("what nobody has looked at can be applied");
    }
    await page.getByRole("button", { name: "Show what would change" }).click();
    await row(page, "What would change", "declared").waitFor();
    await page.getByRole("button", { name: "Apply", exact: true }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Apply" }).click();
    await said(page, "It is so.");
    await go(page, "Shares");
    await row(page, "Shares", "declared").waitFor();
    await end();
  },

  /** Names are text: no markup, and nothing turns the text around them. */
  async hostile(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "administrator");
    await go(page, "Open files");
    await row(page, "Open files and folders", "&lt;b&gt; plain").waitFor();
    const turned = row(page, "Open files and folders", "fdp.exe");
    assert.match(await turned.locator("bdi").first().textContent(), /\\u202efdp\.exe/);
    await turned.getByRole("button", { name: /^Close/ }).click();
    await page.getByRole("dialog").getByText("\\u202e").waitFor();
    await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
    const steers = /[\u202a-\u202e\u2066-\u2069]/u;
    assert.doesNotMatch(await page.evaluate(() => document.body.innerText), steers);
    await picture(page, "open-files-hostile");
    await go(page, "Changes");
    await row(page, "Changes", "<script>alert(1)</script>\\u202e").first().waitFor();
    await page.getByText("Before and after").first().click();
    assert.doesNotMatch(await page.evaluate(() => document.body.innerText), steers);
    assert.equal(await page.locator("main script, main b").count(), 0);
    await end();
  },

  /** A viewer sees what an operator may do, and why they may not, and nothing is sent. */
  async viewer(browser) {
    const { page, sent, end } = await open(browser);
    await logIn(page, "viewer");
    await go(page, "Sessions");
    await page.getByText("This is for an operator or an administrator; you are a viewer.").first().waitFor();
    const button = row(page, "Sessions", given.user.toUpperCase()).getByRole("button", { name: /^Disconnect/ });
    assert.equal(await button.getAttribute("aria-disabled"), "true");
    await button.press("Enter");
    await said(page, "This is for an operator");
    assert.equal(await page.getByRole("dialog").count(), 0);
    await accessible(page, "sessions of a viewer");
    await go(page, "Changes");
    await page.getByText("An administrator can show you what was changed.").waitFor();
    await go(page, "Settings");
    await page.getByText("What is configured is shown to administrators.").waitFor();
    await page.getByRole("button", { name: "Read the configuration again" }).press("Enter");
    await said(page, "This is for an administrator; you are a viewer.");
    const changing = sent.filter((it) => !it.startsWith("GET ") && it !== "POST /v1/login");
    assert.deepEqual(changing, [], "nothing was sent that changes anything");
    await end();
  },

  /** The log-in, a list, a question and its end, by keyboard alone. */
  async keyboard(browser) {
    const { page, end } = await open(browser);
    await heading(page, "Log in");
    const press = async (...keys) => {
      for (const key of keys) await page.keyboard.press(key);
    };
    /** Goes on with Tab until something has the focus. */
    const reach = async (name) => {
      for (let steps = 0; steps < 60; steps++) {
        await press("Tab");
        const at = await page.evaluate(() => document.activeElement?.textContent?.trim() ?? "");
        if (at.startsWith(name)) return;
      }
      assert.fail(`${name} is not reached by keyboard`);
    };
    await page.locator("input[name=user]:focus").waitFor();
    await page.keyboard.type("operator");
    await press("Tab");
    await page.keyboard.type("pw-operator");
    await press("Enter");
    await heading(page, "Overview");
    await reach("Skip to the content");
    await press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement?.id), "main");
    await press("Shift+Tab");
    await page.locator("a:focus, button:focus").waitFor();
    await page.evaluate(() => document.querySelector(".skip").focus());
    await reach("Sessions");
    await press("Enter");
    await heading(page, "Sessions");
    // Who cannot see it is told where they are.
    assert.equal(await page.evaluate(() => document.activeElement?.tagName), "H1");
    await row(page, "Sessions", given.user.toUpperCase()).first().waitFor();
    await reach("Disconnect");
    await press("Enter");
    const dialog = page.getByRole("dialog");
    await dialog.waitFor();
    assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Cancel", "the harmless way is first");
    await press("Escape");
    await dialog.waitFor({ state: "detached" });
    assert.match(await page.evaluate(() => document.activeElement?.textContent ?? ""), /^Disconnect/, "the focus is back");
    await press("Enter");
    await dialog.waitFor();
    for (let steps = 0; (await page.evaluate(() => document.activeElement?.textContent)) !== "Disconnect"; steps++) {
      assert.ok(steps < 10, "the button in the question is reached");
      await press("Tab");
    }
    await press("Enter");
    await said(page, "1 session ended.");
    await end();
  },

  /** Every page, wide and narrow, light and dark: whole, readable, and with nothing for axe to find. */
  async pages(browser) {
    for (const [name, viewport] of [["desktop", undefined], ["phone", PHONE]]) {
      for (const scheme of ["light", "dark"]) {
        const { page, end } = await open(browser, { ...(viewport && { viewport }), scheme });
        await heading(page, "Log in");
        const seen = async (title) => {
          await accessible(page, `${title}, ${name}, ${scheme}`);
          await picture(page, `${title}-${name}-${scheme}`);
        };
        await seen("login");
        await logIn(page, "administrator");
        await page.getByText("The charts begin").waitFor({ state: "detached" });
        for (const [place] of PLACES) {
          await go(page, place);
          await settled(page);
          await seen(place.toLowerCase().replace("?", "").replaceAll(" ", "-"));
        }
        for (const part of ["use", "files", "versions", "mount"]) {
          await page.goto(`${given.url}#/shares/vms/${part}`);
          await heading(page, "vms");
          await page.getByRole("link", { name: /./ }).and(page.locator(".tabs [aria-current]")).waitFor();
          await settled(page);
          await seen(`share-${part}`);
        }
        await page.goto(`${given.url}#/nothing`);
        await heading(page, "No such page");
        await end();
      }
    }
  },

  /** An initiator's session is ended, and a LUN takes its new size. */
  async iscsi(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "operator");
    await go(page, "iSCSI");
    const lun = row(page, `LUNs of ${given.target}`, "0");
    await lun.getByRole("button", { name: /^Take new size/ }).last().click();
    const dialog = page.getByRole("dialog");
    assert.equal(await command(dialog), `bulkhead lun resize ${given.target} 0`);
    await dialog.getByRole("button", { name: "Take new size" }).click();
    await said(page, "The LUN has 32 MiB.");
    await row(page, "Sessions of initiators", "iqn.me").getByRole("button", { name: /^Disconnect/ }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Disconnect" }).click();
    await page.getByText("No initiator is logged in.").waitFor();
    await end();
  },

  /** A VM is started, moved to another host, and another made, renamed and forgotten. */
  async vms(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "operator", "Virtual machines");
    for (const name of ["Why is it slow?", "Changes", "Tokens", "Settings"]) {
      await go(page, name);
      await settled(page);
      await accessible(page, `host-${name.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`);
    }
    await go(page, "Virtual machines");
    const line = row(page, "Virtual machines", given.vm);
    await line.getByText("off").waitFor();
    await accessible(page, "vms");
    await line.getByRole("link", { name: given.vm }).click();
    await heading(page, given.vm);
    await page.getByRole("button", { name: `Start ${given.vm}` }).click();
    await said(page, `${given.vm} runs.`);
    await row(page, "Disks", "disk.raw").waitFor();
    await page.getByLabel("Move to the host").fill(given.to);
    await settled(page);
    await accessible(page, "vm");
    await page.getByRole("button", { name: `Move ${given.vm}` }).click();
    await said(page, `${given.vm} runs there.`);
    await go(page, "Virtual machines");
    await page.getByText("There is no VM yet.").waitFor();
    // Making one is not for an operator.
    assert.equal(await page.getByRole("button", { name: "Make it" }).getAttribute("aria-disabled"), "true");
    await end();
    const { page: other, end: ended } = await open(browser, { viewport: PHONE, scheme: "dark" });
    await logIn(other, "administrator", "Virtual machines");
    await other.getByLabel("Name").fill("made");
    await other.getByLabel("Memory in MiB").fill("64");
    await other.getByLabel("Disk that is there").fill(given.nowhere);
    await other.getByLabel("Starts by").selectOption("bios");
    await other.getByRole("button", { name: "Would it fit?" }).click();
    const fits = other.locator("section").filter({ hasText: "Make a VM" }).getByRole("status");
    await fits.waitFor();
    assert.match(await fits.innerText(), /cannot be used on this host/);
    await other.getByLabel("Disk that is there").fill(given.disk);
    await other.getByRole("button", { name: "Make it" }).click();
    await said(other, "made is made, and off.");
    await row(other, "Virtual machines", "made").getByRole("link", { name: "made" }).click();
    await other.getByLabel("CPUs", { exact: true }).fill("1");
    await other.getByRole("button", { name: "Change CPUs" }).click();
    await said(other, "It has them.");
    await accessible(other, "vm-phone");
    await other.getByLabel("Another name").fill("other");
    await other.getByRole("button", { name: "Rename made" }).click();
    await heading(other, "other");
    await other.getByRole("button", { name: "Forget other" }).click();
    const dialog = other.getByRole("dialog");
    assert.equal(await command(dialog), "bulkhead vm delete other");
    await dialog.getByRole("button", { name: "Forget it" }).click();
    await other.getByText("There is no VM yet.").waitFor();
    await ended();
  },

  /** A node is said to be down, and a client is told to go there; who is not there is not told. */
  async witness(browser) {
    const { page, end } = await open(browser);
    await logIn(page, "operator");
    await go(page, "Cluster");
    const node = row(page, "Nodes", "TWO");
    await node.getByRole("button", { name: /^Say it is down/ }).click();
    const dialog = page.getByRole("dialog", { name: "Tell clients that this node is down?" });
    assert.equal(await command(dialog), "bulkhead witness state TWO down");
    await dialog.getByRole("button", { name: "Say it is down" }).click();
    await said(page, "Clients are told that the node is down.");
    await node.getByText("■ down").waitFor();
    // A client that has gone meanwhile is still on the page.
    const client = { id: 1, client: "GONE", user: "X", version: 2, net_name: "FILES", share: "SO", address: "192.0.2.2", waiting: true };
    await page.route("**/v1/witness", async (route) => {
      const answer = await route.fetch();
      await route.fulfill({ response: answer, json: { ...(await answer.json()), clients: [client] } });
    });
    await page.getByLabel("Who").selectOption("client:GONE");
    await page.getByLabel("To the node or address").fill("TWO");
    await page.getByRole("button", { name: "Have them go" }).click();
    const move = page.getByRole("dialog");
    assert.equal(await command(move), "bulkhead witness move --client GONE TWO");
    await move.getByRole("button", { name: "Have them go" }).click();
    await page.getByText(given.gone).first().waitFor();
    await end();
  },

  /** Ten thousand sessions: a hundred are on the page, all are found, and numbers beyond 2^53 stay whole. */
  async many(browser) {
    const { page, end } = await open(browser);
    const session = (index) =>
      `{"id":${18446744073709541615n + BigInt(index)},"user":"USER${index}","clients":["192.0.2.1:${index}"],"transports":["tcp"],` +
      `"why_not_rdma":[null],"dialect":"3.1.1","encrypted":false,"signed":true,"shares":["VMS"],"opens":${index}}`;
    const list = `[${Array.from({ length: 10_000 }, (_, index) => session(index)).join(",")}]`;
    await page.route("**/v1/events/sessions", (route) =>
      route.fulfill({ contentType: "text/event-stream", body: `event: sessions\nid: 1\ndata: {"reply":"sessions","sessions":${list}}\n\n` }),
    );
    await logIn(page, "operator");
    await go(page, "Sessions");
    await page.getByText("10,000 rows").waitFor();
    const rows = page.getByRole("table", { name: "Sessions" }).getByRole("row");
    assert.equal(await rows.count(), 101);
    await page.getByRole("button", { name: "Next" }).click();
    await page.getByText("Page 2 of 100").waitFor();
    await page.getByRole("button", { name: "Opens" }).click();
    await page.getByRole("button", { name: "Opens" }).click();
    await page.getByLabel("Filter").fill("user9999");
    await page.getByText("1 of 10,000 rows").waitFor();
    await rows.last().getByRole("button", { name: /^Disconnect/ }).click();
    const dialog = page.getByRole("dialog");
    assert.equal(await command(dialog), `bulkhead server disconnect --session ${(18446744073709541615n + 9999n).toString(16)}`);
    let body = null;
    page.on("request", (request) => (body = request.url().endsWith("/v1/disconnect") ? request.postData() : body));
    await dialog.getByRole("button", { name: "Disconnect" }).click();
    await dialog.getByText("The server refuses:").waitFor();
    assert.equal(body, '{"target":{"session":18446744073709551614}}');
    await end();
  },

  /** At the server's own socket nobody logs in; by another name nobody is let in. */
  async socket(browser) {
    const { page, end } = await open(browser, { url: given.local });
    await heading(page, "Overview");
    await page.getByText("At the server's own socket").waitFor();
    await go(page, "Changes");
    await end();
  },
};

const name = process.argv[2];
assert.ok(journeys[name], `no journey ${name}`);
await journey(journeys[name]);
console.log(`arrived: ${name}`);
