//! Blocking connections for load generators.
