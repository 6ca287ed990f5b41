//! `[[dfs]]` tables: links of a stand-alone namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use smb_protocol::ntlm::users;
use volume::fs::path::RelPath;

use super::{Check, ConfigError, Share};
use crate::dfs::{Link, Namespace};

/// A link as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    path: String,
    targets: Vec<String>,
    #[serde(default = "half_an_hour")]
    ttl_seconds: u32,
}

fn half_an_hour() -> u32 {
    1800
}

/// Most targets of a link.
const TARGETS: usize = 32;

impl Check<'_> {
    /// Reads and checks the tables; gives the links of each share, folded.
    pub(super) fn namespaces(
        &self,
        sections: &[Section],
        shares: &BTreeMap<String, Arc<Share>>,
    ) -> Result<BTreeMap<String, Namespace>, ConfigError> {
        let mut all: BTreeMap<String, Namespace> = BTreeMap::new();
        for section in sections {
            let key = format!("dfs {:?}", section.path);
            let path = section.path.trim_start_matches('\\');
            let (share, link) = path.split_once('\\').unwrap_or((path, ""));
            let folded = users::fold(share);
            if !shares.contains_key(&folded) {
                return Err(self.bad(&key, format!("there is no share {share:?}")));
            }
            let parts = RelPath::parse(link).map(|path| path.parts().to_vec()).unwrap_or_default();
            if parts.is_empty() {
                return Err(self.bad(&key, "write it as \"\\\\share\\\\link\""));
            }
            if !(1..=TARGETS).contains(&section.targets.len()) {
                return Err(self.bad(&key, format!("give 1 to {TARGETS} targets")));
            }
            let mut targets = Vec::new();
            for target in &section.targets {
                let bare = target.trim_matches('\\');
                let whole =
                    bare.split('\\').count() >= 2 && bare.split('\\').all(|p| !p.is_empty());
                if !target.starts_with("\\\\") || !whole || bare.encode_utf16().count() > 1024 {
                    let text =
                        format!("target {target:?}: write it as \"\\\\\\\\server\\\\share\"");
                    return Err(self.bad(&key, text));
                }
                targets.push(format!("\\{bare}"));
            }
            let namespace = all.entry(folded).or_default();
            let link = Link { parts, targets, time_to_live: section.ttl_seconds };
            let one = Namespace { links: vec![link.clone()] };
            let clash = namespace.link(&link.parts).is_some()
                || namespace.links.iter().any(|other| one.link(&other.parts).is_some());
            if clash {
                return Err(self.bad(&key, "is another link, or one is below the other"));
            }
            namespace.links.push(link);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, String> {
        let head = "[server]\nlisten=['127.0.0.1:0']\nstate_dir='x'\n\
                    [[share]]\nname='Vms'\npath='/tmp'\n";
        let at = std::path::Path::new("/tmp/smbd.toml");
        Config::parse(&format!("{head}{text}"), at).map_err(|error| error.to_string())
    }

    #[test]
    fn links_are_read() {
        let text = "[[dfs]]\npath='\\vms\\a\\b'\ntargets=['\\\\one\\x','\\\\two\\x\\y']\n";
        let config = parse(text).unwrap();
        let link = config.namespaces["VMS"].link(&["A", "B", "c"]).unwrap();
        assert_eq!(link.targets, ["\\one\\x", "\\two\\x\\y"]);
        assert_eq!((link.parts.len(), link.time_to_live), (2, 1800));
    }

    #[test]
    fn what_cannot_be_a_link_is_refused() {
        let link = |path: &str, target: &str| {
            parse(&format!("[[dfs]]\npath='{path}'\ntargets=['{target}']\n"))
        };
        for (path, target, want) in [
            ("\\none\\a", "\\\\s\\x", "no share"),
            ("\\vms", "\\\\s\\x", "write it as"),
            ("\\vms\\..", "\\\\s\\x", "write it as"),
            ("\\vms\\a", "s\\x", "target"),
            ("\\vms\\a", "\\\\s", "target"),
        ] {
            let error = link(path, target).unwrap_err();
            assert!(error.contains(want), "{path} {target}: {error}");
        }
        let two = "[[dfs]]\npath='\\vms\\a'\ntargets=['\\\\s\\x']\n\
                   [[dfs]]\npath='\\vms\\A\\b'\ntargets=['\\\\s\\x']\n";
        assert!(parse(two).unwrap_err().contains("below"));
    }
}
