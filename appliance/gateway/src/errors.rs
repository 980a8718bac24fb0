//! Refusals on the API, in the shape that OpenAI's clients understand, or Anthropic's.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use polder_members::{KeyRefused, LimitReached};
use serde_json::json;

use crate::body::BodyRefusal;
use crate::engines::EngineRefusal;

/// Whose clients a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, and everybody's who says nothing else.
    OpenAi,
    /// Anthropic's: `/v1/messages` and what is under it.
    Anthropic,
}

impl Dialect {
    /// Of a path.
    pub fn of(path: &str) -> Self {
        match path.strip_prefix("/v1/messages") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Self::Anthropic,
            _ => Self::OpenAi,
        }
    }
}

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

    /// The body alone.
    pub fn to_json(&self) -> serde_json::Value {
        let Self { kind, code, message, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
    }

    /// The body alone, as Anthropic's clients read it.
    pub fn to_anthropic(&self) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message } })
    }

    /// The event that a broken stream ends with.
    pub(crate) fn to_event(&self, dialect: Dialect) -> String {
        match dialect {
            Dialect::OpenAi => format!("data: {}\n\n", self.to_json()),
            Dialect::Anthropic => format!("event: error\ndata: {}\n\n", self.to_anthropic()),
        }
    }
}

/// Says refusals of our own again in Anthropic's shape, for the paths that its clients ask.
pub(crate) async fn as_anthropic(
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let mut response = next.run(request).await;
    if let Some(refusal) = response.extensions_mut().remove::<ApiError>() {
        let body = refusal.to_anthropic().to_string();
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = axum::body::Body::from(body);
    }
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        response.extensions_mut().insert(self.clone());
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
            EngineRefusal::OnTrial { .. } => Self::not_yours(message),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_are_anthropics() {
        for (path, dialect) in [
            ("/v1/messages", Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic),
            ("/v1/messagesome", Dialect::OpenAi),
            ("/v1/chat/completions", Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }
}
