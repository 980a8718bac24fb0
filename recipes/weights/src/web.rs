//! One request to a web server, and what its answer means for a download.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, BodyReader, Proxy};

use crate::progress::{CancelFlag, Event, Teller};
use crate::registry::{ACCEPT, Passes};
use crate::{Options, WeightsError, names};

/// Tries of the first request: a wrong address should not take minutes to say so.
pub(crate) const FIRST_TRIES: u32 = 4;
/// Longer than any server's Retry-After that we obey.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

/// Makes requests as the options say. Proxies come from the environment, but for this machine.
pub(crate) struct Web {
    agent: Agent,
    /// A registry of images: it is asked for kinds of manifests, and gives passes.
    passes: Option<Passes>,
    pub(crate) pace: Pace,
    pub(crate) connections: usize,
}

/// How patient to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) tries: u32,
    pub(crate) first_wait: Duration,
    pub(crate) longest_wait: Duration,
}

impl Pace {
    /// The wait after the `failures`-th failure in a row, from half to all of a doubling time;
    /// `chance` spreads those that failed together.
    pub(crate) fn wait(&self, failures: u32, chance: u64) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let wait = doubled.min(self.longest_wait);
        wait.mul_f64(0.5 + 0.5 * (chance as f64 / u64::MAX as f64))
    }
}

