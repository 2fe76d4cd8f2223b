//! What every request passes through and every answer carries: the names that this server goes by, and headers that keep browsers
//! from doing more than the page needs.

use super::failure::Failure;
use super::App;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, Ipv6Addr};

/// Refuses requests to a name that is not this server's: a page elsewhere whose name leads here (DNS rebinding) sends such ones.
pub async fn check_host(State(app): State<App>, request: Request, next: Next) -> Response {
    let host = match (request.headers().get(header::HOST), request.uri().host()) {
        (Some(host), _) => host.to_str().unwrap_or_default().to_owned(),
        (None, Some(host)) => host.to_owned(),
        (None, None) => String::new(),
    };
    if is_own(&host, &app.host_names) {
        return next.run(request).await;
    }
    let name = name_of(&host).chars().take(100).collect::<String>();
    let sentence = format!("this server is not called `{name}`; start it with --host-name {name} if it is to be");
    Failure::new(StatusCode::MISDIRECTED_REQUEST, crate::plain_text::value(&sentence)).into_response()
}

/// `name` or `name:port` without the port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && !is_bare_v6(host) =>
        {
            name
        }
        _ => host,
    }
}

fn is_bare_v6(host: &str) -> bool {
    host.parse::<Ipv6Addr>().is_ok()
}

/// Whether `host` is an address, this machine's own name for itself, or one of `names`. Only a name can be made to lead somewhere
/// else than it did.
fn is_own(host: &str, names: &[String]) -> bool {
    let name = name_of(host);
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// Refuses a body that says that it has more than `most` bytes before any of it is read, so that a client that asks first
/// (`Expect: 100-continue`) sends nothing.
pub async fn check_length(State(most): State<u64>, request: Request, next: Next) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match length.filter(|&length| length > most) {
        Some(length) => {
            let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let sentence = format!(
                "this is {:.1} GB, and the server takes at most {:.0} GB at a time; send it in parts",
                gigabytes(length),
                gigabytes(most)
            );
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, sentence).into_response()
        }
        None => next.run(request).await,
    }
}

/// Adds the headers of every answer.
pub async fn add_headers(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_data = ["/api/", "/gradio_api/"].iter().any(|begin| request.uri().path().starts_with(begin));
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, app.embedding.policy());
    if !app.embedding.is_allowed() {
        // For browsers that do not know the policy's frame-ancestors, which it would overrule.
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    if is_data && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_own_names_are_served_and_no_others() {
        let names = ["my-space.hf.space".to_owned()];
        for own in ["localhost", "LOCALHOST:7860", "127.0.0.1:1", "[::1]:7860", "192.168.0.4", "my-space.hf.space:443"]
        {
            assert!(is_own(own, &names), "{own}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example:7860",
            "127.0.0.1.evil.example",
            "",
            ":7860",
            "my-space.hf.space.evil",
        ] {
            assert!(!is_own(other, &names), "{other}");
        }
    }
}
