//! `bulkhead describe`: completions for shells, and pages for man(1).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap_complete::Shell;

/// Arguments of `bulkhead describe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print what makes a shell complete words of this command.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages, one for each subcommand.
    Man {
        /// Folder for the pages; made if it is missing.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

/// Runs the subcommand, whose whole command line `command` is.
pub fn run(args: &Args, command: &clap::Command) -> anyhow::Result<()> {
    match &args.action {
        Action::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command.clone(), "bulkhead", &mut text);
            crate::say::write(format_args!("{}", String::from_utf8_lossy(&text)));
            Ok(())
        }
        Action::Man { out } => pages(command, out),
    }
}

fn pages(command: &clap::Command, folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write manual pages to {}", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(command.clone(), folder).with_context(failed)
}
