//! Where a differencing image says its parent is: up to eight locators, and a name in its header
//! (VHD specification, "Parent Locator" and "Parent Unicode Name").
//!
//! ```text
//!  W2ru  UTF-16, relative      Wi2r  bytes, relative (older)     MacX  a file URL (RFC 2396)
//!  W2ku  UTF-16, full path     Wi2k  bytes, full path (older)    Mac   an alias: known to Macs only
//! ```
//!
//! Programs write them as they please: a relative path where a full one belongs, slashes for backslashes,
//! a Windows path of a disk that was moved together with its parent. So each is tried for what it can
//! mean here. Whether what is found is the parent its identity tells, not its place.

/// A path relative to the image's folder, in UTF-16 of the little end first.
pub const RELATIVE: [u8; 4] = *b"W2ru";
/// A full path, likewise.
pub const ABSOLUTE: [u8; 4] = *b"W2ku";
const OLD_RELATIVE: [u8; 4] = *b"Wi2r";
const OLD_ABSOLUTE: [u8; 4] = *b"Wi2k";
const URL: [u8; 4] = *b"MacX";

/// Where an image says its parent is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParentPlaces {
    /// Paths relative to the image's folder, as they stand there.
    pub relative: Vec<String>,
    /// Full paths, as they stand there.
    pub absolute: Vec<String>,
    /// The name in the header.
    pub name: Option<String>,
}

impl ParentPlaces {
    /// Takes what a locator of this kind says. One of another kind says nothing here.
    pub(super) fn add(&mut self, platform: [u8; 4], bytes: &[u8]) {
        let wide = || {
            let units = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
            String::from_utf16_lossy(&units.collect::<Vec<_>>())
        };
        let narrow = || String::from_utf8_lossy(bytes).into_owned();
        let (list, path) = match platform {
            RELATIVE => (&mut self.relative, wide()),
            ABSOLUTE => (&mut self.absolute, wide()),
            OLD_RELATIVE => (&mut self.relative, narrow()),
            OLD_ABSOLUTE => (&mut self.absolute, narrow()),
            URL => match of_url(&narrow()) {
                Some(path) if path.starts_with('/') => (&mut self.absolute, path),
                Some(path) => (&mut self.relative, path),
                None => return,
            },
            _ => return,
        };
        let path = path.trim_end_matches('\0');
        if !path.is_empty() && !path.contains('\0') {
            list.push(path.to_owned());
        }
    }

    /// Paths from the image's folder at which the parent may be, the likeliest first, with slashes:
    /// what is said to be relative; a full path that is none; the last part of each, for a parent that
    /// was moved together with its child.
    pub fn beside(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut add = |path: String| {
            if !path.is_empty() && !found.contains(&path) {
                found.push(path);
            }
        };
        let slashed = |path: &String| path.replace('\\', "/");
        let relative = self.relative.iter().map(slashed).filter(|path| !is_full(path));
        relative.for_each(&mut add);
        let mistaken = self.absolute.iter().chain(&self.name).map(slashed);
        mistaken.filter(|path| !is_full(path)).for_each(&mut add);
        for path in self.relative.iter().chain(&self.absolute).chain(&self.name).map(slashed) {
            let last = path.rsplit(['/', ':']).next().unwrap_or_default();
            if last != ".." && last != "." {
                add(last.to_owned());
            }
        }
        found
    }
}

/// Whether a path begins at a root: of a system, of a drive, of a server.
fn is_full(path: &str) -> bool {
    path.starts_with('/') || path.as_bytes().get(1) == Some(&b':')
}

/// The path of a file URL: `file:///vm/a.vhd`, `file://localhost/vm/a.vhd`; XenServer wrote
/// `file://./a.vhd` for a file beside.
fn of_url(url: &str) -> Option<String> {
    let rest = url.trim_end_matches('\0').strip_prefix("file://")?;
    let rest = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    let mut bytes = Vec::with_capacity(rest.len());
    let mut left = rest.bytes();
    while let Some(byte) = left.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [left.next()?, left.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(locators: &[([u8; 4], &str)], name: &str) -> ParentPlaces {
        let mut places = ParentPlaces { name: Some(name.to_owned()), ..ParentPlaces::default() };
        for (platform, text) in locators {
            let wide = text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
            let is_wide = platform.starts_with(b"W2");
            places.add(*platform, if is_wide { &wide } else { text.as_bytes() });
        }
        places
    }

    #[test]
    fn every_locator_is_taken_for_what_it_can_mean() {
        let beside = |platform: &[u8; 4], text: &str| of(&[(*platform, text)], "").beside();
        assert_eq!(beside(b"W2ru", r".\x\full.vhd"), ["./x/full.vhd", "full.vhd"]);
        assert_eq!(beside(b"W2ku", "../full.vhd"), ["../full.vhd", "full.vhd"]);
        assert_eq!(beside(b"W2ku", r"C:\vm\full.vhd"), ["full.vhd"]);
        assert_eq!(beside(b"W2ku", r"\\host\share\full.vhd"), ["full.vhd"]);
        assert_eq!(beside(b"Wi2r", r".\full.vhd"), ["./full.vhd", "full.vhd"]);
        assert_eq!(beside(b"Wi2k", r"C:\full.vhd"), ["full.vhd"]);
        assert_eq!(beside(b"MacX", "file://./a%20b.vhd"), ["./a b.vhd", "a b.vhd"]);
        assert_eq!(of(&[(*b"MacX", "file:///vm/full.vhd")], "").absolute, ["/vm/full.vhd"]);
        assert_eq!(of(&[(*b"MacX", "file://localhost/f.vhd")], "").absolute, ["/f.vhd"]);
        assert_eq!(of(&[], "full.vhd").beside(), ["full.vhd"]);
        for (platform, nothing) in
            [(b"MacX", "file://%zz"), (b"MacX", "http://x/y"), (b"Mac ", "?")]
        {
            assert_eq!(beside(platform, nothing), [""; 0]);
        }
    }
}
