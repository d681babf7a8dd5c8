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

/// The body of a request, which is JSON.
#[derive(Debug)]
pub(crate) struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejected| match rejected.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than this server takes")
            }
            status => ApiError::new(status, "the body could not be read to its end"),
        })
    }
}

impl Body {
    /// Reads a type from the body; the error names the field that is wrong.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        // Where a field is, is found out only for an error: it takes longer than reading the body.
        serde_json::from_slice(&self.0).or_else(|_| {
            let mut json = serde_json::Deserializer::from_slice(&self.0);
            let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
                let path = error.path().to_string();
                let cause = error.into_inner();
                if cause.is_data() && path != "." {
                    ApiError::field(&path, cause.to_string())
                } else {
                    ApiError::bad(format!("the body is not the JSON that is expected: {cause}"))
                }
            })?;
            json.end().map_err(|_| ApiError::bad("the body has more after its JSON"))?;
            Ok(parsed)
        })
    }
}

/// The body of a request, as JSON of this type.
#[derive(Debug)]
pub(crate) struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Body::from_request(request, state).await?.parse().map(Self)
    }
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
