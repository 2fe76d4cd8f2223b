//! Parts of requests: JSON and queries, refused with a sentence where they are not what a route takes.

use super::failure::{Answer, Failure};
use super::App;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

/// A body of JSON.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Answer<Self> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // A form of another site can send text/plain unasked, but not this.
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            let sentence = "the body must be JSON, with `content-type: application/json`";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence));
        }
        let body = Bytes::from_request(request, app).await.map_err(|rejection| {
            Failure::new(rejection.status(), "the body is larger than this address takes, or did not arrive whole")
        })?;
        serde_json::from_slice(&body)
            .map(Json)
            .map_err(|error| Failure::bad(format!("the body is not what this address takes: {error}")))
    }
}

/// The parameters behind `?`.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Answer<Self> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri).map(|query| Query(query.0)).map_err(|error| {
            Failure::bad(format!("the parameters behind `?` are not what this address takes: {}", error.body_text()))
        })
    }
}

/// The ids in a path.
pub struct Id<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Id<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Answer<Self> {
        axum::extract::Path::<T>::from_request_parts(parts, app)
            .await
            .map(|path| Id(path.0))
            .map_err(|_| Failure::new(StatusCode::NOT_FOUND, "there is nothing at this address"))
    }
}
