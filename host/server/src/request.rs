//! What handlers take from a request.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The number of the key that a request was sent with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner(pub u64);

/// The body of a request, as JSON of this type.
#[derive(Debug)]
pub(crate) struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes =
            Bytes::from_request(request, state).await.map_err(|rejected| match rejected.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than this server takes")
                }
                status => ApiError::new(status, "the body could not be read to its end"),
            })?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let parsed = parse(&mut json)?;
        json.end().map_err(|_| ApiError::bad("the body has more after its JSON"))?;
        Ok(Self(parsed))
    }
}

/// Reads a type from JSON; the error names the field that is wrong.
pub(crate) fn parse<'de, T: Deserialize<'de>>(
    json: impl serde::Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        if cause.is_data() && path != "." {
            ApiError::field(&path, cause.to_string())
        } else {
            ApiError::bad(format!("the body is not the JSON that is expected: {cause}"))
        }
    })
}

/// One text, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a text, or a list of texts")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn list(this: Option<Self>) -> Vec<String> {
        match this {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Many(texts)) => texts,
        }
    }
}
