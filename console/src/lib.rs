//! The web console as it is in the daemons: the bundle in `console/dist`, which `console/build.mjs` makes
//! of the sources in `console/web`. It is in the tree, so that building them needs no Node; a test
//! holds that it is what the sources build.

/// Files of the bundle: where a browser asks for each, its media type, what is in it.
pub const FILES: [(&str, &str, &[u8]); 5] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../dist/index.html")),
    ("/console.js", "text/javascript; charset=utf-8", include_bytes!("../dist/console.js")),
    ("/console.css", "text/css; charset=utf-8", include_bytes!("../dist/console.css")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../dist/icon.svg")),
    // Licences of what others wrote and is in the bundle.
    ("/notices.txt", "text/plain; charset=utf-8", include_bytes!("../dist/notices.txt")),
];
