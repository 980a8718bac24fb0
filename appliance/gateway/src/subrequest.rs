//! `GET /auth`: tells a web server in front of another app who its visitor is.
//!
//! It speaks oauth2-proxy's contract, so that nginx `auth_request`, Caddy `forward_auth` and Traefik
//! ForwardAuth work unchanged: 202 with `X-Auth-Request-*`, 401 with `WWW-Authenticate`, 403.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use polder_members::{Member, MemberId, Role, Scope};

use crate::Gateway;
use crate::auth;
use crate::errors::ApiError;
use crate::peer::Peer;
use crate::verifier;

/// What the web server in front wants of its visitors.
pub(crate) struct Wanted {
    /// Comma-separated; one of them is enough.
    allowed_groups: Option<String>,
}

impl Wanted {
    /// What a query says: of names that come twice, all groups count. A query that says nothing
    /// about groups wants none.
    fn of(uri: &Uri) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| {
            ApiError::bad_request("bad_query", "the query of this address cannot be read")
        })?;
        let groups: Vec<_> = pairs
            .into_iter()
            .filter(|(name, _)| name == "allowed_groups")
            .map(|(_, g)| g)
            .collect();
        Ok(Self { allowed_groups: (!groups.is_empty()).then(|| groups.join(",")) })
    }
}

/// Who the visitor is.
pub(crate) struct Visitor {
    id: MemberId,
    name: String,
    pub(crate) role: Role,
    /// Their address, where it is proven and may be told.
    email: Option<String>,
}

impl From<Member> for Visitor {
    fn from(member: Member) -> Self {
        Self { id: member.id, name: member.name, role: member.role, email: None }
    }
}

impl Visitor {
    /// A steward is a member too.
    fn groups(&self) -> &'static [&'static str] {
        match self.role {
            Role::Steward => &["steward", "member"],
            Role::Member => &["member"],
        }
    }

    /// With the address that is proven to be theirs, where the site lets apps have it.
    pub(crate) async fn with_email(mut self, gateway: &Gateway) -> Result<Self, ApiError> {
        self.email = gateway.proven_email(self.id).await.map_err(|error| {
            log::error!("a member's proven address could not be looked up: {error}");
            ApiError::members_unreadable()
        })?;
        Ok(self)
    }

    /// What an app is told of them.
    pub(crate) fn headers(
        &self,
        box_name: &str,
    ) -> Result<[(HeaderName, HeaderValue); 4], ApiError> {
        // Apps behind a proxy tell people apart by their address. What a member typed is neither
        // proven nor theirs alone, so it is never sent: with it one member could pass for another.
        // The usual one cannot receive mail, and the number in it is never given to anybody else; the other one was proven
        // where the collective signs in.
        let usual = || format!("member-{}@{box_name}.local", self.id);
        let email = self.email.clone().unwrap_or_else(usual);
        let told = |name, value: &str| -> Result<_, ApiError> {
            Ok((HeaderName::from_static(name), header_text(value)?))
        };
        Ok([
            told("x-auth-request-user", &self.name)?,
            told("x-auth-request-preferred-username", &self.name)?,
            told("x-auth-request-email", &email)?,
            told("x-auth-request-groups", &self.groups().join(","))?,
        ])
    }

    fn is_wanted(&self, wanted: &Wanted) -> bool {
        let Some(groups) = &wanted.allowed_groups else { return true };
        groups.split(',').any(|group| self.groups().contains(&group.trim()))
    }
}

pub(crate) async fn auth(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let parts = request.into_parts().0;
    let wanted = match Wanted::of(&parts.uri) {
        Ok(wanted) => wanted,
        Err(error) => return in_contract(error).into_response(),
    };
    let found = match verifier::member(&gateway, &parts).await {
        Ok(Some(member)) => Ok(member.into()),
        Ok(None) => {
            let tls = parts.extensions.get::<Peer>().is_some_and(|peer| peer.tls);
            visitor(&gateway, &parts.headers, tls).await
        }
        Err(error) => Err(error),
    };
    let visitor = match found {
        Ok(visitor) => visitor,
        Err(error) => return in_contract(error).into_response(),
    };
    if !visitor.is_wanted(&wanted) {
        return ApiError::not_yours("you are signed in, but not in a group that may go here")
            .into_response();
    }
    let visitor = match visitor.with_email(&gateway).await {
        Ok(visitor) => visitor,
        Err(error) => return error.into_response(),
    };
    let box_name = gateway.status().site.name.to_string();
    answer(&visitor, &box_name).unwrap_or_else(|error| error.into_response())
}