/// A server's answer to a request for a file.
pub(crate) enum Reply {
    /// The part that was asked for.
    Part { body: BodyReader<'static>, mark: Option<String>, total: u64 },
    /// The whole file, whatever was asked for.
    Whole { body: BodyReader<'static>, length: Option<u64> },
    /// A file without bytes.
    Empty,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// May go away: one clause, and how long the server asked to wait.
    Passing(String, Option<Duration>),
    /// Will not: one clause and what to do.
    Final(String, &'static str),
    /// The server has another file now.
    Changed,
}

impl Web {
    /// For requests to addresses under `base`.
    pub(crate) fn new(options: &Options, base: &str) -> Result<Self, WeightsError> {
        let roots = match &options.ca_file {
            None => RootCerts::WebPki,
            Some(path) => {
                let fail = |why: String| WeightsError::Option { option: "the CA file", why };
                let pem = fs::read(path).map_err(|e| fail(format!("{}: {e}", path.display())))?;
                let certificates: Vec<_> = parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                if certificates.is_empty() {
                    return Err(fail(format!("{} has no certificate in it", path.display())));
                }
                RootCerts::from(certificates)
            }
        };
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .proxy(if is_loopback(base) { None } else { Proxy::try_from_env() })
            .http_status_as_error(false)
            .user_agent(concat!("polder/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .max_redirects(5)
            .timeout_resolve(Some(options.stall))
            .timeout_connect(Some(options.stall))
            .timeout_recv_response(Some(options.stall.saturating_mul(2)))
            .timeout_per_read(Some(options.stall))
            .timeout_per_write(Some(options.stall))
            .max_idle_connections_per_host(options.connections.max(1))
            .build()
            .new_agent();
        let pace = Pace {
            tries: options.tries.max(1),
            first_wait: options.first_wait,
            longest_wait: options.longest_wait,
        };
        Ok(Self { agent, passes: None, pace, connections: options.connections.clamp(1, 32) })
    }
    /// The same, for a registry of container images.
    pub(crate) fn of_registry(self, options: &Options) -> Self {
        Self { passes: Some(Passes::of(options.login.clone())), ..self }
    }
    /// Asks for a file or a part of it; with `mark`, only if the file is still that one.
    pub(crate) fn get(
        &self,
        url: &str,
        range: Option<&Range<u64>>,
        mark: Option<&str>,
    ) -> Result<Reply, Fault> {
        let Some(passes) = &self.passes else {
            let answer = self.call(url, range, mark, None).map_err(|e| fault(&e))?;
            return judge(answer, range, mark);
        };
        let refused = |fault| match fault {
            Fault::Final(what, SIGN_IN) => Fault::Final(what, SIGN_IN_IMAGES),
            other => other,
        };
        let answer = self.call(url, range, mark, Some(passes)).map_err(|e| fault(&e))?;
        let challenge = match answer.status().as_u16() {
            401 => text(answer.headers(), "www-authenticate").map(str::to_owned),
            _ => None,
        };
        match challenge {
            Some(challenge) if passes.renew(&self.agent, &challenge) => {
                drop(answer);
                let answer = self.call(url, range, mark, Some(passes)).map_err(|e| fault(&e))?;
                judge(answer, range, mark).map_err(refused)
            }
            _ => judge(answer, range, mark).map_err(refused),
        }
    }
    fn call(
        &self,
        url: &str,
        range: Option<&Range<u64>>,
        mark: Option<&str>,
        passes: Option<&Passes>,
    ) -> Result<Response<Body>, ureq::Error> {
        let secure = url.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"));
        let mut request = self.agent.get(url).config().https_only(secure).build();
        if let Some(range) = range {
            let last = range.end.saturating_sub(1);
            request = request.header("range", format!("bytes={}-{last}", range.start));
            // Only a strong ETag may stand in If-Range.
            if let Some(tag) = mark.filter(|mark| mark.starts_with('"')) {
                request = request.header("if-range", tag);
            }
        }
        if let Some(passes) = passes {
            request = request.header("accept", ACCEPT);
            // On to another server it does not go along.
            if let Some(pass) = passes.now() {
                request = request.header("authorization", pass);
            }
        }
        request.call()
    }
    /// A small answer as a whole: a list, an index.
    pub(crate) fn small(
        &self,
        what: &str,
        url: &str,
        longest: u64,
        teller: &mut Teller<'_>,
        cancel: &CancelFlag,
    ) -> Result<Vec<u8>, WeightsError> {
        self.retry(what, url, teller, cancel, |web| match web.get(url, None, None)? {
            Reply::Whole { body, .. } => {
                let mut bytes = Vec::new();
                body.take(longest + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|e| Fault::Passing(e.to_string(), None))?;
                if bytes.len() as u64 > longest {
                    return Err(Fault::Final("the answer is too long".into(), USE_ANOTHER));
                }
                Ok(bytes)
            }
            Reply::Part { .. } | Reply::Empty => {
                Err(Fault::Final("it answered with a part".into(), USE_ANOTHER))
            }
        })
    }
    /// Tries until it works, fails for good, or failed [`FIRST_TRIES`] times.
    pub(crate) fn retry<T>(
        &self,
        what: &str,
        url: &str,
        teller: &mut Teller<'_>,
        cancel: &CancelFlag,
        mut once: impl FnMut(&Self) -> Result<T, Fault>,
    ) -> Result<T, WeightsError> {
        let mut failures = 0;
        loop {
            cancel.check()?;
            let fault = match once(self) {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            failures += 1;
            match fault {
                Fault::Passing(why, asked) if failures < self.pace.tries.min(FIRST_TRIES) => {
                    let wait = asked.unwrap_or_else(|| self.pace.wait(failures, chance()));
                    teller.say(Event::Retrying { file: what.to_owned(), why, wait });
                    sleep(wait, &|| cancel.is_cancelled());
                }
                fault => return Err(gave_up(what, url, fault)),
            }
        }
    }
}

/// A fault that is not tried again, as an error.
pub(crate) fn gave_up(what: &str, url: &str, fault: Fault) -> WeightsError {
    let (why, hint) = match fault {
        Fault::Passing(why, _) => {
            (why, "check the network and start the import again, it goes on where it stopped")
        }
        Fault::Final(why, hint) => (why, hint),
        Fault::Changed => {
            ("the file changed while it was fetched".to_owned(), "start the import again")
        }
    };
    WeightsError::Server { what: what.to_owned(), server: names::shown(url), why, hint }
}

/// Any number, to spread waits.
pub(crate) fn chance() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Sleeps, in slices, unless stopped.
pub(crate) fn sleep(wait: Duration, stopped: &dyn Fn() -> bool) {
    let until = std::time::Instant::now() + wait;
    while !stopped() {
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

const USE_ANOTHER: &str = "use another source";
const SIGN_IN: &str = "it wants a sign-in that this box does not have; fetch the model with another \
                       machine and import it from a folder";
/// The same of a registry of images.
const SIGN_IN_IMAGES: &str = "it wants a user and a password that this box does not have, or takes those that it has no more; keep them on the \
                              page Registries of images, or with `polder engine image login REGISTRY --user NAME < FILE`, or bring the image in as a file";

fn judge(
    answer: Response<Body>,
    range: Option<&Range<u64>>,
    mark: Option<&str>,
) -> Result<Reply, Fault> {
    let status = answer.status().as_u16();
    let (parts, body) = answer.into_parts();
    let headers = &parts.headers;
    let refused = |hint| Err(Fault::Final(format!("the server answered {status}"), hint));
    match status {
        200 | 206 => {}
        416 if range_of(headers) == Some((None, 0)) => return Ok(Reply::Empty),
        404 | 410 => return refused("check the address and the recipe's name for the file"),
        401 | 403 | 407 => return refused(SIGN_IN),
        408 | 425 | 429 | 500..=599 => {
            let asked = text(headers, "retry-after").and_then(|text| text.parse().ok());
            let asked = asked.map(|secs| Duration::from_secs(secs).min(LONGEST_RETRY_AFTER));
            return Err(Fault::Passing(format!("the server answered {status}"), asked));
        }
        416 => return Err(Fault::Changed),
        _ => return refused(USE_ANOTHER),
    }
    if text(headers, "content-encoding").is_some_and(|coding| coding != "identity") {
        return Err(Fault::Final("the server re-encodes the file".into(), USE_ANOTHER));
    }
    let found = text(headers, "etag").or_else(|| text(headers, "last-modified"));
    let found = found.filter(|mark| mark.len() <= 512).map(str::to_owned);
    let length = text(headers, "content-length").and_then(|length| length.parse().ok());
    let total = range_of(headers);
    let body = body.into_with_config().limit(u64::MAX).reader();
    match (status, range, total) {
        (200, _, _) if mark.is_some() && found.as_deref() != mark => Err(Fault::Changed),
        (200, _, _) => Ok(Reply::Whole { body, length }),
        (_, Some(range), Some((Some(given), total))) if given == *range => {
            if mark.is_some() && found.as_deref() != mark {
                return Err(Fault::Changed);
            }
            Ok(Reply::Part { body, mark: found, total })
        }
        _ => Err(Fault::Final("the server gave another part than asked for".into(), USE_ANOTHER)),
    }
}

/// Whether an address is on this machine, where no proxy can reach it for us.
fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `Content-Range: bytes 0-9/100` as a range (none for `*`) and the total.
fn range_of(headers: &HeaderMap) -> Option<(Option<Range<u64>>, u64)> {
    let (range, total) = text(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let total = total.trim().parse().ok()?;
    if range.trim() == "*" {
        return Some((None, total));
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last && last < total).then_some((Some(first..last + 1), total))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Faults of the connection pass, faults of what was asked or of trust do not.
fn fault(why: &ureq::Error) -> Fault {
    let said = names::shorten(&why.to_string());
    match why {
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => Fault::Final(
            said,
            "check that this box trusts the server's certificate and that its clock is right",
        ),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => Fault::Final(
            said,
            "check that this box trusts the server's certificate and that its clock is right",
        ),
        // Their own words may have the whole address in them, password and all.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Fault::Final("this is no address of a web server".into(), "check the address")
        }
        ureq::Error::InvalidProxyUrl => {
            Fault::Final("the address of the proxy is wrong".into(), "check HTTPS_PROXY")
        }
        ureq::Error::RequireHttpsOnly(_) => {
            Fault::Final("it leads from https to plain http".into(), USE_ANOTHER)
        }
        ureq::Error::TooManyRedirects | ureq::Error::LargeResponseHeader(..) => {
            Fault::Final(said, USE_ANOTHER)
        }
        _ => Fault::Passing(said, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(range: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(value) = range.parse() {
            headers.insert("content-range", value);
        }
        headers
    }

    #[test]
    fn waits_double_up_to_a_cap_and_are_spread() {
        let (first_wait, longest_wait) = (Duration::from_millis(500), Duration::from_secs(30));
        let pace = Pace { tries: 9, first_wait, longest_wait };
        assert_eq!(pace.wait(1, u64::MAX), Duration::from_millis(500));
        assert_eq!(pace.wait(1, 0), Duration::from_millis(250));
        assert_eq!(pace.wait(3, u64::MAX), Duration::from_secs(2));
        assert_eq!(pace.wait(u32::MAX, u64::MAX), Duration::from_secs(30));
    }
    #[test]
    fn no_proxy_is_asked_for_this_machine() {
        for url in
            ["http://localhost:1/x", "https://127.9.9.9", "http://[::1]:80/x", "http://u@localhost"]
        {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://localhost.lan", "http://box/localhost", "http://10.0.0.1", "x"] {
            assert!(!is_loopback(url), "{url}");
        }
    }
    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(range_of(&headers("bytes 0-9/100")), Some((Some(0..10), 100)));
        assert_eq!(range_of(&headers("bytes */0")), Some((None, 0)));
        for wrong in ["bytes 9-0/100", "bytes 0-100/100", "0-9/100", "bytes 0-9/*", "bytes -/1", ""]
        {
            assert_eq!(range_of(&headers(wrong)), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_content_range_panics(text in "(bytes )?[0-9*/-]{0,60}") {
            let _ = range_of(&headers(&text));
        }
    }
}
