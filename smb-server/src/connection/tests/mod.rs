//! What goes over a real socket, byte by byte, and over a pipe instead of one.

mod compounds;
mod compressed;
mod dropped;
mod logons;
mod negotiated;
mod over_memory;
mod over_rdma;
mod peer;
mod pipes;
mod protected;
