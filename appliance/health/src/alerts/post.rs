//! Web addresses: a webhook, a topic of ntfy, one that is asked for while all is well.

use std::time::Duration;

use super::Letter;

const PATIENCE: Duration = Duration::from_secs(15);

/// Whether something can be sent to this web address: over TLS, or to this machine.
pub(crate) fn check_address(url: &str) -> Result<(), String> {
    const SAY: &str =
        "write a web address that begins with https:// (plain http:// only leads to 127.0.0.1)";
    let plain = |c: u8| c.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&c);
    if url.len() > 1000 || !url.bytes().all(plain) {
        return Err(SAY.to_owned());
    }
    let host = |rest: &str| rest.split(['/', '?', '#']).next().unwrap_or_default().to_owned();
    if let Some(rest) = url.strip_prefix("https://") {
        return (!host(rest).is_empty()).then_some(()).ok_or_else(|| SAY.to_owned());
    }
    let here = |host: &str| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        !host.contains('@') && (name == "127.0.0.1" || name == "[::1]")
    };
    let local = url.strip_prefix("http://").is_some_and(|rest| here(&host(rest)));
    local.then_some(()).ok_or_else(|| SAY.to_owned())
}

/// Sends to web addresses. Follows nobody elsewhere. Blocks.
pub(crate) struct Agent(ureq::Agent);

impl Agent {
    pub(crate) fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .max_redirects(0)
            .user_agent("polder")
            .build();
        Self(config.into())
    }

    /// A JSON document.
    pub(crate) fn webhook(&self, url: &str, document: &serde_json::Value) -> Result<(), String> {
        let request = self.0.post(url).header("content-type", "application/json");
        done(request.send(document.to_string()))
    }

    /// A message with a title. Who has the app hears urgent ones also when it is silent.
    pub(crate) fn ntfy(
        &self,
        url: &str,
        token: Option<&str>,
        urgent: bool,
        title: &str,
        body: &str,
    ) -> Result<(), String> {
        let title: String = title.chars().filter(|c| c.is_ascii() && !c.is_control()).collect();
        let mut request = self
            .0
            .post(url)
            .header("title", title)
            .header("priority", if urgent { "urgent" } else { "default" })
            .header("tags", if urgent { "rotating_light" } else { "package" });
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        done(request.send(body))
    }

    /// "All is well."
    pub(crate) fn ping(&self, url: &str) -> Result<(), String> {
        done(self.0.get(url).call())
    }
}

/// The address is a secret, and errors must not tell it.
fn done<T>(answer: Result<T, ureq::Error>) -> Result<(), String> {
    match answer {
        Ok(_) => Ok(()),
        Err(ureq::Error::StatusCode(status)) => Err(format!("the other side answered {status}")),
        Err(ureq::Error::Timeout(_)) => Err("the other side did not answer in time".to_owned()),
        Err(ureq::Error::HostNotFound) => Err("the name in the address leads nowhere".to_owned()),
        Err(ureq::Error::Io(error)) => Err(format!("it cannot be reached: {}", error.kind())),
        Err(ureq::Error::Rustls(error)) => Err(format!("no secure connection: {error}")),
        Err(_) => Err("it cannot be reached".to_owned()),
    }
}

impl Letter {
    /// As a message of ntfy: short.
    pub(crate) fn message(&self, name: &str, now: i64) -> String {
        self.body(name, now).chars().take(3500).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_over_tls_or_nowhere_else() {
        for good in ["https://hooks.example.org/a?b=c", "http://127.0.0.1:9/x", "http://[::1]:9"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "https://",
            "http://example.org/x",
            "http://127.0.0.1.example.org",
            "http://127.0.0.1@example.org/",
            "ftp://x",
            "https://x y",
            "https://x\r\ny",
            &format!("https://{}", "x".repeat(2000)),
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_does_not_tell_the_address() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let why = Agent::new().ping(&format!("http://{free}/CANARY")).unwrap_err();
        assert!(!why.contains("CANARY"), "{why}");
    }
}
