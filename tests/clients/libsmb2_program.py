"""One step with libsmb2: `DIALECT PROTECTION SERVER SHARE list|put|get|rename|delete NAME...`.

It runs in the folder of Debian's newest suite, whose python3 and libsmb2 it takes; content goes through standard
input and output. The user and the password are in SMB_USER and SMB_PASSWORD. Ends with 3 if the logon is refused.
"""

import ctypes
import os
import sys

REFUSED = 3
O_RDONLY, O_WRONLY_CREAT = os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_EXCL
NTLMSSP = 1
SIGNING_REQUIRED = 2
DIALECTS = {"2.0.2": 0x0202, "2.1": 0x0210, "3.0": 0x0300, "3.0.2": 0x0302, "3.1.1": 0x0311}

smb2 = ctypes.CDLL("libsmb2.so.6")
for name in ("smb2_init_context", "smb2_open", "smb2_opendir", "smb2_readdir"):
    getattr(smb2, name).restype = ctypes.c_void_p
smb2.smb2_get_error.restype = ctypes.c_char_p
for name in ("smb2_get_max_read_size", "smb2_get_max_write_size"):
    getattr(smb2, name).restype = ctypes.c_uint32


def fail(context, what):
    error = (smb2.smb2_get_error(context) or b"").decode(errors="replace")
    print(f"{what}: {error}", file=sys.stderr)
    sys.exit(REFUSED if "LOGON_FAILURE" in error else 1)


def connect(dialect, protection, server, share):
    context = ctypes.c_void_p(smb2.smb2_init_context())
    smb2.smb2_set_version(context, DIALECTS[dialect])
    smb2.smb2_set_security_mode(context, ctypes.c_uint16(SIGNING_REQUIRED))
    smb2.smb2_set_sign(context, 1)
    smb2.smb2_set_seal(context, int(protection == "encrypted"))
    smb2.smb2_set_authentication(context, NTLMSSP)
    user = os.environ["SMB_USER"].encode()
    smb2.smb2_set_user(context, user)
    smb2.smb2_set_password(context, os.environ["SMB_PASSWORD"].encode())
    if smb2.smb2_connect_share(context, server.encode(), share.encode(), user) != 0:
        fail(context, "connect")
    return context


def opened(context, name, flags):
    file = smb2.smb2_open(context, name.encode(), flags)
    if not file:
        fail(context, f"open {name}")
    return ctypes.c_void_p(file)


def names(context):
    folder = smb2.smb2_opendir(context, b"")
    if not folder:
        fail(context, "opendir")
    folder = ctypes.c_void_p(folder)
    # `struct smb2dirent` begins with the name.
    while entry := smb2.smb2_readdir(context, folder):
        print(ctypes.cast(entry, ctypes.POINTER(ctypes.c_char_p))[0].decode())
    smb2.smb2_closedir(context, folder)


def put(context, name):
    file = opened(context, name, O_WRONLY_CREAT)
    size = smb2.smb2_get_max_write_size(context)
    at = 0
    while piece := sys.stdin.buffer.read(size):
        while piece:
            done = smb2.smb2_pwrite(context, file, piece, len(piece), ctypes.c_uint64(at))
            if done <= 0:
                fail(context, "pwrite")
            piece, at = piece[done:], at + done
    if smb2.smb2_close(context, file) != 0:
        fail(context, "close")


def get(context, name):
    file = opened(context, name, O_RDONLY)
    size = smb2.smb2_get_max_read_size(context)
    buffer = ctypes.create_string_buffer(size)
    at = 0
    while done := smb2.smb2_pread(context, file, buffer, size, ctypes.c_uint64(at)):
        if done < 0:
            fail(context, "pread")
        sys.stdout.buffer.write(buffer[:done])
        at += done
    smb2.smb2_close(context, file)


def rename(context, old, new):
    if smb2.smb2_rename(context, old.encode(), new.encode()) != 0:
        fail(context, "rename")


def delete(context, name):
    if smb2.smb2_unlink(context, name.encode()) != 0:
        fail(context, "unlink")


def main():
    dialect, protection, server, share, step, *words = sys.argv[1:]
    context = connect(dialect, protection, server, share)
    {"list": names, "put": put, "get": get, "rename": rename, "delete": delete}[step](context, *words)
    sys.stdout.flush()
    smb2.smb2_disconnect_share(context)
    smb2.smb2_destroy_context(context)


main()
