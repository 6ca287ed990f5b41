"""smbprotocol: its high level, smbclient."""

import functools
import shutil

import smbclient
from smbprotocol import Dialects
from smbprotocol.connection import Connection
from smbprotocol.exceptions import LogonFailure

from round_trip import Refused

DIALECTS = {
    "2.0.2": Dialects.SMB_2_0_2,
    "2.1": Dialects.SMB_2_1_0,
    "3.0": Dialects.SMB_3_0_0,
    "3.0.2": Dialects.SMB_3_0_2,
    "3.1.1": Dialects.SMB_3_1_1,
}
MODES = [(dialect, "signed") for dialect in DIALECTS]
MODES += [(dialect, "encrypted") for dialect in DIALECTS if dialect.startswith("3")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.server, self.user, self.encrypt = server, user, protection == "encrypted"
        self.root = rf"\\{server}\{share}"
        # The high level has no option for the dialect.
        Connection.connect = functools.partialmethod(Connection.connect, DIALECTS[dialect])

    def connect(self, password):
        options = {"username": self.user, "password": password, "encrypt": self.encrypt}
        try:
            smbclient.register_session(self.server, **options)
        except LogonFailure as error:
            raise Refused from error

    def names(self):
        return smbclient.listdir(self.root)

    def put(self, path, name):
        with open(path, "rb") as here, smbclient.open_file(rf"{self.root}\{name}", mode="wb") as there:
            shutil.copyfileobj(here, there, 1 << 20)

    def get(self, name, path):
        with smbclient.open_file(rf"{self.root}\{name}", mode="rb") as there, open(path, "wb") as here:
            shutil.copyfileobj(there, here, 1 << 20)

    def rename(self, old, new):
        smbclient.rename(rf"{self.root}\{old}", rf"{self.root}\{new}")

    def delete(self, name):
        smbclient.remove(rf"{self.root}\{name}")

    def close(self):
        smbclient.reset_connection_cache()
