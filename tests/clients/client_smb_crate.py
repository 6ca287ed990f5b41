"""The crate smb (smb-rs)."""

import functools

from steps import Steps

DIALECTS = ["2.0.2", "2.1", "3.0", "3.0.2", "3.1.1"]
MODES = [(dialect, "signed") for dialect in DIALECTS]
MODES += [(dialect, "encrypted") for dialect in DIALECTS if dialect.startswith("3")]
Client = functools.partial(Steps, "smb")
