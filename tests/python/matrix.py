"""Every dialect, signing algorithm and cipher with the smbprotocol package.

    matrix.py PORT USER PASSWORD

Each combination logs in, writes a file, reads it back through a second open and deletes it.
Prints one line for each; ends with 1 if any failed.
"""

import os
import sys
import uuid

from smbprotocol import Dialects
from smbprotocol.connection import Ciphers, Connection, SigningAlgorithms
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FileAttributes,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    ShareAccess,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

PORT, USER, PASSWORD = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ANY = ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE


def open_file(tree, name, access, disposition, options=CreateOptions.FILE_NON_DIRECTORY_FILE):
    file = Open(tree, name)
    file.create(
        ImpersonationLevel.Impersonation,
        access,
        FileAttributes.FILE_ATTRIBUTE_NORMAL,
        ANY,
        disposition,
        options,
    )
    return file


def one(dialect, signing, cipher, encrypt):
    connection = Connection(uuid.uuid4(), "127.0.0.1", PORT, require_signing=True)
    connection.connect(
        dialect,
        timeout=30,
        preferred_encryption_algos=[cipher] if cipher else None,
        preferred_signing_algos=[signing] if signing is not None else None,
    )
    try:
        if connection.dialect != dialect:
            raise AssertionError(f"dialect {connection.dialect:#x} was chosen")
        if dialect == Dialects.SMB_3_1_1:
            if signing is not None and connection.signing_algorithm_id != signing:
                raise AssertionError(f"signs with {connection.signing_algorithm_id}")
            if cipher and connection.cipher_id != cipher:
                raise AssertionError(f"encrypts with {connection.cipher_id}")
        session = Session(
            connection, USER, PASSWORD, require_encryption=encrypt, auth_protocol="ntlm"
        )
        session.connect()
        if session.encrypt_data != encrypt:
            raise AssertionError(f"encryption is {session.encrypt_data}")
        tree = TreeConnect(session, r"\\127.0.0.1\vms")
        tree.connect()
        content = os.urandom(100_003)
        mask = FilePipePrinterAccessMask
        writer = open_file(tree, "file", mask.GENERIC_WRITE, CreateDisposition.FILE_OVERWRITE_IF)
        for at in range(0, len(content), 60_000):
            writer.write(content[at : at + 60_000], at)
        writer.flush()
        reader = open_file(tree, "file", mask.GENERIC_READ, CreateDisposition.FILE_OPEN)
        back = b"".join(
            reader.read(at, min(60_000, len(content) - at))
            for at in range(0, len(content), 60_000)
        )
        if back != content:
            raise AssertionError("other bytes came back")
        reader.close()
        writer.close()
        options = CreateOptions.FILE_NON_DIRECTORY_FILE | CreateOptions.FILE_DELETE_ON_CLOSE
        open_file(tree, "file", mask.DELETE, CreateDisposition.FILE_OPEN, options).close()
        tree.disconnect()
        session.disconnect()
    finally:
        connection.disconnect()


def combinations():
    for dialect in (Dialects.SMB_2_0_2, Dialects.SMB_2_1_0):
        yield dialect, None, None, False
    for dialect in (Dialects.SMB_3_0_0, Dialects.SMB_3_0_2):
        for encrypt in (False, True):
            yield dialect, None, None, encrypt
    signings = (
        SigningAlgorithms.HMAC_SHA256,
        SigningAlgorithms.AES_CMAC,
        SigningAlgorithms.AES_GMAC,
    )
    ciphers = (
        Ciphers.AES_128_CCM,
        Ciphers.AES_128_GCM,
        Ciphers.AES_256_CCM,
        Ciphers.AES_256_GCM,
    )
    for signing in signings:
        yield Dialects.SMB_3_1_1, signing, None, False
        for cipher in ciphers:
            yield Dialects.SMB_3_1_1, signing, cipher, True


failed = 0
for combination in combinations():
    dialect, signing, cipher, encrypt = combination
    label = f"dialect {dialect:#06x} signing {signing} cipher {cipher} encrypted {encrypt}"
    try:
        one(*combination)
        print(f"ok {label}", flush=True)
    except Exception as error:
        failed = 1
        print(f"FAILED {label}: {type(error).__name__}: {error}", flush=True)
sys.exit(failed)
