//! What goes over a real socket, byte by byte.

mod dropped;
mod peer;
