//! Cross-crate tests: interop, crash, migration, conformance.
