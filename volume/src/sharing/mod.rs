//! Files as all their openers see them: who may join, who must give up what, who is told.

pub mod caching;
pub mod file;
pub mod image;
pub mod links;
pub mod locks;
pub mod modes;
pub mod next_name;
pub(crate) mod openers;
pub mod watches;
