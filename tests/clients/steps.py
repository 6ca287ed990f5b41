"""A round trip whose steps are runs of the program `rust-clients`, which is named by RUST_CLIENTS."""

import os
import subprocess

from round_trip import Refused

REFUSED = 3


class Steps:
    def __init__(self, crate, server, share, user, dialect, protection, folder):
        self.command = [os.environ["RUST_CLIENTS"], crate, dialect, protection, server, share]
        self.environment = dict(os.environ)

    def step(self, *words):
        command = [*self.command, *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode == REFUSED:
            raise Refused(done.stderr)
        if done.returncode != 0:
            raise AssertionError(f"{words[0]}: {done.stderr.strip()}")
        return done.stdout

    def connect(self, password):
        self.environment["SMB_PASSWORD"] = password

    def names(self):
        return self.step("list").splitlines()

    def put(self, path, name):
        self.step("put", path, name)

    def get(self, name, path):
        self.step("get", name, path)

    def rename(self, old, new):
        self.step("rename", old, new)

    def delete(self, name):
        self.step("delete", name)

    def close(self):
        pass
