//! The page at `/`: files of HTML, style and script that need nothing from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::app::App;

/// Path, type and text of each file. The page names them relative to itself, so that a proxy may serve it below another path.
const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("../page/page.css")),
    ("/icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
    ("/api.js", SCRIPT, include_str!("../page/api.js")),
    ("/dom.js", SCRIPT, include_str!("../page/dom.js")),
    ("/markdown.js", SCRIPT, include_str!("../page/markdown.js")),
    ("/memory.js", SCRIPT, include_str!("../page/memory.js")),
    ("/page.js", SCRIPT, include_str!("../page/page.js")),
    ("/settings.js", SCRIPT, include_str!("../page/settings.js")),
    ("/tree.js", SCRIPT, include_str!("../page/tree.js")),
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Only files of this server run, and no text can become markup: trusted types forbid `innerHTML` and its like.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; \
                      base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

pub(crate) fn routes() -> Router<Arc<App>> {
    let router = Router::new().route("/favicon.ico", get(async || StatusCode::NO_CONTENT));
    FILES
        .iter()
        .fold(router, |router, &(path, kind, text)| router.route(path, get(async move || file(kind, text))))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
