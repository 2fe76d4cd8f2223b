//! Requests to a hub: where they go, what they carry, and which answers are taken.

use super::exchange::{Exchange, Head, Payload};
use super::failure::{Attempted, Failure};
use super::{names, Hub, Listener};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::time::{Duration, Instant};
use ureq::{Agent, AgentBuilder};
use url::{Host, Origin, Url};

/// Redirects of one request.
const MOST_REDIRECTS: usize = 10;
/// Bytes of a repository's list of files.
const LARGEST_LIST: usize = 16 << 20;
/// Time-outs that the list may take in all.
const LIST_TIMEOUTS: u32 = 6;
/// A longer time to be left alone is as good as none.
const LONGEST_RETRY_AFTER: u64 = 7 * 24 * 3600;

/// A hub's HTTP client.
pub(super) struct Client {
    proxied: Agent,
    direct: Agent,
    endpoint: Url,
    token: Option<String>,
    patience: Duration,
}

/// What a hub says of a repository at a revision.
#[derive(Deserialize)]
pub(super) struct RepositoryInfo {
    /// The commit.
    pub(super) sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl RepositoryInfo {
    /// The repository's files, without those whose names could lead out of their folder.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| names::is_path(name))
    }
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    /// The last answer's headers.
    pub(super) head: Head,
    /// The headers of the hub's own answers: of redirects, and the last one's where it is the hub's.
    pub(super) of_hub: Vec<Head>,
    /// Its body.
    pub(super) body: Exchange,
    /// The host that it is from, where that is not the hub.
    pub(super) host: Option<String>,
}

impl Answer {
    /// `failure` as one of the host that the answer is from.
    pub(super) fn failed(&self, failure: Failure) -> Failure {
        at(self.host.as_deref(), failure)
    }
}

fn at(host: Option<&str>, failure: Failure) -> Failure {
    match (host, failure) {
        (Some(host), failure) if !matches!(failure, Failure::Here(_)) => {
            Failure::At(host.to_owned(), Box::new(failure))
        }
        (_, failure) => failure,
    }
}

