"""aiosmb. It has no option for encryption: at 3.x it encrypts with the cipher that the server agreed
to, and at 2.x it signs."""

import asyncio
from urllib.parse import quote

from aiosmb.commons.connection.factory import SMBConnectionFactory
from aiosmb.commons.interfaces.directory import SMBDirectory
from aiosmb.commons.interfaces.file import SMBFile

from round_trip import Refused

SCHEMES = {"2.0.2": "smb202", "2.1": "smb210", "3.0": "smb300", "3.0.2": "smb302", "3.1.1": "smb311"}
MODES = [("2.0.2", "signed"), ("2.1", "signed")]
MODES += [(dialect, "encrypted") for dialect in SCHEMES if dialect.startswith("3")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.server, self.share, self.user, self.scheme = server, share, user, SCHEMES[dialect]
        self.loop = asyncio.new_event_loop()
        self.smb = None

    def run(self, work):
        answer, error = self.loop.run_until_complete(work)
        if error is not None:
            raise error
        return answer

    def connect(self, password):
        url = f"{self.scheme}+ntlm-password://{self.user}:{quote(password)}@{self.server}/"
        self.smb = SMBConnectionFactory.from_url(url).get_connection()
        try:
            self.run(self.smb.login())
        except Exception as error:
            if "LOGON_FAILURE" in repr(error):
                raise Refused from error
            raise

    def unc(self, name):
        return rf"\\{self.server}\{self.share}\{name}"

    def names(self):
        async def collect():
            folder = SMBDirectory.from_uncpath(self.unc(""))
            names = []
            async for entry, _, error in folder.list_gen(self.smb):
                if error is not None:
                    return None, error
                names.append(entry.name)
            return names, None

        return self.run(collect())

    def put(self, path, name):
        async def store():
            file = SMBFile.from_uncpath(self.unc(name))
            _, error = await file.open(self.smb, "w")
            if error is not None:
                return None, error
            with open(path, "rb") as here:
                done = await file.write_buffer(here)
            await file.close()
            return done

        self.run(store())

    def get(self, name, path):
        async def fetch():
            file = SMBFile.from_uncpath(self.unc(name))
            _, error = await file.open(self.smb, "r")
            if error is not None:
                return None, error
            with open(path, "wb") as here:
                async for part, error in file.read_chunked():
                    if error is not None:
                        return None, error
                    if not part:
                        break
                    here.write(part)
            await file.close()
            return None, None

        self.run(fetch())

    def delete(self, name):
        self.run(SMBFile.delete_unc(self.smb, self.unc(name)))

    def close(self):
        self.loop.run_until_complete(self.smb.disconnect())
