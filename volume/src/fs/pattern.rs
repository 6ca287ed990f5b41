//! Wildcards of directory listings (MS-FSA 2.1.4.4).

use smb_protocol::name::fold_char;

/// Longest pattern, in units of UTF-16: that of a name (MS-FSCC 2.1.5).
const LONGEST: usize = 255;

/// A pattern, prepared for many matches.
#[derive(Debug, Clone)]
pub struct Pattern {
    given: String,
    text: Vec<char>,
}

impl Pattern {
    /// Prepares a pattern; an empty one matches everything. `None` for one that cannot mean any name:
    /// it is longer than names are, or has what separates names (MS-FSA 2.1.5.6.3).
    pub fn new(text: &str) -> Option<Self> {
        let given = if text.is_empty() { "*" } else { text };
        if given.encode_utf16().count() > LONGEST || given.contains(['\\', '/', ':']) {
            return None;
        }
        let mut text: Vec<char> = given.chars().map(fold_char).collect();
        // Several stars in a row mean what one means.
        text.dedup_by(|a, b| *a == '*' && *b == '*');
        Some(Self { given: given.to_owned(), text })
    }

    /// The pattern as it was given.
    pub fn text(&self) -> &str {
        &self.given
    }

    /// Whether the pattern is a plain name.
    pub fn is_plain(&self) -> bool {
        !self.text.iter().any(|c| "*?<>\"".contains(*c))
    }

    /// Whether `name` matches. Runs in time `pattern × name`.
    pub fn matches(&self, name: &str) -> bool {
        if self.text == ['*'] || self.given == "*.*" {
            return true;
        }
        let name: Vec<char> = name.chars().map(fold_char).collect();
        let last_dot = name.iter().rposition(|c| *c == '.');
        // states[j]: the pattern up to here matches the first j characters of the name.
        let mut states = vec![false; name.len() + 1];
        states[0] = true;
        for p in &self.text {
            let mut next = vec![false; name.len() + 1];
            match p {
                '*' => {
                    let mut seen = false;
                    for j in 0..=name.len() {
                        seen |= states[j];
                        next[j] = seen;
                    }
                }
                // DOS_STAR: anything up to the last dot, which it may take too; behind that, and in a
                // name without one, anything.
                '<' => {
                    let (mut before, mut behind) = (false, false);
                    for j in 0..=name.len() {
                        if last_dot.is_none_or(|dot| j > dot) {
                            behind |= states[j];
                        } else {
                            before |= states[j];
                        }
                        next[j] = behind || before && last_dot.is_none_or(|dot| j <= dot + 1);
                    }
                }
                // DOS_QM: one character, or none at a dot or the end.
                '>' => {
                    for j in 0..=name.len() {
                        if states[j] {
                            match name.get(j) {
                                None | Some('.') => next[j] = true,
                                Some(_) => next[j + 1] = true,
                            }
                        }
                    }
                }
                // DOS_DOT: a dot, or nothing at the end.
                '"' => {
                    for j in 0..=name.len() {
                        if states[j] {
                            match name.get(j) {
                                None => next[j] = true,
                                Some('.') => next[j + 1] = true,
                                Some(_) => {}
                            }
                        }
                    }
                }
                p => {
                    for j in 0..name.len() {
                        next[j + 1] = states[j] && (*p == '?' || *p == name[j]);
                    }
                }
            }
            states = next;
        }
        states[name.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards() {
        for (pattern, name, want) in [
            ("*", "a.b", true),
            ("*.VHDX", "disk.vhdx", true),
            ("*.vhdx", "disk.vhd", false),
            ("a?c", "ABC", true),
            ("a?c", "ac", false),
            ("<.txt", "a.b.txt", true),
            ("<txt", "a.b.txt", true),
            ("<", "plain", true),
            ("<", ".", true),
            ("<", "a.b", false),
            ("a.<", "a.b", true),
            ("c<html", "c.html", true),
            ("*.*", "plain", true),
            ("<\"*", "plain", true),
            (">>>.txt", "ab.txt", true),
            (">>>.txt", "abcd.txt", false),
            ("file\"", "file", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_is_no_longer_than_a_name() {
        assert!(Pattern::new(&"*".repeat(255)).is_some());
        assert!(Pattern::new(&"*".repeat(256)).is_none());
        for text in ["a\\*", "a/*", "a:*"] {
            assert!(Pattern::new(text).is_none(), "{text}");
        }
        // Characters beyond the first plane are two units.
        assert!(Pattern::new(&"\u{10400}".repeat(128)).is_none());
        assert_eq!(Pattern::new("a***b**c").unwrap().text.iter().collect::<String>(), "A*B*C");
    }

    /// The plain recursive definition of `*` and `?`.
    fn slow(pattern: &[char], name: &[char]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                slow(&pattern[1..], name) || (!name.is_empty() && slow(pattern, &name[1..]))
            }
            (Some('?'), Some(_)) => slow(&pattern[1..], &name[1..]),
            (Some(p), Some(n)) => p == n && slow(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    /// The rules as MS-FSA 2.1.4.4 and the field have them, one character after the other; `at` is
    /// where in the name we are and `dot` where its last dot is.
    fn means(pattern: &[char], name: &[char], at: usize, dot: Option<usize>) -> bool {
        let left = &name[at..];
        let Some((p, rest)) = pattern.split_first() else { return left.is_empty() };
        let on = |rest: &[char], by: usize| means(rest, name, at + by, dot);
        match (p, left.first()) {
            ('*', _) => (0..=left.len()).any(|by| on(rest, by)),
            ('<', _) => {
                let most = match dot {
                    Some(dot) if at <= dot => dot + 1 - at,
                    _ => left.len(),
                };
                (0..=most).any(|by| on(rest, by))
            }
            ('?', Some(_)) => on(rest, 1),
            ('>', Some('.') | None) => on(rest, 0),
            ('>', Some(_)) => on(rest, 1),
            ('"', Some('.')) => on(rest, 1),
            ('"', None) => on(rest, 0),
            (p, Some(n)) if p == n => on(rest, 1),
            _ => false,
        }
    }

    fn words(letters: &[char], most: usize) -> Vec<Vec<char>> {
        let mut all = vec![Vec::new()];
        let mut last = all.clone();
        for _ in 0..most {
            last = last
                .iter()
                .flat_map(|word: &Vec<char>| {
                    letters.iter().map(move |letter| [&word[..], &[*letter]].concat())
                })
                .collect();
            all.extend(last.clone());
        }
        all.split_off(1)
    }

    #[test]
    fn every_short_pattern_means_what_the_rules_say_of_every_short_name() {
        let names = words(&['A', 'B', '.'], 4);
        for pattern in words(&['A', '.', '*', '?', '<', '>', '"'], 4) {
            let text: String = pattern.iter().collect();
            let prepared = Pattern::new(&text).unwrap();
            for name in &names {
                let dot = name.iter().rposition(|c| *c == '.');
                let want = text == "*.*" || means(&pattern, name, 0, dot);
                let name: String = name.iter().collect();
                assert_eq!(prepared.matches(&name), want, "{text} {name}");
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[AB*?]{1,6}", name in "[AB]{0,7}") {
            let (p, n): (Vec<_>, Vec<_>) = (pattern.chars().collect(), name.chars().collect());
            prop_assert_eq!(Pattern::new(&pattern).unwrap().matches(&name), slow(&p, &n));
        }
    }
}
