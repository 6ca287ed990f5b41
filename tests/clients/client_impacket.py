"""impacket: SMBConnection. It encrypts where a share asks for it."""

from impacket.smb3structs import SMB2_DIALECT_002, SMB2_DIALECT_21, SMB2_DIALECT_30, SMB2_DIALECT_311
from impacket.smbconnection import SessionError, SMBConnection

from round_trip import Refused

DIALECTS = {"2.0.2": SMB2_DIALECT_002, "2.1": SMB2_DIALECT_21, "3.0": SMB2_DIALECT_30, "3.1.1": SMB2_DIALECT_311}
MODES = [(dialect, "signed") for dialect in DIALECTS] + [("3.0", "encrypted"), ("3.1.1", "encrypted")]


class Client:
    def __init__(self, server, share, user, dialect, protection, folder):
        self.server, self.share, self.user, self.dialect = server, share, user, DIALECTS[dialect]
        self.smb = None

    def connect(self, password):
        self.smb = SMBConnection(self.server, self.server, sess_port=445, preferredDialect=self.dialect)
        if self.smb.getDialect() != self.dialect:
            raise AssertionError(f"dialect {self.smb.getDialect():#x} was chosen")
        try:
            self.smb.login(self.user, password)
        except SessionError as error:
            if "LOGON_FAILURE" in str(error):
                raise Refused from error
            raise

    def names(self):
        return [entry.get_longname() for entry in self.smb.listPath(self.share, "*")]

    def put(self, path, name):
        with open(path, "rb") as file:
            self.smb.putFile(self.share, name, file.read)

    def get(self, name, path):
        with open(path, "wb") as file:
            self.smb.getFile(self.share, name, file.write)

    def rename(self, old, new):
        self.smb.rename(self.share, old, new)

    def delete(self, name):
        self.smb.deleteFile(self.share, name)

    def close(self):
        self.smb.logoff()
        self.smb.close()
