//! What the guest says on its console.

/// A line of the guest: a word and `key=value` pairs.
#[derive(Debug, Clone)]
pub struct Line(String);

impl Line {
    /// The last whole line that starts with `word`.
    #[must_use]
    pub fn last(text: &str, word: &str) -> Option<Self> {
        let end = text.rfind('\n')? + 1;
        let starts = |line: &&str| line.split(' ').next() == Some(word);
        text[..end].lines().rev().find(starts).map(|line| Self(line.trim().to_owned()))
    }

    /// The number of a key.
    ///
    /// # Panics
    /// If the line has no such key, or no number there: the guest and who reads it disagree.
    #[must_use]
    pub fn get(&self, key: &str) -> u64 {
        self.find(key).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The number of a key.
    ///
    /// # Errors
    /// A sentence for a person if the line has no such key, or no number there.
    pub fn find(&self, key: &str) -> Result<u64, String> {
        let value = self.0.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let number = value.and_then(|value| value.parse().ok());
        number.ok_or_else(|| format!("no {key} in {:?}", self.0))
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
