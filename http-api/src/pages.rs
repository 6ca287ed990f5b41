//! Files that a browser is given: what the console is made of. They are for everybody, as there is
//! nothing in them that is not in the program's packages.

use std::{
    io::Write,
    sync::{Arc, OnceLock},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::respond::{self, Answer, Refusal};

/// What a page may do: run and fetch what is here, and nothing else. Text becomes no markup
/// (Trusted Types): a browser refuses a script that tries.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// What a page asks of the machine that shows it: nothing.
const PERMISSIONS: &str = "camera=(), geolocation=(), microphone=(), payment=(), usb=()";

/// One file, with what is told of it.
#[derive(Debug)]
pub(crate) struct Page {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
    /// A weak tag (RFC 9110 8.8.3): the same whether it is compressed or not.
    tag: HeaderValue,
    packed: OnceLock<Bytes>,
}

/// The files, by their paths.
#[derive(Debug, Default)]
pub struct Pages(Vec<Arc<Page>>);

impl Pages {
    /// Files with their paths, media types and contents.
    pub fn new(
        files: impl IntoIterator<Item = (&'static str, &'static str, &'static [u8])>,
    ) -> Self {
        let page = |(path, kind, bytes)| {
            let hash = digest(&SHA256, bytes);
            let hash = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}"));
            let tag = HeaderValue::from_str(&format!("W/\"{}\"", hash.collect::<String>()));
            // Hexadecimal digits may stand in a header.
            let tag = tag.unwrap_or(HeaderValue::from_static("W/\"\""));
            Arc::new(Page { path, kind, bytes, tag, packed: OnceLock::new() })
        };
        Self(files.into_iter().map(page).collect())
    }

    pub(crate) fn find(&self, path: &str) -> Option<&Arc<Page>> {
        self.0.iter().find(|page| page.path == path)
    }
}

impl Page {
    /// The file, or that a browser has it already.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        method: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        if method != "GET" && method != "HEAD" {
            return Err(Refusal::OnlyRead);
        }
        let known = headers.get_all(header::IF_NONE_MATCH).iter();
        let mut answer = if known.filter_map(|it| it.to_str().ok()).any(|it| self.is(it)) {
            let mut answer = respond::whole(Bytes::new(), self.kind);
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            answer
        } else if takes_gzip(headers) {
            let mut answer = respond::whole(self.packed().await?, self.kind);
            let gzip = HeaderValue::from_static("gzip");
            answer.headers_mut().insert(header::CONTENT_ENCODING, gzip);
            answer
        } else {
            respond::whole(Bytes::from_static(self.bytes), self.kind)
        };
        let headers = answer.headers_mut();
        headers.insert(header::ETAG, self.tag.clone());
        for (name, text) in [
            // Kept, and asked for each time: an upgrade is seen at once.
            (header::CACHE_CONTROL, "no-cache"),
            (header::VARY, "Accept-Encoding"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
        ] {
            headers.insert(name, HeaderValue::from_static(text));
        }
        for (name, text) in
            [("permissions-policy", PERMISSIONS), ("cross-origin-opener-policy", "same-origin")]
        {
            headers.insert(name, HeaderValue::from_static(text));
        }
        Ok(answer)
    }

    /// Whether a list of tags names it (RFC 9110 13.1.2, weak comparison).
    fn is(&self, tags: &str) -> bool {
        let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let own = self.tag.to_str().map(bare).unwrap_or_default();
        tags.split(',').any(|tag| tag.trim() == "*" || bare(tag) == own)
    }

    /// It in the format gzip, which is made the first time, on a thread that may wait.
    async fn packed(self: &Arc<Self>) -> Result<Bytes, Refusal> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let page = self.clone();
        let pack = move || {
            // Once in a life, so as well as it goes.
            let packed = gzip(page.bytes).map(Bytes::from)?;
            Ok::<_, std::io::Error>(page.packed.get_or_init(|| packed).clone())
        };
        let packed = tokio::task::spawn_blocking(pack).await.map_err(|_| Refusal::Failed)?;
        packed.map_err(|_| Refusal::Failed)
    }
}

/// Whether `Accept-Encoding` has gzip and does not refuse it (RFC 9110 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = all.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let refused = weight.trim().strip_prefix("q=").and_then(|it| it.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && refused.is_none_or(|weight| weight > 0.0)
    })
}

/// Bytes in the format gzip (RFC 1952), without a name and a time.
fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(bytes)?;
    packed.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"a page, a page, and once more a page";

    fn plain_of(packed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut plain).unwrap();
        plain
    }

    fn headers(all: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        let value =
            |&(ref name, value)| (header::HeaderName::clone(name), HeaderValue::from_static(value));
        all.iter().map(value).collect()
    }

    #[tokio::test]
    async fn a_file_is_read_and_only_read() {
        let pages = Pages::new([("/", "text/html", TEXT)]);
        let page = pages.find("/").unwrap();
        assert!(pages.find("/nothing").is_none() && pages.find("").is_none());
        let plain = page.answer("GET", &headers(&[])).await.unwrap();
        assert_eq!(plain.status(), StatusCode::OK);
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        let tag = plain.headers()[header::ETAG].clone();
        assert_eq!(plain.into_body().collect().await.unwrap().to_bytes(), TEXT);
        let wanted = headers(&[(header::ACCEPT_ENCODING, "br, gzip;q=0.5")]);
        let packed = page.answer("HEAD", &wanted).await.unwrap();
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        assert_eq!(packed.headers()[header::ETAG], tag);
        let bytes = packed.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(plain_of(&bytes), TEXT);
        for method in ["POST", "PUT", "DELETE", "get"] {
            let refused = page.answer(method, &headers(&[])).await.unwrap_err().answer();
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD");
        }
        for (known, status) in [("*", 304), ("W/\"x\"", 200), ("", 200)] {
            let known = headers(&[(header::IF_NONE_MATCH, known)]);
            assert_eq!(page.answer("GET", &known).await.unwrap().status(), status);
        }
        let mut known = HeaderMap::new();
        known.insert(header::IF_NONE_MATCH, tag);
        let same = page.answer("GET", &known).await.unwrap();
        assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
        assert!(same.into_body().collect().await.unwrap().to_bytes().is_empty());
    }

    #[test]
    fn who_refuses_gzip_is_given_none() {
        for (wanted, takes) in [
            ("gzip", true),
            ("deflate, GZIP", true),
            ("gzip; q=0.1", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000, br", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(
                takes_gzip(&headers(&[(header::ACCEPT_ENCODING, wanted)])),
                takes,
                "{wanted}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(wanted in "[ -~]{0,40}", bytes: Vec<u8>) {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, header::HeaderValue::from_str(&wanted).unwrap());
            prop_assert!(!takes_gzip(&headers) || wanted.to_lowercase().contains("gzip"));
            prop_assert_eq!(plain_of(&gzip(&bytes).unwrap()), bytes);
        }
    }
}
