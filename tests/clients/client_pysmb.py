"""pysmb. It has no option for the dialect, and does not encrypt."""

from smb.base import NotReadyError
from smb.SMBConnection import SMBConnection

from round_trip import Refused

MODES = [("its own", "signed")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.server, self.share, self.user = server, share, user
        self.smb = None

    def connect(self, password):
        signed = SMBConnection.SIGN_WHEN_SUPPORTED
        self.smb = SMBConnection(
            self.user, password, "here", self.server, use_ntlm_v2=True, sign_options=signed, is_direct_tcp=True
        )
        try:
            if not self.smb.connect(self.server, 445):
                raise Refused
        except NotReadyError as error:
            raise Refused from error
        if not self.smb.isUsingSMB2:
            raise AssertionError("SMB 1 was chosen")

    def names(self):
        return [entry.filename for entry in self.smb.listPath(self.share, "/")]

    def put(self, path, name):
        with open(path, "rb") as file:
            self.smb.storeFile(self.share, name, file, timeout=120)

    def get(self, name, path):
        with open(path, "wb") as file:
            self.smb.retrieveFile(self.share, name, file, timeout=120)

    def rename(self, old, new):
        self.smb.rename(self.share, old, new)

    def delete(self, name):
        self.smb.deleteFiles(self.share, name)

    def close(self):
        self.smb.close()
