"""smbmap, which stands on impacket; it has no option for the dialect and cannot rename."""

import os
import re
import shutil
import subprocess
import sys

from round_trip import Refused

MODES = [("its own", "signed"), ("its own", "encrypted")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.server, self.share, self.user, self.folder = server, share, user, folder
        self.password = None

    def run(self, *words):
        program = os.path.join(os.path.dirname(sys.executable), "smbmap")
        login = ["-H", self.server, "-u", self.user, "-p", self.password]
        command = [program, "--no-banner", "--no-color", "--no-update", *login, *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if "Authentication error" in said or "LOGON_FAILURE" in said or "0 authenticated session" in said:
            raise Refused(said)
        if done.returncode != 0 or "[!]" in said:
            raise AssertionError(f"{words[0]}: {said.strip()}")
        return said

    def connect(self, password):
        self.password = password

    def names(self):
        lines = self.run("-s", self.share, "-r", self.share, "--no-write-check").splitlines()
        found = (re.match(r"\s+f[rw-]\S*\s.*:\d\d \d{4}\s+(\S.*)$", line) for line in lines)
        return [match.group(1).strip() for match in found if match]

    def put(self, path, name):
        self.run("--upload", path, f"{self.share}/{name}")

    def get(self, name, path):
        before = set(os.listdir(self.folder))
        self.run("--download", f"{self.share}/{name}")
        (new,) = set(os.listdir(self.folder)) - before
        shutil.move(os.path.join(self.folder, new), path)

    def delete(self, name):
        self.run("--delete", f"{self.share}/{name}", "--skip")

    def close(self):
        pass
