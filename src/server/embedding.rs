//! The page in a frame of another site, as Hugging Face shows a Space: which sites may show it, and cookies that work there.

use crate::error::{Error, Result};
use axum::http::{HeaderMap, HeaderValue};

const POLICY: &str =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors";

/// The sites whose pages may show this server's in a frame.
#[derive(Debug)]
pub struct Embedding {
    is_allowed: bool,
    policy: HeaderValue,
}

impl Embedding {
    /// In frames of `sites`, each such as `https://huggingface.co`, and of no others.
    pub fn of(sites: &[String]) -> Result<Self> {
        if let Some(wrong) = sites.iter().find(|site| !is_site(site)) {
            return Err(Error::invalid(format!(
                "⟨embed_in⟩ {} is no site; give one such as https://huggingface.co, without a path",
                crate::plain_text::value(wrong)
            )));
        }
        let ancestors = if sites.is_empty() { "'none'".to_owned() } else { sites.join(" ") };
        let policy = HeaderValue::try_from(format!("{POLICY} {ancestors}"))
            .map_err(|error| Error::Internal(format!("the security policy is no header: {error}")))?;
        Ok(Self { is_allowed: !sites.is_empty(), policy })
    }

    /// Whether any site may.
    pub fn is_allowed(&self) -> bool {
        self.is_allowed
    }

    /// The value of `Content-Security-Policy`.
    pub fn policy(&self) -> HeaderValue {
        self.policy.clone()
    }

    /// How a browser is to keep a cookie for whom a request with `headers` came from. A page in a frame of another site is only sent
    /// cookies that ask for it (`SameSite=None`), which takes TLS; `Partitioned` keeps them where browsers block cookies of other
    /// sites: there they belong to the site around the frame, too.
    pub fn cookie_attributes(&self, headers: &HeaderMap) -> &'static str {
        match (is_secure(headers), self.is_allowed) {
            (true, true) => "; Secure; SameSite=None; Partitioned",
            (true, false) => "; Secure; SameSite=Lax",
            (false, _) => "; SameSite=Lax",
        }
    }
}

/// Whether the client's connection has TLS, which ends in a proxy before this server.
pub fn is_secure(headers: &HeaderMap) -> bool {
    let protocol = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok()).unwrap_or_default();
    protocol.split(',').next().unwrap_or_default().trim().eq_ignore_ascii_case("https")
}

/// Whether it is scheme and host, and nothing that would end or add to the policy that it becomes part of.
fn is_site(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-*:[]".contains(c);
    !host.is_empty() && host.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_sites_and_nothing_else() {
        let policy = |sites: &[&str]| {
            let sites: Vec<String> = sites.iter().map(|&site| site.to_owned()).collect();
            Embedding::of(&sites).map(|embedding| embedding.policy().to_str().unwrap().to_owned())
        };
        assert!(policy(&[]).unwrap().ends_with("; frame-ancestors 'none'"));
        let both = policy(&["https://huggingface.co", "http://localhost:80"]).unwrap();
        assert!(both.ends_with("; frame-ancestors https://huggingface.co http://localhost:80"), "{both}");
        for wrong in ["", "huggingface.co", "https://", "https://a; script-src *", "https://a b", "https://a/b", "*"] {
            assert!(policy(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_nearest_proxy_says_whether_there_is_tls() {
        for (value, is) in
            [("https", true), ("HTTPS, http", true), ("http", false), ("http, https", false), ("", false)]
        {
            let headers =
                HeaderMap::from_iter([("x-forwarded-proto".parse().unwrap(), HeaderValue::from_static(value))]);
            assert_eq!(is_secure(&headers), is, "{value}");
        }
        assert!(!is_secure(&HeaderMap::new()));
    }
}
