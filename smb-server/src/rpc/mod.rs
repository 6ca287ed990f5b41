//! Remote procedures over named pipes on IPC$ (MS-RPCE 2.1.1.2).

pub mod accounts;
mod calendar;
pub mod call;
pub mod handles;
mod logon;
pub mod lsarpc;
pub mod pipe;
pub mod samr;
pub mod srvsvc;
pub mod wkssvc;
