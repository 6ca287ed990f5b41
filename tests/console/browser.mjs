// What the journeys share: a browser, the console in it, and what must be true on every page.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

/** What the test has made: see tests/tests/console.rs. */
export const given = JSON.parse(process.env.BULKHEAD_CONSOLE_JOURNEY);

const require = createRequire(join(given.modules, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** How long something may take to appear. */
const PATIENCE = 20_000;

export const DESKTOP = { width: 1280, height: 860 };
export const PHONE = { width: 320, height: 680 };

mkdirSync(given.shots, { recursive: true });

/** Runs a journey with a browser of its own. */
export async function journey(work) {
  const browser = await chromium.launch({
    executablePath: given.browser,
    // Root has no sandbox; the pages are ours.
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
  });
  try {
    await work(browser);
  } finally {
    await browser.close();
  }
}

/** Opens the console in a tab, where nothing may go wrong that is not expected. */
export async function open(browser, { viewport = DESKTOP, scheme = "light", url = given.url } = {}) {
  const context = await browser.newContext({
    viewport,
    colorScheme: scheme,
    reducedMotion: "reduce",
    ignoreHTTPSErrors: true,
    locale: "en-GB",
  });
  context.setDefaultTimeout(PATIENCE);
  const wrong = [];
  const sent = [];
  const page = await context.newPage();
  await page.addInitScript(() => {
    globalThis.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
      globalThis.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`),
    );
  });
  page.on("pageerror", (error) => wrong.push(`a script failed: ${error.message}`));
  page.on("console", (message) => {
    // The browser itself tells of each answer that is a refusal.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) wrong.push(message.text());
  });
  page.on("request", (request) => {
    sent.push(`${request.method()} ${new URL(request.url()).pathname}`);
    if (new URL(request.url()).origin !== new URL(url).origin) wrong.push(`something was fetched from elsewhere: ${request.url()}`);
  });
  page.on("dialog", (dialog) => {
    wrong.push(`a dialog of the browser: ${dialog.message()}`);
    void dialog.dismiss();
  });
  await page.goto(url);
  return { page, context, sent, end: () => sound(page, wrong) };
}

/** Nothing has gone wrong, and no policy was violated. */
async function sound(page, wrong) {
  assert.deepEqual(await page.evaluate(() => globalThis.violations), [], "the policy of the page was violated");
  assert.deepEqual(wrong, []);
  await page.context().close();
}

/** Logs in, and comes to the page that was asked for. */
export async function logIn(page, role, title = "Overview") {
  await page.getByLabel("Name").fill(role);
  await page.getByLabel("Password").fill(`pw-${role}`);
  await page.getByRole("button", { name: "Log in" }).click();
  await heading(page, title);
}

/** Waits until nothing of a page is still to come. */
export async function settled(page) {
  await page.waitForFunction(() => !document.body.innerText.includes("Asking the server"));
}

/** Waits until a page is seen. */
export async function heading(page, name) {
  await page.getByRole("heading", { level: 1, name, exact: true }).waitFor();
}

/** Goes to a page by its place in the menu. */
export async function go(page, name, title = name) {
  const menu = page.getByRole("button", { name: "Menu" });
  if ((await menu.isVisible()) && (await menu.getAttribute("aria-expanded")) === "false") await menu.click();
  await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name, exact: true }).click();
  await heading(page, title);
}

/** A row of a list, by words in it. */
export function row(page, list, words) {
  return page.getByRole("table", { name: list }).getByRole("row").filter({ hasText: words });
}

/** Waits until the person is told so. */
export async function said(page, text) {
  await page.getByRole("status").filter({ hasText: text }).first().waitFor();
}

/** The command line that an open disclosure shows. */
export async function command(place) {
  await place.getByText("As a command").last().click();
  return (await place.locator(".command code").last().textContent()).replaceAll("\u00a0", " ");
}

/** A picture of the whole page; nothing on it may be wider than the screen. */
export async function picture(page, name) {
  await page.screenshot({ path: join(given.shots, `${name}.png`), fullPage: true });
  const [wide, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= width, `${name} is ${wide} px wide on a screen of ${width}`);
}

/** Nothing that keeps people with a screen reader, a keyboard or weak eyes from a page. */
export async function accessible(page, name) {
  // It is put into the page past the policy, as a debugger is, and reads only.
  const { violations } = await page.evaluate(`(() => {
    ${axe}
    return axe.run(document, { resultTypes: ["violations"] });
  })()`);
  const bad = violations.map((it) => `${it.impact} ${it.id}: ${it.help}: ${it.nodes.map((node) => node.html).join(" ")}`);
  assert.deepEqual(bad, [], `${name}: what axe finds`);
}