impl Client {
    pub(super) fn new(hub: &Hub) -> Result<Self> {
        let wrong = || {
            let address = hub.address();
            Error::invalid(format!(
                "HF_ENDPOINT {address} is not the address of a hub, which begins with https:// or http://"
            ))
        };
        let endpoint = Url::parse(&hub.endpoint).map_err(|_| wrong())?;
        if !is_web(&endpoint) || endpoint.cannot_be_a_base() {
            return Err(wrong());
        }
        if hub.token.iter().any(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::invalid(
                "HF_TOKEN (or the file `token` in HF_HOME) holds more than a token; set it to the token alone",
            ));
        }
        let agent = |proxies: bool| {
            AgentBuilder::new()
                .redirects(0)
                .timeout_connect(hub.patience)
                .timeout_read(hub.patience)
                .timeout_write(hub.patience)
                .user_agent(concat!("lorabooth/", env!("CARGO_PKG_VERSION")))
                .try_proxy_from_env(proxies)
                .build()
        };
        Ok(Self {
            proxied: agent(true),
            direct: agent(false),
            endpoint,
            token: hub.token.clone(),
            patience: hub.patience,
        })
    }

    /// The address below the endpoint that `parts` lead to, each of them one name.
    pub(super) fn address<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // An endpoint that could not be a base was refused.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Where the file `name` of a repository is, as it is at `commit`.
    pub(super) fn file_address(&self, id: &str, commit: &str, name: &str) -> Url {
        self.address(id.split('/').chain(["resolve", commit]).chain(name.split('/')))
    }

    /// Asks what a repository holds at `revision`.
    pub(super) fn repository(
        &self,
        id: &str,
        revision: &str,
        listener: &mut dyn Listener,
    ) -> Attempted<RepositoryInfo> {
        let parts = ["api", "models"].into_iter().chain(id.split('/')).chain(["revision", revision]);
        let mut answer = self.get(self.address(parts), None, listener)?;
        let text = self.whole_text(&mut answer, listener).map_err(|failure| answer.failed(failure))?;
        let odd = |oddity: &str| Err(answer.failed(Failure::Odd(oddity.to_owned())));
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
        let info: RepositoryInfo = match (first, serde_json::from_slice(&text)) {
            (None, _) => return odd("it is empty"),
            (Some(b'<'), _) => return odd(WEB_PAGE),
            (_, Err(error)) if error.is_eof() => return odd("its JSON ends too early"),
            (_, Err(_)) => return odd("it is not the list of files that a hub gives"),
            (_, Ok(info)) => info,
        };
        if !names::is_commit(&info.sha) {
            return odd("it names no commit");
        }
        if names::is_commit(revision) && revision != info.sha {
            return odd("it is about another commit than was asked for");
        }
        Ok(info)
    }

    pub(super) fn whole_text(&self, answer: &mut Answer, listener: &mut dyn Listener) -> Attempted<Vec<u8>> {
        let (began, mut text) = (Instant::now(), Vec::new());
        let length = answer.head.get("content-length").and_then(|length| length.parse::<usize>().ok());
        while let Some(bytes) = answer.body.bytes(listener)? {
            text.extend(bytes);
            if text.len().max(length.unwrap_or(0)) > LARGEST_LIST {
                return Err(Failure::Odd(format!("it is larger than {} MiB", LARGEST_LIST >> 20)));
            }
            if began.elapsed() > self.patience * LIST_TIMEOUTS {
                return Err(Failure::TimedOut);
            }
        }
        Ok(text)
    }

    /// Asks for `url`, from the byte `from` on where it is given. The answer is a success, or 416 where `from` is given.
    pub(super) fn get(&self, url: Url, from: Option<u64>, listener: &mut dyn Listener) -> Attempted<Answer> {
        let (mut url, mut of_hub) = (url, Vec::new());
        for _ in 0..=MOST_REDIRECTS {
            let host = (!self.is_hub(&url)).then(|| url.host_str().unwrap_or_default().to_owned());
            let here = |failure| at(host.as_deref(), failure);
            let mut body = Exchange::start(self.request(&url, from), self.patience)?;
            let head = body.head(listener).map_err(here)?;
            if head.is_redirect() {
                url = self.redirected(&url, &head).map_err(|oddity| here(Failure::Odd(oddity)))?;
                // What another host says of the repository does not count.
                of_hub.extend(host.is_none().then_some(head));
                continue;
            }
            match head.status {
                200 | 206 => {}
                416 if from.is_some() => {}
                status @ (0..=199 | 201..=299) => {
                    return Err(here(Failure::Odd(format!("its status is {status}, where 200 was expected"))));
                }
                status => {
                    let code = head.get("x-error-code").unwrap_or_default().to_owned();
                    return Err(here(Failure::Refused { status, code, retry_after: retry_after(&head) }));
                }
            }
            if let Some(encoding) = head.get("content-encoding").filter(|name| !name.eq_ignore_ascii_case("identity")) {
                let plain: String = encoding.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
                return Err(here(Failure::Odd(format!("it is compressed ({plain}), which was not asked for"))));
            }
            if host.is_none() {
                of_hub.push(head.clone());
            }
            return Ok(Answer { head, of_hub, body, host });
        }
        Err(Failure::Odd(format!("it redirects more than {MOST_REDIRECTS} times")))
    }

    /// Where a redirect leads.
    fn redirected(&self, from: &Url, head: &Head) -> std::result::Result<Url, String> {
        let location = head.get("location").ok_or("it redirects to nowhere")?;
        let mut to = from.join(location).map_err(|_| "it redirects to something that is not an address")?;
        if !is_web(&to) {
            return Err("it redirects to something that is not on the web".into());
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err("it redirects from https to http, where anybody on the way could change what comes".into());
        }
        // An address must not bring a name and password of its own along.
        if to.set_username("").and_then(|()| to.set_password(None)).is_err() {
            return Err("it redirects to something that is not an address".into());
        }
        Ok(to)
    }

    /// Sends `payload` to `url` with `headers`, beside which the token goes along `with_token`, to the hub alone. The answer may be a
    /// refusal; a redirect is none, for nothing that is written follows it. `sent` hears of the bytes that went out.
    #[allow(clippy::too_many_arguments, reason = "a request has so many parts, each of them plain")]
    pub(super) fn send(
        &self,
        method: &str,
        url: &Url,
        headers: &[(String, String)],
        payload: Payload,
        with_token: bool,
        listener: &mut dyn Listener,
        sent: &mut dyn FnMut(&mut dyn Listener, u64),
    ) -> Attempted<(Head, Vec<u8>)> {
        let host = (!self.is_hub(url)).then(|| url.host_str().unwrap_or_default().to_owned());
        let here = |failure| at(host.as_deref(), failure);
        let agent = if goes_direct(url) { &self.direct } else { &self.proxied };
        let mut request = agent.request_url(method, url).set("accept-encoding", "identity");
        for (name, value) in headers {
            request = request.set(name, value);
        }
        if let Some(token) = self.token.as_ref().filter(|_| with_token && host.is_none()) {
            request = request.set("authorization", &format!("Bearer {token}"));
        }
        let mut body = Exchange::sending(request, payload, self.patience)?;
        let head = body.head_after(listener, sent).map_err(here)?;
        if head.is_redirect() {
            return Err(here(Failure::Odd("it redirects, which an upload does not follow".to_owned())));
        }
        let mut answer = Answer { head, of_hub: Vec::new(), body, host: host.clone() };
        let text = self.whole_text(&mut answer, listener).map_err(here)?;
        Ok((answer.head, text))
    }

    fn request(&self, url: &Url, from: Option<u64>) -> ureq::Request {
        let agent = if goes_direct(url) { &self.direct } else { &self.proxied };
        // Compressed, a file is not the one that its checksum is of.
        let mut request = agent.request_url("GET", url).set("accept-encoding", "identity");
        if let Some(from) = from {
            request = request.set("range", &format!("bytes={from}-"));
        }
        match self.token.as_ref().filter(|_| self.is_hub(url)) {
            Some(token) => request.set("authorization", &format!("Bearer {token}")),
            None => request,
        }
    }

    /// Whether `url` is of the hub itself: the same scheme, host and port. Only there the token goes.
    pub(super) fn is_hub(&self, url: &Url) -> bool {
        let origin = url.origin();
        matches!(origin, Origin::Tuple(..)) && origin == self.endpoint.origin()
    }
}

