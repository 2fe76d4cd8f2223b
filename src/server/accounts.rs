//! Who asks: the password and its sessions, and on a public server the visitors.

use super::failure::{Answer, Failure};
use super::ids::{hex, random_hex};
use super::App;
use crate::error::{Error, Result};
use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

const SESSION: &str = "lorabooth_session";
const VISITOR: &str = "lorabooth_visitor";
/// Sessions that are kept; the oldest goes.
const MAX_SESSIONS: usize = 1000;
/// Wrong passwords wait, longer each time up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Requests that wait with a password; more are sent away.
const MAX_WAITING: usize = 32;
/// Bytes of a user's name or a password.
const MAX_LENGTH: usize = 1024;

/// The one account, with its sessions.
pub struct Account {
    user: String,
    /// The password, as argon2 writes it.
    hash: String,
    /// SHA-256 of each session's cookie.
    sessions: Mutex<VecDeque<String>>,
    /// Wrong passwords since the last right one.
    wrong: Mutex<u32>,
    /// One password is checked at a time: a check takes memory and a tenth of a second.
    turn: Semaphore,
    waiting: Semaphore,
}

impl Account {
    /// The account that `user:password` describes.
    pub fn new(text: &str) -> Result<Self> {
        let form = "it must be user:password, with neither part empty";
        let Some((user, password)) =
            text.split_once(':').filter(|(user, password)| !user.is_empty() && !password.is_empty())
        else {
            return Err(Error::Usage(format!("the account of the server is not one: {form}")));
        };
        let mut salt = [0; 16];
        getrandom::fill(&mut salt)
            .map_err(|error| Error::Internal(format!("the system gives no random numbers: {error}")))?;
        let hash = Argon2::default()
            .hash_password_with_salt(password.as_bytes(), &salt)
            .map_err(|error| Error::invalid(format!("the password cannot be used: {error}")))?;
        Ok(Self {
            user: user.to_owned(),
            hash: hash.to_string(),
            sessions: Mutex::default(),
            wrong: Mutex::new(0),
            turn: Semaphore::new(1),
            waiting: Semaphore::new(MAX_WAITING),
        })
    }

    /// A new session's cookie where user and password are right.
    async fn sign_in(self: Arc<Self>, user: String, password: String) -> Answer<String> {
        let busy = || Failure::new(StatusCode::TOO_MANY_REQUESTS, "too many sign-ins at once; try again in a minute");
        let _place = self.waiting.try_acquire().map_err(|_| busy())?;
        let _turn = self.turn.acquire().await.map_err(|_| busy())?;
        let wrong = *self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong > 0 {
            let wait = Duration::from_millis(100).saturating_mul(1 << wrong.min(12));
            tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
        }
        let account = self.clone();
        let is_right = tokio::task::spawn_blocking(move || account.is_right(&user, &password)).await.unwrap_or(false);
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_right {
            *wrong = wrong.saturating_add(1);
            return Err(Failure::new(StatusCode::UNAUTHORIZED, "wrong user or password"));
        }
        *wrong = 0;
        let cookie = random_hex(32)?;
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() == MAX_SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(digest(&cookie));
        Ok(cookie)
    }

    fn is_right(&self, user: &str, password: &str) -> bool {
        // The password is checked in any case, so that the time does not tell whether the user is right.
        let right = PasswordHash::new(&self.hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
        right && digest(user) == digest(&self.user)
    }

    fn has_session(&self, cookie: &str) -> bool {
        let digest = digest(cookie);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest)
    }

    fn end_session(&self, cookie: &str) {
        let digest = digest(cookie);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).retain(|session| *session != digest);
    }
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// The value of the cookie `name`.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let texts = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// Whose photos, jobs and pictures a request is about: on a public server the visitor's, else everybody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(String);

impl Owner {
    /// The one who stands in the database as `name`.
    pub fn named(name: String) -> Self {
        Self(name)
    }

    /// On a public server who has no visitor's cookie, but a session that nobody else knows.
    pub fn of_session(hash: &str) -> Self {
        Self(digest(&format!("session {hash}"))[..32].to_owned())
    }

    /// As it stands in the database; empty for everybody.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The same, to be kept.
    pub fn owned(&self) -> String {
        self.0.clone()
    }
}

impl FromRequestParts<App> for Owner {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Answer<Self> {
        let missing = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the server does not know who asks");
        parts.extensions.get::<Owner>().cloned().ok_or_else(missing)
    }
}

/// Whether the request has a session, where one is needed.
#[derive(Debug, Clone, Copy)]
pub struct SignedIn(pub bool);

impl FromRequestParts<App> for SignedIn {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Answer<Self> {
        Ok(parts.extensions.get::<SignedIn>().copied().unwrap_or(SignedIn(false)))
    }
}

/// What is open to those who have not signed in: the page itself, and the state, which tells them so.
fn is_open(path: &str) -> bool {
    !["/api/", "/gradio_api/"].iter().any(|begin| path.starts_with(begin)) && path != "/config" || path == "/api/state"
}

