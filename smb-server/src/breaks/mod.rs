//! Telling clients what they are to give up: who is connected, and whether what they were told
//! arrived.

pub mod clients;
pub mod delivery;
