//! What comes from a browser: which page has sent it, and by which name it believes to speak to us.
//!
//! A browser says where a page is from that sends a call (Fetch 3.2 `Origin`, Fetch Metadata
//! `Sec-Fetch-Site`), and no page can change that. Calls are for the pages that are served here.

use http::{HeaderMap, header};

use crate::{door::Origin, respond::Refusal};

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    // What cannot be read is not what is looked for.
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

/// Refuses a request that says twice what it is judged by: who reads the first and who reads the last of
/// two would not read the same (RFC 9110 7.2 for `Host`).
pub(crate) fn once(headers: &HeaderMap) -> Result<(), Refusal> {
    let names = [header::HOST.as_str(), header::ORIGIN.as_str(), "sec-fetch-site", "authorization"];
    match names.into_iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        Some(name) => Err(Refusal::Malformed(format!("the header {name} stands there twice"))),
        None => Ok(()),
    }
}

/// Refuses another name than this machine's own at the local socket, which asks for no token.
///
/// The socket may be forwarded to a port of somebody's machine. A page elsewhere can have its own name
/// stand for that machine then (DNS rebinding), and would be one with the pages that are served here.
pub(crate) fn name(origin: &Origin, headers: &HeaderMap) -> Result<(), Refusal> {
    let Origin::Local(_) = origin else { return Ok(()) };
    let host = text(headers, header::HOST).unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    let own = ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| host.eq_ignore_ascii_case(own));
    if own { Ok(()) } else { Err(Refusal::Forbidden("this socket is reached as localhost only")) }
}

/// Refuses what a page sends that is not served here.
pub(crate) fn page(origin: &Origin, headers: &HeaderMap) -> Result<(), Refusal> {
    const FOREIGN: Refusal = Refusal::Forbidden("not from a page of somebody else");
    // `none`: a person has typed the address.
    if text(headers, "sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(FOREIGN);
    }
    let Some(sender) = text(headers, header::ORIGIN) else { return Ok(()) };
    let scheme = match origin {
        Origin::Local(_) => "http://",
        Origin::Remote(_) => "https://",
    };
    let host = text(headers, header::HOST).unwrap_or_default();
    let same = sender.strip_prefix(scheme).is_some_and(|it| it.eq_ignore_ascii_case(host));
    if same && !host.is_empty() { Ok(()) } else { Err(FOREIGN) }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::Caller;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair =
            |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        all.iter().map(pair).collect()
    }

    fn local() -> Origin {
        Origin::Local(Caller::local(0, "api.sock"))
    }

    fn remote() -> Origin {
        Origin::Remote([192, 0, 2, 1].into())
    }

    #[test]
    fn calls_are_for_pages_that_are_served_here() {
        for (headers, good) in [
            (headers(&[("host", "nas:8443")]), true),
            (headers(&[("host", "nas:8443"), ("origin", "https://nas:8443")]), true),
            (headers(&[("host", "NAS:8443"), ("origin", "https://nas:8443")]), true),
            (headers(&[("host", "nas:8443"), ("origin", "http://nas:8443")]), false),
            (headers(&[("host", "nas:8443"), ("origin", "https://nas")]), false),
            (headers(&[("host", "nas:8443"), ("origin", "https://nas:8443.example.com")]), false),
            (headers(&[("host", "nas:8443"), ("origin", "null")]), false),
            (headers(&[("host", "nas:8443"), ("origin", "")]), false),
            (headers(&[("origin", "https://")]), false),
            (headers(&[("host", "nas"), ("sec-fetch-site", "same-origin")]), true),
            (headers(&[("host", "nas"), ("sec-fetch-site", "none")]), true),
            (headers(&[("host", "nas"), ("sec-fetch-site", "same-site")]), false),
            (headers(&[("host", "nas"), ("sec-fetch-site", "cross-site")]), false),
        ] {
            assert_eq!(page(&remote(), &headers).is_ok(), good, "{headers:?}");
        }
        let tunnel = headers(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]);
        assert!(page(&local(), &tunnel).is_ok() && page(&remote(), &tunnel).is_err());
    }

    #[test]
    fn what_a_request_is_judged_by_stands_there_once() {
        let mut all =
            headers(&[("host", "nas:8443"), ("origin", "https://nas:8443"), ("accept", "a")]);
        all.append(header::ACCEPT, HeaderValue::from_static("b"));
        assert!(once(&all).is_ok() && once(&headers(&[])).is_ok());
        for name in ["host", "origin", "sec-fetch-site", "authorization"] {
            let mut twice = headers(&[("host", "nas:8443")]);
            let name = HeaderName::from_static(name);
            twice.insert(name.clone(), HeaderValue::from_static("x"));
            // The same twice as well: nobody honest sends it.
            twice.append(name, HeaderValue::from_static("x"));
            let refused = once(&twice).unwrap_err().answer();
            assert_eq!(refused.status(), http::StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn the_local_socket_has_the_name_of_this_machine_only() {
        for (host, good) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("127.0.0.1:1", true),
            ("[::1]", true),
            ("[::1]:8080", true),
            ("localhost.example.com", false),
            ("example.com:8080", false),
            ("localhost:x", false),
            ("", false),
        ] {
            assert_eq!(name(&local(), &headers(&[("host", host)])).is_ok(), good, "{host}");
            assert!(name(&remote(), &headers(&[("host", host)])).is_ok());
        }
        assert!(name(&local(), &headers(&[])).is_err());
    }

    proptest! {
        /// Whatever stands in the headers, only a page at the address that was asked for is one of ours.
        #[test]
        fn no_other_origin_is_taken(host in "[ -~]{0,12}", sender in "(https?://)?[ -~]{0,12}") {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(&host).unwrap());
            headers.insert(header::ORIGIN, HeaderValue::from_str(&sender).unwrap());
            let same = sender.to_lowercase() == format!("https://{}", host.to_lowercase());
            prop_assert_eq!(page(&remote(), &headers).is_ok(), same && !host.is_empty());
            let named = name(&local(), &headers).is_ok();
            let own = ["localhost", "127.0.0.1", "[::1]"];
            prop_assert!(!named || own.iter().any(|own| host.to_lowercase().starts_with(own)));
        }
    }
}
