"""libsmb2, which Debian's newest suite alone has: in the folder of that suite, which NEWEST names."""

import os
import subprocess
from pathlib import Path

from round_trip import Refused

DIALECTS = ["2.0.2", "2.1", "3.0", "3.0.2", "3.1.1"]
MODES = [(dialect, "signed") for dialect in DIALECTS] + [(dialect, "encrypted") for dialect in DIALECTS[2:]]
PROGRAM = Path(__file__).with_name("libsmb2_program.py")
REFUSED = 3


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        program = PROGRAM.read_text()
        self.command = ["chroot", os.environ["NEWEST"], "python3", "-c", program, dialect, protection, server, share]
        self.environment = dict(os.environ)

    def step(self, *words, **streams):
        command = [*self.command, *words]
        streams = {"stdout": subprocess.PIPE, **streams}
        done = subprocess.run(command, env=self.environment, stderr=subprocess.PIPE, check=False, **streams)
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode == REFUSED:
            raise Refused(said)
        if done.returncode != 0:
            raise AssertionError(f"{words[0]}: {said or done.returncode}")
        return done.stdout

    def connect(self, password):
        self.environment["SMB_PASSWORD"] = password

    def names(self):
        return self.step("list").decode().splitlines()

    def put(self, path, name):
        with open(path, "rb") as file:
            self.step("put", name, stdin=file)

    def get(self, name, path):
        with open(path, "wb") as file:
            self.step("get", name, stdout=file)

    def rename(self, old, new):
        self.step("rename", old, new)

    def delete(self, name):
        self.step("delete", name)

    def close(self):
        pass
