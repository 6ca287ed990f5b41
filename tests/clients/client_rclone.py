"""rclone, with its smb backend (go-smb2): the dialect is the highest that both know, and it encrypts
where the server asks for it."""

import os
import subprocess

from round_trip import Refused

MODES = [("its own", "signed"), ("its own", "encrypted")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.share, self.folder = share, folder
        self.environment = {
            **os.environ,
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_THERE_TYPE": "smb",
            "RCLONE_CONFIG_THERE_HOST": server,
            "RCLONE_CONFIG_THERE_USER": user,
        }

    def run(self, *words):
        command = ["rclone", "--retries", "1", "--low-level-retries", "1", *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if "logon is invalid" in done.stderr or "LOGON_FAILURE" in done.stderr:
            raise Refused(done.stderr)
        raise AssertionError(f"{words[0]}: {done.stderr.strip()}")

    def there(self, name=""):
        return f"there:{self.share}/{name}"

    def connect(self, password):
        self.environment["RCLONE_CONFIG_THERE_PASS"] = self.run("obscure", password).strip()

    def names(self):
        return [line.rstrip("/") for line in self.run("lsf", self.there()).splitlines()]

    def put(self, path, name):
        self.run("copyto", path, self.there(name))

    def get(self, name, path):
        self.run("copyto", self.there(name), path)

    def rename(self, old, new):
        self.run("moveto", self.there(old), self.there(new))

    def delete(self, name):
        self.run("deletefile", self.there(name))

    def close(self):
        pass
