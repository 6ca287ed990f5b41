"""The crate smb2: at 3.1.1 only; it encrypts where a share asks for it."""

import functools

from steps import Steps

MODES = [("3.1.1", "signed"), ("3.1.1", "encrypted")]
Client = functools.partial(Steps, "smb2")
