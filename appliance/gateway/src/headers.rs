//! Which headers pass the door, in both directions. Pure.

use std::borrow::Cow;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Beginnings of names by which we (or a proxy that trusts us) say who somebody is. The names are
/// folded: see [`fold`].
const ASSERTED_BEGINNINGS: [&str; 9] = [
    "x-auth-",
    "x-polder-",
    "x-forwarded-",
    "x-user-",
    "x-remote-",
    "x-authentik-",
    "x-webauth-",
    "remote-",
    "x-real-",
];
/// Whole names of the same kind, folded.
const ASSERTED: [&str; 11] = [
    "forwarded",
    "x-user",
    "x-email",
    "x-groups",
    "x-group",
    "x-roles",
    "x-role",
    "x-username",
    "x-auth",
    "via",
    "x-client-ip",
];

/// A header's name as careless software reads it: CGI and WSGI cannot tell `_` from `-`, and some
/// proxies take `.` for either.
pub fn fold(name: &str) -> Cow<'_, str> {
    // Nearly every name is so already.
    if name.chars().all(|c| c != '_' && c != '.' && !c.is_ascii_uppercase()) {
        return Cow::Borrowed(name);
    }
    let fold = |c: char| if c == '_' || c == '.' { '-' } else { c.to_ascii_lowercase() };
    Cow::Owned(name.chars().map(fold).collect())
}

/// Does this name, as careless software reads it, say who somebody is or whence they come?
pub fn is_asserted(name: &str) -> bool {
    let name = fold(name);
    ASSERTED.contains(&&*name) || ASSERTED_BEGINNINGS.iter().any(|b| name.starts_with(b))
}

/// Takes out of a client's request every header that only we may say, before anything reads it.
pub fn drop_asserted(headers: &mut HeaderMap) {
    let gone: Vec<HeaderName> =
        headers.keys().filter(|name| is_asserted(name.as_str())).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Headers that concern one connection only (RFC 9110, 7.6.1), whether or not Connection names them.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE]
        .contains(name)
        || ["keep-alive", "proxy-connection", "http2-settings"].contains(&name.as_str())
}

