"""Clients that others wrote, each on the same round trip at every dialect and protection it has.

    round_trip.py SERVER FOLDER [CLIENT...]

SERVER is the address of an SMB server at port 445 with the shares `vms` and `sealed` (encryption
required). FOLDER is a scratch folder of this machine. The user and the password are in SMB_USER and
SMB_PASSWORD. `--list` prints the names of the clients, but for libsmb2, which needs NEWEST.

A round trip lists the share, puts 64 MiB there and gets them back, sees them listed, renames (where the
client can), deletes, and is refused with a wrong password. Each runs in a process of its own, which is ended after fifteen
minutes. A line for each: client, dialect, protection, `ok` or `failed`, and why it failed.
"""

import hashlib
import importlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

LIMIT_SECONDS = 900
SIZE = 64 * 1024 * 1024
CLIENTS = [
    "smb2_crate",
    "smb_crate",
    "rclone",
    "pysmb",
    "smbprotocol",
    "aiosmb",
    "impacket",
    "smbmap",
    "smbclientng",
]


class Refused(Exception):
    """The server refused the logon."""


def pattern(path):
    """Fills a file with bytes that do not repeat."""
    block = hashlib.sha256(b"bulkhead").digest()
    with open(path, "wb") as file:
        for _ in range(SIZE // (1 << 20)):
            block = hashlib.sha256(block).digest()
            file.write(hashlib.shake_256(block).digest(1 << 20))


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def round_trip(client, folder):
    """The round trip; raises what goes wrong."""
    there, back = folder / "there", folder / "back"
    pattern(there)
    # Names of its own: what another run left behind is not met.
    own = uuid.uuid4().hex
    first, second = f"first-{own}.bin", f"second-{own}.bin"
    client.connect(os.environ["SMB_PASSWORD"])
    if first in client.names():
        raise AssertionError(f"{first} is there before it is put")
    client.put(there, first)
    if first not in client.names():
        raise AssertionError("what was put is not listed")
    client.get(first, back)
    if digest(there) != digest(back):
        raise AssertionError("what came back differs")
    last = first
    if hasattr(client, "rename"):
        last = second
        client.rename(first, second)
        names = client.names()
        if second not in names or first in names:
            raise AssertionError(f"after the rename there are {names}")
    client.delete(last)
    if last in client.names():
        raise AssertionError("what was deleted is listed")
    client.close()
    try:
        client.connect("not " + os.environ["SMB_PASSWORD"])
        client.names()
    except Refused:
        return
    raise AssertionError("a wrong password was let in")


def load(name):
    return importlib.import_module(f"client_{name}")


def one(server, folder, name, dialect, protection):
    """One cell, in this process."""
    share = "sealed" if protection == "encrypted" else "vms"
    client = load(name).Client(server, share, os.environ["SMB_USER"], dialect, protection, Path(folder))
    round_trip(client, Path(folder))


def cell(server, folder, name, dialect, protection):
    """One cell, in a process of its own; what it came to."""
    command = [sys.executable, __file__, "--one", server, folder, name, dialect, protection]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "failed", f"did not end within {LIMIT_SECONDS} s"
    if done.returncode == 0:
        return "ok", ""
    lines = done.stderr.strip().splitlines() or ["no message"]
    return "failed", lines[-1][:200]


def main():
    if sys.argv[1] == "--list":
        print("\n".join(CLIENTS))
        return
    if sys.argv[1] == "--one":
        one(*sys.argv[2:])
        return
    server, folder, *chosen = sys.argv[1:]
    for name in chosen or CLIENTS:
        for dialect, protection in load(name).MODES:
            outcome, why = cell(server, folder, name, dialect, protection)
            print("\t".join([name, dialect, protection, outcome, why]), flush=True)


if __name__ == "__main__":
    # The clients raise the Refused of the module, which that of the program is not.
    importlib.import_module("round_trip").main()
