//! The endpoint that Prometheus reads: `GET /metrics` over HTTP/1.1, one request a connection,
//! nothing else. The page is in the text format of OpenMetrics. It shows counts only, but whoever can reach it can see them: bind it to
//! loopback or a management network.

use std::{fmt, io, sync::Arc, time::Duration};

use ::cluster::config::Config as ClusterConfig;
use metric_catalogue::{self as catalogue, CONTENT_TYPE, Page};
use smb_server::{Server, meters};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{control::Interface, iscsi::Iscsi, witness::Witness};

/// Longest head of a request.
const MAX_HEAD: usize = 8 << 10;
/// Readers at a time.
const READERS: usize = 8;
/// How long a reader has.
const LIMIT: Duration = Duration::from_secs(10);

/// What a page tells of beside the file server.
#[derive(Default)]
pub struct Sources {
    /// Targets and their LUNs.
    pub targets: Option<Arc<Iscsi>>,
    /// Clients of the witness service.
    pub witness: Option<Arc<Witness>>,
    /// The role of a cluster that is served, and the name of this node.
    pub role: Option<(String, String)>,
    /// The control interface.
    pub interface: Interface,
}

impl fmt::Debug for Sources {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sources").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Sources {
    /// The role that a server of a cluster serves, with the name of its node.
    pub fn role(of: Option<&(String, ClusterConfig)>) -> Option<(String, String)> {
        of.map(|(role, cluster)| (role.clone(), cluster.node_name.clone()))
    }
}

/// The page as things are now.
pub fn page(server: &Server, sources: &Sources) -> String {
    let mut page = Page::default();
    meters::show(server, &mut page);
    if let Some(targets) = &sources.targets {
        targets.show(&mut page);
    }
    if let Some(witness) = &sources.witness {
        let registrations = witness.registrations().len();
        page.gauge(&catalogue::WITNESS_REGISTRATIONS, &[], registrations);
    }
    if let Some((role, node)) = &sources.role {
        page.gauge(&catalogue::CLUSTER_ROLE, &[role, node], 1);
    }
    if let Some(interface) = sources.interface.get() {
        let counts = interface.counts();
        page.gauge(&catalogue::API_CONNECTIONS, &[], counts.connections);
        for (class, count) in
            [("done", counts.done), ("refused", counts.refused), ("failed", counts.failed)]
        {
            page.counter(&catalogue::API_REQUESTS, &[class], count);
        }
        page.counter(&catalogue::API_FAILED_LOGINS, &[], counts.failed_logins);
    }
    page.text()
}

/// Serves the endpoint for ever.
pub async fn serve(server: Arc<Server>, sources: Arc<Sources>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(READERS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (server, sources) = (server.clone(), sources.clone());
        tokio::spawn(async move {
            let answer = answer(&server, &sources, stream);
            let _ = tokio::time::timeout(LIMIT, answer).await;
            drop(permit);
        });
    }
}

async fn answer(server: &Server, sources: &Sources, mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let got = stream.read(&mut part).await?;
        if got == 0 || head.len() + got > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&part[..got]);
    }
    let text = respond(&head, || page(server, sources));
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// The answer to a request (RFC 9110): with HEAD what GET says of the page and not the page
/// (9.3.2); what is refused for its method names those that are not (15.5.6).
fn respond(head: &[u8], page: impl FnOnce() -> String) -> String {
    let (status, body) = judge(head, page);
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n\
         Content-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if !head.starts_with(b"HEAD ") {
        text.push_str(&body);
    }
    text
}

/// Status line and body for a request.
fn judge(head: &[u8], page: impl FnOnce() -> String) -> (&'static str, String) {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if !version.is_some_and(|version| version.starts_with(b"HTTP/1.")) {
        return ("400 Bad Request", "not HTTP/1\n".to_owned());
    }
    let path = target.unwrap_or_default().split(|byte| *byte == b'?').next();
    match (method, path) {
        (Some(b"GET" | b"HEAD"), Some(b"/metrics")) => ("200 OK", page()),
        (Some(b"GET" | b"HEAD"), _) => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET and HEAD\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_is_served() {
        let page = || "page".to_owned();
        for (head, want) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/../x HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
        ] {
            let (status, body) = judge(head.as_bytes(), page);
            assert!(status.starts_with(want), "{head:?}: {status}");
            assert_eq!(body == "page", want == "200");
        }
    }

    #[test]
    fn head_says_what_get_would_and_a_refusal_names_the_methods() {
        let page = || "page".to_owned();
        let (get, head) = (
            respond(b"GET /metrics HTTP/1.1\r\n\r\n", page),
            respond(b"HEAD /metrics HTTP/1.1\r\n\r\n", page),
        );
        assert_eq!(get, format!("{head}page"));
        assert!(head.contains("\r\nContent-Length: 4\r\n") && !head.contains("Allow:"));
        let refused = respond(b"POST /metrics HTTP/1.1\r\n\r\n", page);
        assert!(refused.contains("\r\nAllow: GET, HEAD\r\n"), "{refused}");
    }
}
