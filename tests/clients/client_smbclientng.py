"""smbclient-ng, which stands on impacket; it has no option for the dialect and cannot rename there."""

import os
import subprocess
import sys

from round_trip import Refused

MODES = [("its own", "signed"), ("its own", "encrypted")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.server, self.share, self.user, self.folder = server, share, user, folder
        self.password = None

    def run(self, *commands):
        program = os.path.join(os.path.dirname(sys.executable), "smbclientng")
        login = ["-H", self.server, "-u", self.user, "-p", self.password]
        words = [word for command in (f"use {self.share}", *commands) for word in ("-C", command)]
        command = [program, "--no-colors", "-N", "-T", "30", *login, *words]
        home = {**os.environ, "HOME": str(self.folder)}
        done = subprocess.run(command, env=home, cwd=self.folder, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if "LOGON_FAILURE" in said:
            raise Refused(said)
        if done.returncode != 0 or "[error]" in said:
            raise AssertionError(f"{commands[0]}: {said.strip()}")
        return said

    def connect(self, password):
        self.password = password

    def names(self):
        return [line.split()[-1].rstrip("\\") for line in self.run("ls").splitlines() if line.split()]

    def put(self, path, name):
        here = os.path.join(self.folder, name)
        os.link(path, here)
        self.run(f"put {here}")
        os.unlink(here)

    def get(self, name, path):
        # Without that option it lays what it gets below the path of its working folder once more:
        # `ntpath.relpath` completes a relative path with that folder.
        self.run(f"get --dont-keep-remote-path {name}")
        os.rename(os.path.join(self.folder, name), path)

    def delete(self, name):
        self.run(f"rm {name}")

    def close(self):
        pass
