//! What goes over a real socket, byte by byte.

mod dropped;
mod logons;
mod negotiated;
mod peer;
mod protected;