/// Lets in who may, and says whose the request is.
pub async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let signed_in = match &app.account {
        None => true,
        Some(account) => cookie(request.headers(), SESSION).is_some_and(|value| account.has_session(value)),
    };
    if !signed_in && !is_open(request.uri().path()) {
        return Failure::new(StatusCode::UNAUTHORIZED, "sign in first").into_response();
    }
    let (mut new_visitor, attributes) = (None, app.embedding.cookie_attributes(request.headers()));
    let owner = match (app.limits.is_some(), cookie(request.headers(), VISITOR)) {
        (false, _) => String::new(),
        (true, Some(cookie)) if is_cookie(cookie) => digest(cookie)[..32].to_owned(),
        (true, _) => match random_hex(32) {
            Ok(cookie) => digest(new_visitor.insert(cookie))[..32].to_owned(),
            Err(error) => return Failure::from(error).into_response(),
        },
    };
    request.extensions_mut().insert(Owner(owner));
    request.extensions_mut().insert(SignedIn(signed_in));
    let mut response = next.run(request).await;
    if let Some(value) = new_visitor.and_then(|cookie| set_cookie(VISITOR, &cookie, Some(365 * 24 * 3600), attributes))
    {
        response.headers_mut().append(SET_COOKIE, value);
    }
    response
}

/// Whether a visitor's cookie came with the request.
pub fn has_visitor(headers: &HeaderMap) -> bool {
    cookie(headers, VISITOR).is_some_and(is_cookie)
}

/// Whether it can be a cookie of ours.
fn is_cookie(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn set_cookie(name: &str, value: &str, max_age: Option<u64>, attributes: &str) -> Option<HeaderValue> {
    let age = max_age.map_or(String::new(), |seconds| format!("; Max-Age={seconds}"));
    HeaderValue::from_str(&format!("{name}={value}; HttpOnly; Path=/{attributes}{age}")).ok()
}

#[derive(Deserialize)]
struct Credentials {
    username: String,
    password: String,
}

/// `POST /login`: user and password as a form, as JSON, or as multipart, as JavaScript's gradio client sends them.
pub async fn login(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Answer {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let needed = || Failure::bad("username and password are needed, as a form or as JSON");
    let credentials = match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => serde_json::from_slice::<Credentials>(&body).map_err(|_| needed())?,
        "multipart/form-data" => of_multipart(&headers, body).await?,
        _ => of_form(&body).ok_or_else(needed)?,
    };
    if credentials.username.len() > MAX_LENGTH || credentials.password.len() > MAX_LENGTH {
        return Err(Failure::bad("user and password can have at most 1024 bytes each"));
    }
    let done = Json(json!({ "success": true }));
    let Some(account) = &app.account else { return Ok(done.into_response()) };
    let session = account.clone().sign_in(credentials.username, credentials.password).await?;
    let mut response = done.into_response();
    if let Some(value) = set_cookie(SESSION, &session, None, app.embedding.cookie_attributes(&headers)) {
        response.headers_mut().append(SET_COOKIE, value);
    }
    Ok(response)
}

fn of_form(body: &[u8]) -> Option<Credentials> {
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(body).into_owned().collect();
    let named = |name: &str| pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
    Some(Credentials { username: named("username")?, password: named("password")? })
}

async fn of_multipart(headers: &HeaderMap, body: Bytes) -> Answer<Credentials> {
    use axum::extract::{FromRequest, Multipart};
    let needed = || Failure::bad("username and password are needed, as a form or as JSON");
    let mut request = Request::new(axum::body::Body::from(body));
    *request.headers_mut() = headers.clone();
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| needed())?;
    let (mut username, mut password) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|_| needed())? {
        let name = field.name().unwrap_or_default().to_owned();
        let text = field.text().await.map_err(|_| needed())?;
        match name.as_str() {
            "username" => username = Some(text),
            "password" => password = Some(text),
            _ => {}
        }
    }
    let (Some(username), Some(password)) = (username, password) else { return Err(needed()) };
    Ok(Credentials { username, password })
}

/// `POST /logout`.
pub async fn logout(State(app): State<App>, headers: HeaderMap) -> Response {
    if let (Some(account), Some(value)) = (&app.account, cookie(&headers, SESSION)) {
        account.end_session(value);
    }
    let mut response = Json(json!({ "success": true })).into_response();
    if let Some(value) = set_cookie(SESSION, "", Some(0), app.embedding.cookie_attributes(&headers)) {
        response.headers_mut().append(SET_COOKIE, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_checked_with_its_user() {
        let account = Account::new("anna:se:cret").unwrap();
        assert!(account.is_right("anna", "se:cret"));
        assert!(!account.is_right("anna", "secret") && !account.is_right("berta", "se:cret"));
        assert!(!account.hash.contains("se:cret"));
        for text in ["anna", "anna:", ":x", ""] {
            assert!(Account::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; lorabooth_session=abc"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(cookie(&headers, SESSION), Some("abc"));
        assert_eq!(cookie(&headers, "session"), None);
    }

    #[test]
    fn only_the_page_and_the_state_are_open() {
        assert!(is_open("/") && is_open("/app.js") && is_open("/login") && is_open("/api/state"));
        assert!(!is_open("/api/jobs") && !is_open("/config") && !is_open("/gradio_api/info"));
    }
}
