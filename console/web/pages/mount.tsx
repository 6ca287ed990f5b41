// How to mount a share, for people to copy.
import { useId, useState } from "preact/hooks";
import { Copy } from "../action";
import { quoted } from "../calls";
import { shown } from "../name";
import { Card } from "../page";
import { useCall } from "../poll";
import type { Status } from "../types";

const SMB = "445";

/** The port that clients use, by the addresses that the server listens on. */
function portOf(status: Status | undefined): string {
  const ports = (status?.listen ?? []).map((it) => it.slice(it.lastIndexOf(":") + 1));
  return ports.length === 0 || ports.includes(SMB) ? SMB : (ports[0] ?? SMB);
}

/** A word for PowerShell. */
function powershell(word: string): string {
  return `'${word.replaceAll("'", "''")}'`;
}

function Line({ name, text }: { name: string; text: string }) {
  return (
    <div class="recipe">
      <p>{name}</p>
      <div class="line">
        <code>
          <bdi>{shown(text)}</bdi>
        </code>
        <Copy text={text} what={name} />
      </div>
    </div>
  );
}

export function Mount({ share }: { share: string }) {
  const { value } = useCall<{ status: Status }>("status", 30);
  const [user, setUser] = useState("");
  const [host, setHost] = useState(location.hostname);
  const port = portOf(value?.status);
  const usual = port === SMB;
  const who = user || "USER";
  const box = useId();
  const where = useId();
  const linux = `//${host}/${share}`;
  const folder = `/mnt/${share.replace(/[^A-Za-z0-9._-]/g, "_")}`;
  const options = `username=${who},vers=3.1.1${usual ? "" : `,port=${port}`}`;
  const mac = `smb://${encodeURIComponent(who)}@${host}${usual ? "" : `:${port}`}/${encodeURIComponent(share)}`;
  return (
    <Card title="How to mount it">
      <div class="form">
        <label for={where}>Server, as clients know it</label>
        <input id={where} value={host} onInput={(event) => setHost(event.currentTarget.value)} />
        <label for={box}>User of the share</label>
        <input id={box} value={user} placeholder="USER" autocapitalize="none" spellcheck={false} onInput={(event) => setUser(event.currentTarget.value)} />
      </div>
      <h3>Windows</h3>
      {!usual && <p class="note">This server listens on port {port}. Windows 11 from version 24H2 on reaches other ports than 445, older ones do not.</p>}
      <Line
        name="PowerShell, as drive Z: (asks for the password)"
text={`net use Z: ${powershell(`\\\\${host}\\${share}`)} /user:${powershell(who)} /persistent:yes${usual ? "" : ` /tcpport:${port}`}`}
      />
      {usual && <Line name="In the Explorer's address bar" text={`\\\\${host}\\${share}`} />}
      <h3>Linux</h3>
      <Line name="Once, as root (package cifs-utils)" text={`mkdir -p ${folder} && mount -t cifs ${quoted(linux)} ${folder} -o ${quoted(options)}`} />
      <Line
        name="At each start, a line of /etc/fstab; the password is in the file, at mode 0600"
        text={`${linux.replaceAll(" ", "\\040")} ${folder} cifs credentials=/etc/cifs-${share.replace(/[^A-Za-z0-9._-]/g, "_")},vers=3.1.1${usual ? "" : `,port=${port}`},_netdev,nofail 0 0`}
      />
      <Line name="Without mounting it" text={`smbclient ${quoted(linux)} ${usual ? "" : `-p ${port} `}${who.startsWith("-") ? `--user=${quoted(who)}` : `-U ${quoted(who)}`}`} />
      <h3>macOS</h3>
      <Line name="Finder, Go, Connect to Server (⌘K)" text={mac} />
      <Line name="In a terminal" text={`open ${quoted(mac)}`} />
    </Card>
  );
}