/// Names that Connection lists, lower case.
fn named_in_connection(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

fn keep(headers: &HeaderMap, also: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let named = named_in_connection(headers);
    // With room for what we say ourselves.
    let mut kept = HeaderMap::with_capacity(headers.len() + 12);
    for (name, value) in headers {
        let plain = !name.as_str().contains(['_', '.']);
        let passes = !is_hop_by_hop(name) && !named.iter().any(|n| n == name.as_str());
        if plain && passes && also(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// What of a client's request goes on to an engine: nothing of the connection, no length (the body
/// is framed anew), no credential, nothing that only we may say, no name with `_` or `.` in it.
pub fn towards_engine(headers: &HeaderMap) -> HeaderMap {
    keep(headers, |name| {
        let ours = [HOST, CONTENT_LENGTH, EXPECT, AUTHORIZATION, COOKIE].contains(name)
            || name.as_str() == "x-api-key";
        !ours && !is_asserted(name.as_str())
    })
}

/// What of an engine's answer goes on to the client: what it is, when to come back, which fields were ignored, and
/// how it is called in the engine's log. Nothing else: an engine that was taken over could otherwise sign people in or
/// out, send them elsewhere, loosen what a page may do, or have browsers report to somebody.
pub fn towards_client(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(8);
    for name in FROM_ENGINES {
        let named: HeaderName = HeaderName::from_static(name);
        for value in headers.get_all(&named) {
            kept.append(named.clone(), value.clone());
        }
    }
    if let Some(given) = kept.remove(CONTENT_TYPE) {
        kept.insert(CONTENT_TYPE, plain_kind(&given));
    }
    kept
}

/// What an engine may say of its answer.
const FROM_ENGINES: [&str; 6] = [
    "content-type",
    "retry-after",
    "x-polder-ignored",
    "x-request-id",
    "request-id",
    "openai-processing-ms",
];

/// The kinds of answers that programs read and browsers do not show as a page; any other is bytes.
pub(crate) fn plain_kind(given: &HeaderValue) -> HeaderValue {
    let kind = given.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    let kind = kind.trim_ascii();
    let plain = ["application/json", "text/event-stream", "text/plain"]
        .iter()
        .any(|plain| kind.eq_ignore_ascii_case(plain.as_bytes()));
    match plain {
        true => given.clone(),
        false => HeaderValue::from_static("application/octet-stream"),
    }
}

/// What of a client's request goes on to an app: the same, but credentials, which may be the app's.
pub fn towards_app(headers: &HeaderMap) -> HeaderMap {
    keep(headers, |name| {
        let ours = [HOST, CONTENT_LENGTH, EXPECT].contains(name);
        !ours && !is_asserted(name.as_str())
    })
}

/// What of an app's answer goes on to the client: all but what concerns the connection, and what
/// only we say.
pub fn from_app(headers: &HeaderMap) -> HeaderMap {
    keep(headers, |name| !name.as_str().starts_with("x-polder-"))
}

/// Transfer-Encoding is `chunked` and nothing else, or absent: what another list would mean is
/// where two parsers begin to differ.
pub fn framing_is_plain(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => true,
        (Some(one), None) => one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_str(v).unwrap())
            })
            .collect()
    }

    #[test]
    fn every_spelling_of_a_header_that_we_assert_is_dropped() {
        let mut headers = map(&[
            ("X-Auth-Request-User", "mallory"),
            ("x_auth_request_user", "mallory"),
            ("X.Auth.Request.User", "mallory"),
            ("x-auth_request.groups", "steward"),
            ("X-Polder-Member", "1"),
            ("X_Polder_Strict", "0"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X_Forwarded_Prefix", "/admin"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-User", "mallory"),
            ("X_USER", "mallory"),
            ("Remote-User", "mallory"),
            ("accept", "*/*"),
            ("x-request-id", "7"),
        ]);
        drop_asserted(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-request-id"]);
    }

    #[test]
    fn credentials_connection_headers_and_those_it_names_stop_at_the_door() {
        let headers = map(&[
            ("authorization", "Bearer k"),
            ("x-api-key", "k"),
            ("cookie", "a=b"),
            ("host", "oak"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("connection", "close, X-Secret-Hop"),
            ("connection", "accept-language"),
            ("x-secret-hop", "1"),
            ("accept-language", "nl"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("upgrade", "websocket"),
            ("odd_name", "1"),
            ("content-type", "application/json"),
            ("anthropic-version", "2023-06-01"),
        ]);
        let kept = towards_engine(&headers);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["anthropic-version", "content-type"]);
    }

    #[test]
    fn the_engines_figures_stay_between_us_but_ignored_fields_are_told() {
        let kept = towards_client(&map(&[
            ("content-type", "text/event-stream"),
            ("x-polder-prompt-tokens", "12"),
            ("x-polder-ignored", "seedling"),
            ("trailer", "x-polder-usage"),
            ("set-cookie", "polder=x"),
            ("content-length", "5"),
            ("location", "//evil.example"),
            ("refresh", "0;url=//evil.example"),
            ("content-security-policy", "default-src *"),
            ("access-control-allow-origin", "*"),
            ("clear-site-data", "\"*\""),
            ("nel", "{}"),
            ("alt-svc", "h2=\"evil.example:443\""),
        ]));
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "x-polder-ignored"]);
    }

    #[test]
    fn an_engines_answer_is_never_a_page() {
        let kind = |given: &str| plain_kind(&given.parse().unwrap()).to_str().unwrap().to_owned();
        for plain in ["application/json", "Text/Event-Stream; charset=utf-8", "text/plain"] {
            assert_eq!(kind(plain), plain);
        }
        for page in [
            "text/html",
            "image/svg+xml",
            "application/xhtml+xml",
            "",
            "text/html; a=text/plain",
            "text/plainish",
        ] {
            assert_eq!(kind(page), "application/octet-stream", "{page}");
        }
    }

    #[test]
    fn only_plain_chunked_is_plain_framing() {
        assert!(framing_is_plain(&map(&[])));
        assert!(framing_is_plain(&map(&[("transfer-encoding", "Chunked")])));
        for odd in ["gzip, chunked", "chunked, identity", "xchunked", "identity", "", "\"chunked\""]
        {
            assert!(!framing_is_plain(&map(&[("transfer-encoding", odd)])), "{odd:?}");
        }
        let twice = map(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]);
        assert!(!framing_is_plain(&twice));
    }

    proptest! {
        #[test]
        fn nothing_forwarded_is_asserted_hop_by_hop_or_named_in_connection(
            pairs in proptest::collection::vec(("[a-zA-Z_.-]{1,14}|connection|te|x-user", "[a-z, -]{0,20}"), 0..20)
        ) {
            let headers: HeaderMap = pairs
                .iter()
                .filter_map(|(n, v)| {
                    Some((HeaderName::from_bytes(n.as_bytes()).ok()?, HeaderValue::from_str(v).ok()?))
                })
                .collect();
            for name in towards_engine(&headers).keys() {
                prop_assert!(!is_asserted(name.as_str()));
                prop_assert!(!is_hop_by_hop(name));
                prop_assert!(!name.as_str().contains(['_', '.']));
                prop_assert!(!named_in_connection(&headers).contains(&name.to_string()));
            }
        }

        #[test]
        fn folding_twice_is_folding_once(name in "\\PC{0,30}") {
            let once = fold(&name).into_owned();
            prop_assert_eq!(fold(&once), once.as_str());
        }
    }
}