/// Whoever asks knows 401 and 403, and makes an internal error of anything else, such as two keys at once (400).
fn in_contract(mut error: ApiError) -> ApiError {
    if error.status == StatusCode::BAD_REQUEST {
        error.status = StatusCode::UNAUTHORIZED;
    }
    error
}

/// A key that was sent counts even if a session is there too; a bad key is not made good by it.
pub(crate) async fn visitor(
    gateway: &Gateway,
    headers: &HeaderMap,
    tls: bool,
) -> Result<Visitor, ApiError> {
    if auth::key_in(headers)?.is_some() {
        let grant = auth::grant(&gateway.members, headers)?;
        if !grant.opens(Scope::Auth) {
            return Err(ApiError::not_yours(
                "this API key does not open other apps; make one on your page of the box that does",
            ));
        }
        let (id, name, role) = (grant.member, grant.member_name.clone(), grant.role);
        return Ok(Visitor { id, name, role, email: None });
    }
    let member = auth::signed_in(&gateway.members, headers, tls).await;
    let member = member.ok_or_else(|| {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "not_signed_in",
            "nobody is signed in; sign in on the box's own page, then come back",
        )
    })?;
    Ok(member.into())
}

fn answer(visitor: &Visitor, box_name: &str) -> Result<Response, ApiError> {
    let mut response = (StatusCode::ACCEPTED, Json(serde_json::json!({}))).into_response();
    let headers = response.headers_mut();
    for (name, value) in visitor.headers(box_name)? {
        headers.insert(name, value);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// UTF-8 as it is; a control character cannot be part of a header.
fn header_text(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        ApiError::not_yours("your name cannot be told to other apps; ask a steward to change it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitor(role: Role) -> Visitor {
        Visitor { id: MemberId(7), name: "Zoë van Dam".into(), role, email: None }
    }

    #[test]
    fn a_visitor_is_told_in_three_headers() {
        let response = answer(&visitor(Role::Steward), "oak").unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let told =
            |name: &str| String::from_utf8_lossy(response.headers()[name].as_bytes()).into_owned();
        assert_eq!(told("x-auth-request-user"), "Zoë van Dam");
        assert_eq!(told("x-auth-request-email"), "member-7@oak.local");
        assert_eq!(told("x-auth-request-groups"), "steward,member");
        let proven = Visitor { email: Some("zoe@example.org".into()), ..visitor(Role::Member) };
        let response = answer(&proven, "oak").unwrap();
        assert_eq!(response.headers()["x-auth-request-email"], "zoe@example.org");
    }

    #[test]
    fn a_server_in_front_hears_only_what_it_knows() {
        assert_eq!(in_contract(ApiError::bad_request("x", "y")).status, StatusCode::UNAUTHORIZED);
        assert_eq!(in_contract(ApiError::not_yours("y")).status, StatusCode::FORBIDDEN);
    }

    #[test]
    fn one_of_the_wanted_groups_is_enough() {
        let wanted = |groups: &str| Wanted { allowed_groups: Some(groups.into()) };
        assert!(visitor(Role::Member).is_wanted(&wanted("steward, member")));
        assert!(!visitor(Role::Member).is_wanted(&wanted("steward")));
        assert!(!visitor(Role::Steward).is_wanted(&wanted("")));
        assert!(visitor(Role::Member).is_wanted(&Wanted { allowed_groups: None }));
    }

    #[test]
    fn the_wanted_groups_are_read_from_any_query_and_never_refused() {
        let wanted = |query: &str| {
            let uri: Uri = format!("/auth{query}").parse().unwrap();
            Wanted::of(&uri).unwrap().allowed_groups
        };
        assert_eq!(wanted(""), None);
        assert_eq!(wanted("?rd=%2F&x"), None);
        assert_eq!(wanted("?allowed_groups=steward"), Some("steward".into()));
        assert_eq!(wanted("?allowed_groups=a&allowed_groups=b%2Cc"), Some("a,b,c".into()));
        assert_eq!(wanted("?allowed_groups="), Some(String::new()));
        assert!(wanted("?allowed_groups=%FF").is_some());
    }

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        let mut bad = visitor(Role::Member);
        bad.name = "a\r\nX-Auth-Request-Groups: steward".into();
        assert_eq!(answer(&bad, "oak").unwrap_err().status, StatusCode::FORBIDDEN);
    }
}
