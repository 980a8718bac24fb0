//! Who asks: an API key, or a session's cookie.

use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue};
use polder_members::{KeyGrant, Member, Members, SESSION_SECONDS, Secret};

use crate::errors::ApiError;

/// The session cookie over TLS: the prefix makes browsers refuse it from anyone but this very host.
const OVER_TLS: &str = "__Host-polder";
/// The session cookie on this machine's plain `http://localhost`, where that prefix cannot be had.
const PLAIN: &str = "polder";
/// Beginnings of the names of all cookies that are ours.
const OURS: [&[u8]; 2] = [b"polder", b"__Host-polder"];
/// Every key of ours begins with this.
const KEY: &[u8] = b"plk_";

/// The key that a request carries, as `Authorization: Bearer` or `x-api-key`. Two different ones
/// are an error: nobody could say which one counts.
pub fn key_in(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut found: Option<&str> = None;
    let bearers = headers.get_all(AUTHORIZATION).iter().map(|value| (value, true));
    let plain = headers.get_all("x-api-key").iter().map(|value| (value, false));
    for (value, bearer) in bearers.chain(plain) {
        let unreadable = || {
            ApiError::bad_request(
                "invalid_api_key",
                "the API key in the request is not readable text",
            )
        };
        let text = value.to_str().map_err(|_| unreadable())?.trim();
        let key = match (bearer, text.split_once(' ')) {
            (false, _) => text,
            (true, Some((scheme, key))) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
            // Basic and others are not ours.
            (true, _) => continue,
        };
        if found.is_some_and(|other| other != key) {
            return Err(ApiError::bad_request(
                "two_api_keys",
                "the request has two different API keys; send one",
            ));
        }
        found = Some(key);
    }
    Ok(found.filter(|key| !key.is_empty()))
}

/// What the key in a request opens.
pub fn grant(members: &Members, headers: &HeaderMap) -> Result<Arc<KeyGrant>, ApiError> {
    let key = key_in(headers)?.ok_or_else(ApiError::no_key)?;
    Ok(members.verify_key(key)?)
}

/// The session token in a request's cookies. Over TLS only the cookie that no other host could have
/// set counts; on plain localhost either does, because a proxy on this machine passes on what its
/// own visitors have.
pub fn session_token(headers: &HeaderMap, tls: bool) -> Option<&str> {
    cookie(headers, OVER_TLS).or_else(|| if tls { None } else { cookie(headers, PLAIN) })
}

/// One cookie by its name. Two of one name are none: somebody planted one of them.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut found = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let first = found.next();
    if found.next().is_some() { None } else { first }
}

/// Does a request carry a key of ours, good or not?
pub(crate) fn has_our_key(headers: &HeaderMap) -> bool {
    let bearers = headers.get_all(AUTHORIZATION).iter();
    let mut all = bearers.chain(headers.get_all("x-api-key"));
    all.any(|value| value.as_bytes().windows(KEY.len()).any(|part| part == KEY))
}

/// The cookies that are not ours, in one line.
pub(crate) fn others_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for value in headers.get_all(COOKIE) {
        let pairs = value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        kept.extend(pairs.filter(|pair| !pair.is_empty() && !is_our_cookie(pair)));
    }
    HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok().filter(|line| !line.is_empty())
}

/// Is this `NAME=VALUE` a cookie of the box?
pub(crate) fn is_our_cookie(pair: &[u8]) -> bool {
    let name = pair.trim_ascii_start();
    let begins =
        |ours: &&[u8]| name.get(..ours.len()).is_some_and(|n| n.eq_ignore_ascii_case(ours));
    OURS.iter().any(begins)
}

/// The member who is signed in, if one is.
pub async fn signed_in(members: &Members, headers: &HeaderMap, tls: bool) -> Option<Member> {
    let token = Secret::new(session_token(headers, tls)?.to_owned());
    match members.ask(move |members| members.session(token.expose())).await {
        Ok(member) => member,
        Err(error) => {
            log::error!("a session could not be looked up: {error}");
            None
        }
    }
}

