//! `smb://[user@]host[:port]/share[/path]`.

use std::{fmt, str::FromStr};

/// Address of a share, or of a file on one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SmbUrl {
    /// User, if the address names one; `DOMAIN;user` and `DOMAIN\user` name a domain too.
    pub user: Option<String>,
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// TCP port, 445 if the address names none.
    pub port: u16,
    /// Name of the share.
    pub share: String,
    /// Path below the share with `\` between its parts; empty for the share itself.
    pub path: String,
}

/// The port of SMB over TCP.
pub const DEFAULT_PORT: u16 = 445;

/// Why a text is not an address. Texts with a password in them are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// The scheme is missing or another.
    #[error("an address of a share starts with smb://")]
    Scheme,
    /// A password stands in it.
    #[error(
        "a password must not stand in an address; use BULKHEAD_SMB_PASSWORD or a credentials file"
    )]
    Password,
    /// There is no host.
    #[error("the address names no host")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("{0:?} is not a port")]
    Port(String),
    /// There is no share.
    #[error("the address names no share")]
    Share,
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("the address is not well percent-encoded")]
    Encoding,
    /// A part of the path that cannot be a file name.
    #[error("{0:?} cannot be part of a path on a share")]
    Part(String),
}

impl SmbUrl {
    /// Whether a text is meant to be an address of a share and not a local path.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        text.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("smb://"))
    }
}

/// Whether `part` may stand between the separators of a path on a share (MS-FSCC 2.1.5).
pub(crate) fn is_path_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..")
        && part.encode_utf16().count() <= 255
        && !part.chars().any(|c| c.is_control() || "\"\\/:|<>*?".contains(c))
}

fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || {
                let digit = rest.next().and_then(|b| char::from(b).to_digit(16));
                digit.and_then(|d| u8::try_from(d).ok()).ok_or(UrlError::Encoding)
            };
            bytes.push(digit()? << 4 | digit()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Encoding)
}

fn encode(text: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$'()+,;=".contains(&byte) {
            write!(out, "{}", char::from(byte))?;
        } else {
            write!(out, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl FromStr for SmbUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if !Self::looks_like(text) {
            return Err(UrlError::Scheme);
        }
        let (authority, path) = text[6..].split_once('/').unwrap_or((&text[6..], ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => return Err(UrlError::Password),
            Some((user, host)) => (Some(decode(user)?).filter(|u| !u.is_empty()), host),
            None => (None, authority),
        };
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(UrlError::Host)?;
                (host.to_owned(), if port.is_empty() { None } else { port.strip_prefix(':') })
            }
            None => match host.split_once(':') {
                Some((host, port)) => (decode(host)?, Some(port)),
                None => (decode(host)?, None),
            },
        };
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(UrlError::Host);
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(text) => match text.parse() {
                Ok(port) if port != 0 && !text.starts_with('+') => port,
                _ => return Err(UrlError::Port(text.to_owned())),
            },
        };
        let mut parts = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let part = decode(part)?;
            if !is_path_part(&part) {
                return Err(UrlError::Part(part));
            }
            parts.push(part);
        }
        if parts.is_empty() {
            return Err(UrlError::Share);
        }
        let share = parts.remove(0);
        Ok(Self { user, host, port, share, path: parts.join("\\") })
    }
}

/// The address in its shortest form; it reads back as the same.
impl fmt::Display for SmbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("smb://")?;
        if let Some(user) = &self.user {
            encode(user, f)?;
            f.write_str("@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            encode(&self.host, f)?;
        }
        if self.port != DEFAULT_PORT {
            write!(f, ":{}", self.port)?;
        }
        f.write_str("/")?;
        encode(&self.share, f)?;
        for part in self.path.split('\\').filter(|part| !part.is_empty()) {
            f.write_str("/")?;
            encode(part, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> Result<SmbUrl, UrlError> {
        text.parse()
    }

    #[test]
    fn reads_what_it_should() {
        let full = url("smb://DOM;adm%40in@Server:14445/vms/a%20b/c.vhdx").unwrap();
        assert_eq!(full.user.as_deref(), Some("DOM;adm@in"));
        assert_eq!((&*full.host, full.port), ("Server", 14445));
        assert_eq!((&*full.share, &*full.path), ("vms", "a b\\c.vhdx"));
        let short = url("SMB://[::1]/vms/").unwrap();
        assert_eq!((short.user, &*short.host, short.port), (None, "::1", 445));
        assert_eq!((&*short.share, &*short.path), ("vms", ""));
    }

    #[test]
    fn refuses_what_it_should() {
        assert_eq!(url("http://a/b"), Err(UrlError::Scheme));
        assert_eq!(url("/srv/x"), Err(UrlError::Scheme));
        assert_eq!(url("smb://u:secret@h/s"), Err(UrlError::Password));
        assert_eq!(url("smb:///s"), Err(UrlError::Host));
        assert_eq!(url("smb://h"), Err(UrlError::Share));
        assert_eq!(url("smb://h:0/s"), Err(UrlError::Port("0".into())));
        assert_eq!(url("smb://h:99999/s"), Err(UrlError::Port("99999".into())));
        assert_eq!(url("smb://h/s/%2e%2e/x"), Err(UrlError::Part("..".into())));
        assert_eq!(url("smb://h/s/a%5cb"), Err(UrlError::Part("a\\b".into())));
        assert_eq!(url("smb://h/s/%zz"), Err(UrlError::Encoding));
        assert_eq!(url("smb://h/s/%ff"), Err(UrlError::Encoding));
        assert!(!UrlError::Password.to_string().contains("secret"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn printing_and_reading_agree(
            user in prop::option::of("[a-zäé @;%]{1,10}"),
            host in "[a-z][a-z0-9.-]{0,10}|[0-9a-f:]{2,8}::1",
            port in 1u16..,
            parts in prop::collection::vec("[^\\x00-\\x1f\\x7f-\\u{9f}\"\\\\/:|<>*?]{1,12}", 1..5),
        ) {
            prop_assume!(parts.iter().all(|part| is_path_part(part)));
            let one = SmbUrl {
                user, host, port,
                share: parts[0].clone(),
                path: parts[1..].join("\\"),
            };
            prop_assert_eq!(one.to_string().parse(), Ok(one));
        }

        #[test]
        fn reading_is_total(text in "(smb://)?\\PC{0,60}") {
            if let Ok(url) = text.parse::<SmbUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }
    }
}
