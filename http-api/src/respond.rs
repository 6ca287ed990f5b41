//! Answers: their headers are the same for all, and no name of anything is in one.

use std::convert::Infallible;

use bytes::Bytes;
use control_socket::Method;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use serde::Serialize;
use serde_json::json;

/// The body of an answer.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// An answer.
pub(crate) type Answer = Response<Body>;

/// Why there is no other answer.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The request is none that the call takes; why, in a line.
    Malformed(String),
    /// Who asks is not known.
    Unknown,
    /// Who asks may not do that.
    Forbidden(&'static str),
    /// There is no such call.
    NoCall,
    /// There is one for these methods.
    Otherwise(Vec<Method>),
    /// There is a file, which is only read.
    OnlyRead,
    /// The server does not do it; why, in a line.
    Refused(String),
    /// There is nothing of that name.
    Gone(&'static str),
    /// The body is longer than it may be.
    TooLong,
    /// The body is not said to be JSON.
    NotJson,
    /// Too often, or too many: so many seconds later it may be tried again.
    Later(u64),
    /// The server has failed.
    Failed,
}

impl Refusal {
    fn parts(self) -> (StatusCode, String) {
        match self {
            Self::Malformed(why) => (StatusCode::BAD_REQUEST, why),
            Self::Unknown => (StatusCode::UNAUTHORIZED, "show a token that is good".to_owned()),
            Self::Forbidden(why) => (StatusCode::FORBIDDEN, why.to_owned()),
            Self::NoCall => (StatusCode::NOT_FOUND, "there is no such call".to_owned()),
            Self::Otherwise(_) | Self::OnlyRead => {
                (StatusCode::METHOD_NOT_ALLOWED, "not by this method".to_owned())
            }
            Self::Refused(why) => (StatusCode::CONFLICT, why),
            Self::Gone(what) => (StatusCode::NOT_FOUND, what.to_owned()),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "the body is too long".to_owned()),
            Self::NotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body is to be application/json".to_owned(),
            ),
            Self::Later(seconds) => {
                (StatusCode::TOO_MANY_REQUESTS, format!("try again in {seconds} s"))
            }
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "the server has failed".to_owned()),
        }
    }

    /// The answer that says so.
    pub(crate) fn answer(self) -> Answer {
        let more = match &self {
            Self::Unknown => Some((header::WWW_AUTHENTICATE, "Bearer".to_owned())),
            Self::Otherwise(methods) => {
                let names: Vec<_> = methods.iter().map(|method| method.name()).collect();
                Some((header::ALLOW, names.join(", ")))
            }
            Self::OnlyRead => Some((header::ALLOW, "GET, HEAD".to_owned())),
            Self::Later(seconds) => Some((header::RETRY_AFTER, seconds.to_string())),
            _ => None,
        };
        let (status, message) = self.parts();
        let mut answer = value(&json!({ "error": { "message": message } }));
        *answer.status_mut() = status;
        if let Some((name, text)) = more
            && let Ok(text) = HeaderValue::from_str(&text)
        {
            answer.headers_mut().insert(name, text);
        }
        answer
    }
}

/// A body that is there as a whole.
pub(crate) fn whole(bytes: impl Into<Bytes>, kind: &'static str) -> Answer {
    with(Full::new(bytes.into()).boxed(), kind)
}

/// An answer with the headers that all have.
pub(crate) fn with(body: Body, kind: &'static str) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    for (name, text) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
    ] {
        headers.insert(name, HeaderValue::from_static(text));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}

/// A value as JSON.
pub(crate) fn value(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => whole(bytes, "application/json"),
        // Nothing that is answered has keys that are no strings.
        Err(_) => Refusal::Failed.answer(),
    }
}
