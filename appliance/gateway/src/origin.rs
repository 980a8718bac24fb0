//! Whether a request that changes something was made by our own pages. Pure.
//!
//! A browser sends its cookies along with requests that another site's page makes. It also says
//! which page made them; this is where that is heard.

use http::header::ORIGIN;
use http::{HeaderMap, Method};

use crate::host::{RequestHost, parse_host};

/// A request that another site's page made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this request came from a page of another site, or from a browser that does not say; open the box's own page and try again"
)]
pub struct ForeignPage;

/// Takes a request that only reads; one that a page of ours made; and one without a cookie that no
/// browser's page made. `cookie`: does it carry a session or set-up cookie?
pub fn check_origin(
    method: &Method,
    headers: &HeaderMap,
    host: &RequestHost,
    tls: bool,
    cookie: bool,
) -> Result<(), ForeignPage> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    let origin = origins.next().map(|value| value.as_bytes());
    if origins.next().is_some() {
        return Err(ForeignPage);
    }
    let fetched = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    let ours = match (origin, fetched) {
        // Some browsers send "null" where a page may send no referrer.
        (None | Some(b"null"), Some(site)) => site == b"same-origin",
        (Some(b"null"), None) => false,
        (Some(origin), site) => {
            is_same_origin(origin, host, tls) && site.is_none_or(|site| site == b"same-origin")
        }
        (None, None) => !cookie,
    };
    if ours { Ok(()) } else { Err(ForeignPage) }
}

fn is_same_origin(origin: &[u8], host: &RequestHost, tls: bool) -> bool {
    let (scheme, default): (&[u8], u16) = if tls { (b"https://", 443) } else { (b"http://", 80) };
    let Some(rest) = origin.strip_prefix(scheme) else { return false };
    let port = |host: &RequestHost| host.port.unwrap_or(default);
    parse_host(rest).is_ok_and(|from| from.name == host.name && port(&from) == port(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(origin: Option<&str>, site: Option<&str>, cookie: bool) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        if let Some(site) = site {
            headers.insert("sec-fetch-site", site.parse().unwrap());
        }
        let host = parse_host(b"oak.local:8443").unwrap();
        check_origin(&Method::POST, &headers, &host, true, cookie).is_ok()
    }

    #[test]
    fn our_own_pages_may_change_things() {
        assert!(post(Some("https://oak.local:8443"), None, true));
        assert!(post(Some("https://oak.local:8443"), Some("same-origin"), true));
        assert!(post(None, Some("same-origin"), true));
        assert!(post(Some("null"), Some("same-origin"), true));
    }

    #[test]
    fn other_sites_pages_may_not() {
        for origin in [
            "https://evil.example",
            "http://oak.local:8443",
            "https://oak.local",
            "null",
            "https://oak.local:8444",
            "https://oak.local.evil.example:8443",
            "",
            "https://oak.local:8443/",
            "https://x@oak.local:8443",
        ] {
            assert!(!post(Some(origin), None, true), "{origin}");
            assert!(!post(Some(origin), None, false), "{origin} without a cookie");
        }
        assert!(!post(None, Some("cross-site"), true));
        assert!(!post(None, Some("same-site"), true));
        assert!(!post(Some("https://oak.local:8443"), Some("cross-site"), true));
        assert!(!post(Some("null"), Some("cross-site"), true));
        assert!(!post(None, None, true), "a cookie, and no word about the page");
    }

    #[test]
    fn a_program_without_a_cookie_needs_no_origin() {
        assert!(post(None, None, false));
    }

    #[test]
    fn a_missing_port_is_the_schemes_own() {
        let host = parse_host(b"oak.local").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, "https://oak.local:443".parse().unwrap());
        assert!(check_origin(&Method::POST, &headers, &host, true, true).is_ok());
        assert!(check_origin(&Method::POST, &headers, &host, false, true).is_err());
    }
}
