//! The page: the files of `web/` inside the binary.

use super::failure::Failure;
use super::ids::hex;
use axum::http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use flate2::write::GzEncoder;
use flate2::Compression;
use rust_embed::{EmbeddedFile, RustEmbed};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

#[derive(RustEmbed)]
#[folder = "web/"]
struct Files;

/// The files by their path, compressed where that makes them smaller.
static COMPRESSED: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let compressed = |name: std::borrow::Cow<'static, str>| {
        let content = Files::get(&name)?.data;
        let bytes = gzip(&content)?;
        (bytes.len() < content.len()).then(|| (name.into_owned(), bytes))
    };
    Files::iter().filter_map(compressed).collect()
});

fn gzip(content: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).ok()?;
    encoder.finish().ok()
}

/// A file's type by its name; none for what the page has no use for.
fn content_type(name: &str) -> Option<&'static str> {
    Some(match name.rsplit('.').next()? {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "json" | "map" | "webmanifest" => "application/json",
        "txt" => "text/plain; charset=utf-8",
        _ => return None,
    })
}

/// `GET /` and every path that no other route has: a file of the page.
pub async fn file(uri: Uri, headers: HeaderMap) -> Response {
    let name = match uri.path() {
        "/" => "index.html",
        path => path.trim_start_matches('/'),
    };
    match (content_type(name), Files::get(name)) {
        (Some(kind), Some(file)) => answer(name, kind, file, &headers),
        _ => Failure::new(StatusCode::NOT_FOUND, "there is nothing at this address; the page is at /").into_response(),
    }
}

fn answer(name: &str, kind: &'static str, file: EmbeddedFile, headers: &HeaderMap) -> Response {
    let accepts = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(',').any(|one| one.trim().starts_with("gzip")))
    };
    let compressed = COMPRESSED.get(name).filter(|_| headers.get_all(ACCEPT_ENCODING).iter().any(accepts));
    let tag =
        format!("\"{}{}\"", &hex(&file.metadata.sha256_hash())[..32], if compressed.is_some() { "-gz" } else { "" });
    let is_known = headers.get(IF_NONE_MATCH).is_some_and(|known| known.to_str().is_ok_and(|text| text.contains(&tag)));
    let mut response = match (is_known, compressed) {
        (true, _) => StatusCode::NOT_MODIFIED.into_response(),
        (false, Some(bytes)) => ([(CONTENT_ENCODING, "gzip")], bytes.clone()).into_response(),
        (false, None) => file.data.into_owned().into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // Asked for again each time, and answered with "not modified": a new version of the server has a new page.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}
