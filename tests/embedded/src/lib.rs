//! Tests that use the daemons' code itself, and start servers within their own process.
//!
//! They stand apart so that a change of the server does not build the many tests anew that know it only as a
//! program.