/// `Set-Cookie` for a new session.
pub fn session_cookie(token: &Secret, tls: bool) -> HeaderValue {
    set_cookie(token.expose(), tls, SESSION_SECONDS)
}

/// `Set-Cookie` that ends the session in the browser.
pub fn no_session_cookie(tls: bool) -> HeaderValue {
    set_cookie("", tls, 0)
}

fn set_cookie(value: &str, tls: bool, seconds: i64) -> HeaderValue {
    let (name, secure) = if tls { (OVER_TLS, "; Secure") } else { (PLAIN, "") };
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    let mut value =
        HeaderValue::from_str(&text).expect("a token is letters and digits, the rest is ours");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_key_is_found_in_either_header() {
        for pair in
            [("authorization", "Bearer k1"), ("authorization", "bearer  k1 "), ("x-api-key", "k1")]
        {
            assert_eq!(key_in(&headers(&[pair])).unwrap(), Some("k1"), "{pair:?}");
        }
        assert_eq!(key_in(&headers(&[("authorization", "Basic k1")])).unwrap(), None);
        assert_eq!(key_in(&headers(&[("authorization", "Bearer ")])).unwrap(), None);
        let same = headers(&[("authorization", "Bearer k1"), ("x-api-key", "k1")]);
        assert_eq!(key_in(&same).unwrap(), Some("k1"));
    }

    #[test]
    fn two_different_keys_are_an_error() {
        let two = headers(&[("authorization", "Bearer k1"), ("x-api-key", "k2")]);
        assert_eq!(key_in(&two).unwrap_err().code, "two_api_keys");
        let two = headers(&[("authorization", "Bearer k1"), ("authorization", "Bearer k2")]);
        assert!(key_in(&two).is_err());
    }

    #[test]
    fn a_planted_cookie_signs_nobody_in() {
        let planted = headers(&[("cookie", "polder=evil")]);
        assert_eq!(session_token(&planted, true), None);
        assert_eq!(session_token(&planted, false), Some("evil"));
        let both = headers(&[("cookie", "a=1; __Host-polder=good; polder=evil")]);
        assert_eq!(session_token(&both, true), Some("good"));
        assert_eq!(session_token(&both, false), Some("good"));
        let twice = headers(&[("cookie", "polder=a"), ("cookie", "polder=b")]);
        assert_eq!(session_token(&twice, false), None);
    }

    #[test]
    fn the_cookie_is_for_this_host_alone_and_no_script_reads_it() {
        let token = Secret::new("abc".to_owned());
        let text = session_cookie(&token, true).to_str().unwrap().to_owned();
        assert!(text.starts_with("__Host-polder=abc; Path=/;") && text.ends_with("; Secure"));
        assert!(text.contains("HttpOnly; SameSite=Lax"));
        assert!(!text.contains("Domain"));
        assert!(no_session_cookie(false).to_str().unwrap().starts_with("polder=; "));
    }

    #[test]
    fn an_app_gets_its_own_cookies_and_none_of_ours() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "__Host-polder=s; theme=dark; polder=x".parse().unwrap());
        headers.append(COOKIE, "__host-polder-app=k;wiki=1".parse().unwrap());
        assert_eq!(others_cookies(&headers).unwrap(), "theme=dark; wiki=1");
        headers.remove(COOKIE);
        headers.append(COOKIE, "__Host-polder-app=k".parse().unwrap());
        assert_eq!(others_cookies(&headers), None);
    }

    #[test]
    fn a_key_of_ours_is_known_wherever_it_stands() {
        let with = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            has_our_key(&headers)
        };
        assert!(with("authorization", "Bearer plk_a_b") && with("x-api-key", "plk_a_b"));
        assert!(!with("authorization", "Basic abc") && !with("authorization", "Bearer other"));
    }
}
