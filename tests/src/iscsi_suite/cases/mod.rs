//! The cases, by what of the specification they are about.

mod attributes;
mod chap;
mod commands;
mod connections;
mod data;
mod digests;
mod discovery;
mod functions;
mod keys;
mod login;
mod numbering;
mod recovery;
mod scsi;
mod sessions;
mod texts;

use super::{Case, Outcome, Subject};

/// All cases, in the order in which they are tried.
pub fn all() -> Vec<Case> {
    let groups = [
        keys::cases,
        texts::cases,
        login::cases,
        chap::cases,
        discovery::cases,
        numbering::cases,
        commands::cases,
        data::cases,
        functions::cases,
        attributes::cases,
        digests::cases,
        recovery::cases,
        sessions::cases,
        connections::cases,
        scsi::cases,
    ];
    groups.into_iter().flat_map(|group| group()).collect()
}

/// A case by name, section and function.
type Named = (&'static str, &'static str, fn(&Subject) -> Outcome);

fn named(list: &[Named]) -> Vec<Case> {
    list.iter().map(|(name, section, run)| Case::new(*name, section, *run)).collect()
}
