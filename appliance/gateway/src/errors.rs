//! Refusals on the API, in the shape that OpenAI's clients understand.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use polder_members::{KeyRefused, LimitReached};
use serde_json::json;

use crate::body::BodyRefusal;
use crate::engines::EngineRefusal;

/// A refusal. The message is one sentence: what was wrong, with what, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP's word for it.
    pub status: StatusCode,
    /// OpenAI's word for its kind.
    pub kind: &'static str,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u64>,
    /// What a 401 asks for; a key of ours if nothing else.
    pub challenges: Vec<HeaderValue>,
}

impl ApiError {
    /// A refusal that trying again does not help.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            code,
            message: message.into(),
            retry_after: None,
            challenges: Vec::new(),
        }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    /// 401 without a usable key.
    pub fn no_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "missing_api_key",
            "the request has no API key; send one as \"Authorization: Bearer KEY\", you get it on your page of the box",
        )
    }

    /// 403: a good key that does not open this.
    pub fn not_yours(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", "not_permitted", message)
    }

    /// 500: the database of members could not be read; the log says why.
    pub(crate) fn members_unreadable() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "members_unreadable",
            "the box could not look up who you are; try again, and tell a steward if it stays so",
        )
    }

    /// The same, to be tried again after this many seconds.
    pub fn after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The body alone: also what a broken stream ends with.
    pub fn to_json(&self) -> serde_json::Value {
        let Self { kind, code, message, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let ours = HeaderValue::from_static("Bearer realm=\"polder\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, ours);
            for (n, challenge) in self.challenges.into_iter().enumerate() {
                match n {
                    0 => drop(response.headers_mut().insert(WWW_AUTHENTICATE, challenge)),
                    _ => drop(response.headers_mut().append(WWW_AUTHENTICATE, challenge)),
                }
            }
        }
        response
    }
}

impl From<KeyRefused> for ApiError {
    fn from(refused: KeyRefused) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "invalid_api_key",
            refused.to_string(),
        )
    }
}

impl From<LimitReached> for ApiError {
    fn from(reached: LimitReached) -> Self {
        let (kind, code) = match reached {
            LimitReached::Month { .. } => ("insufficient_quota", "insufficient_quota"),
            LimitReached::Tokens { .. } | LimitReached::Reserved { .. } => {
                ("tokens", "rate_limit_exceeded")
            }
            _ => ("requests", "rate_limit_exceeded"),
        };
        Self::new(StatusCode::TOO_MANY_REQUESTS, kind, code, reached.to_string())
            .after(reached.retry_after())
    }
}

impl From<EngineRefusal> for ApiError {
    fn from(refusal: EngineRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            EngineRefusal::UnknownModel { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                "model_not_found",
                message,
            ),
            EngineRefusal::ModelNeeded { .. } => Self::bad_request("model_required", message),
            _ => {
                let error = Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "server_error",
                    "model_unavailable",
                    message,
                );
                match refusal.retry_after() {
                    Some(seconds) => error.after(seconds),
                    None => error,
                }
            }
        }
    }
}

impl From<BodyRefusal> for ApiError {
    fn from(refusal: BodyRefusal) -> Self {
        let (status, code) = match refusal {
            BodyRefusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            BodyRefusal::TooSlow => (StatusCode::REQUEST_TIMEOUT, "body_too_slow"),
            BodyRefusal::Broken => (StatusCode::BAD_REQUEST, "body_incomplete"),
            BodyRefusal::Busy => {
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "server_error",
                    "box_busy",
                    refusal.to_string(),
                )
                .after(5);
            }
        };
        Self::new(status, "invalid_request_error", code, refusal.to_string())
    }
}