/// What a page in place of data says.
pub(super) const WEB_PAGE: &str = "it is a web page, as of a login or a proxy in between";

pub(super) fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "https" | "http") && url.has_host()
}

/// Whether no proxy is to be used: for this machine, and for what NO_PROXY names.
fn goes_direct(url: &Url) -> bool {
    let excepted = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
    match url.host() {
        Some(Host::Ipv4(address)) if address.is_loopback() => true,
        Some(Host::Ipv6(address)) if address.is_loopback() => true,
        Some(Host::Domain("localhost")) => true,
        _ => is_excepted(url.host_str().unwrap_or_default(), &excepted),
    }
}

fn is_excepted(host: &str, list: &str) -> bool {
    list.split(',').map(|name| name.trim().trim_start_matches('.').to_ascii_lowercase()).any(|name| {
        let below = || host.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with('.'));
        name == "*" || (!name.is_empty() && (host == name || below()))
    })
}

/// How many seconds a server asks to be left alone; a date is not read.
pub(super) fn retry_after(head: &Head) -> Option<Duration> {
    let seconds: u64 = head.get("retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(LONGEST_RETRY_AFTER)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let hub = Hub {
            endpoint: endpoint.to_owned(),
            cache: "/c".into(),
            token: Some("hf_secret".into()),
            offline: false,
            patience: Duration::from_secs(1),
        };
        Client::new(&hub).unwrap()
    }

    #[test]
    fn names_become_parts_of_an_address_and_nothing_else() {
        let client = client("https://mirror.example/hf");
        let url = client.file_address("someone/a-model", &"a".repeat(40), "unet/a b#c?d%2e.json");
        assert_eq!(
            url.as_str(),
            format!(
                "https://mirror.example/hf/someone/a-model/resolve/{}/unet/a%20b%23c%3Fd%252e.json",
                "a".repeat(40)
            )
        );
        let url = client.address(["api", "models", "gpt2", "revision", "refs/pr/1"]);
        assert_eq!(url.as_str(), "https://mirror.example/hf/api/models/gpt2/revision/refs%2Fpr%2F1");
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let client = client("https://hub.example");
        let token =
            |url: &str| client.request(&Url::parse(url).unwrap(), None).header("authorization").map(str::to_owned);
        assert_eq!(token("https://hub.example/x").as_deref(), Some("Bearer hf_secret"));
        assert_eq!(token("https://hub.example:443/x").as_deref(), Some("Bearer hf_secret"));
        for url in [
            "http://hub.example/x",
            "https://hub.example:8443/x",
            "https://cdn.hub.example/x",
            "https://hub.example.evil/x",
        ] {
            assert_eq!(token(url), None, "{url}");
        }
    }

    #[test]
    fn some_hosts_need_no_proxy() {
        for (host, list, excepted) in [
            ("hub.example", "hub.example", true),
            ("a.hub.example", "other, .hub.example", true),
            ("a.hub.example", "hub.example", true),
            ("evilhub.example", "hub.example", false),
            ("hub.example", "", false),
            ("hub.example", "*", true),
        ] {
            assert_eq!(is_excepted(host, list), excepted, "{host} {list}");
        }
        assert!(goes_direct(&Url::parse("http://127.0.0.1:8/").unwrap()));
        assert!(goes_direct(&Url::parse("http://localhost/").unwrap()));
    }

    #[test]
    fn an_endpoint_is_a_web_address() {
        for endpoint in ["", "huggingface.co", "file:///etc", "ftp://x", "https://", "data:text/plain,x"] {
            let hub = Hub {
                endpoint: endpoint.to_owned(),
                cache: "/c".into(),
                token: None,
                offline: false,
                patience: Duration::from_secs(1),
            };
            let error = Client::new(&hub).err().unwrap().to_string();
            assert!(error.contains("HF_ENDPOINT") && error.contains("https://"), "{error}");
        }
    }
}
