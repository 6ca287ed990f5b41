// Makes the bundle: `node build.mjs [folder]`, into `dist` without a word. Same sources, same bytes.
//
// The modules may be elsewhere: BULKHEAD_CONSOLE_MODULES names the folder that has `node_modules`.
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = resolve(process.env.BULKHEAD_CONSOLE_MODULES ?? here);
const out = resolve(process.argv[2] ?? join(here, "dist"));
const esbuild = createRequire(join(modules, "package.json"))("esbuild");

await mkdir(out, { recursive: true });
const built = await esbuild.build({
  absWorkingDir: here,
  entryPoints: { console: "web/main.tsx" },
  outdir: out,
  bundle: true,
  write: false,
  format: "esm",
  target: ["es2022", "chrome111", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  charset: "utf8",
  // Licences of what is in it go along with it.
  legalComments: "inline",
  nodePaths: [join(modules, "node_modules")],
  define: { "process.env.NODE_ENV": '"production"' },
  logLevel: "warning",
});
for (const file of built.outputFiles) await writeFile(file.path, file.contents);
for (const name of ["index.html", "icon.svg"]) await copyFile(join(here, "web", name), join(out, name));

// Packages that became a part of the bundle keep their notices.
const notices = [];
for (const name of ["preact", "@preact/signals-core", "@preact/signals", "uplot"]) {
  const folder = join(modules, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const text = (await readFile(join(folder, "LICENSE"), "utf8")).trim();
  notices.push(`${name} ${version} (${license})\n\n${text}\n`);
}
await writeFile(join(out, "notices.txt"), notices.join("\n----\n\n"));
