//! What the console says about a box: where it is and how to get in. Only text over plain data.

use std::net::IpAddr;
use std::path::Path;

use polder_control::{BoxStatus, Claim};
use polder_site::Site;

/// What there is to say it about.
pub(crate) struct Greeting<'a> {
    pub(crate) site: &'a Site,
    pub(crate) state: &'a Path,
    pub(crate) ca_file: &'a Path,
    /// Of that file's certificate.
    pub(crate) fingerprint: &'a str,
    pub(crate) here: &'a Surroundings,
}

/// Where the person is who reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// A browser can be opened on this machine.
    pub(crate) display: bool,
    /// `user@host`, as somebody elsewhere would write it.
    pub(crate) account: String,
    /// This program, as it was started here: it may not be on the `PATH`.
    pub(crate) program: String,
}

impl Surroundings {
    /// From the environment.
    pub(crate) fn of_this_machine() -> Self {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let connection = var("SSH_CONNECTION");
        let display = var("DISPLAY").or_else(|| var("WAYLAND_DISPLAY")).is_some();
        let user = var("USER").or_else(|| var("LOGNAME")).unwrap_or_else(|| "user".to_owned());
        // The address by which they came in works for them; the host's name may not.
        let came_to = connection.as_deref().and_then(|c| c.split(' ').nth(2)).map(str::to_owned);
        let host = came_to
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        let display = display && connection.is_none();
        let program = std::env::args().next().unwrap_or_else(|| "polder".to_owned());
        Self { display, account: format!("{user}@{host}"), program }
    }
}

impl Greeting<'_> {
    /// For a box that nobody has claimed, or whose set-up was opened again.
    /// `page` is where the wizard begins: `/` on a new box, `/setup` on one that has its members.
    pub(crate) fn unclaimed(&self, page: &str, claim: &Claim) -> String {
        let port = self.site.door.port;
        let mut text = String::new();
        if reaches_this_machine(self.site) {
            text += &format!(
                "Open this in a browser on this machine:\n\n    http://localhost:{port}{page}#claim={}\n\n",
                claim.code
            );
            if !self.here.display {
                text += &format!(
                    "From another machine, run this there first and leave it open:\n\n    \
                     ssh -L {port}:localhost:{port} {}\n\n",
                    self.here.account
                );
            }
        }
        text += &format!(
            "Or open {}{page} and type the code {}\n{}\n\n",
            address(self.site),
            claim.code,
            self.vouches()
        );
        text += &format!(
            "The code is good for {} minutes and for one person. For a new one:\n    \
             {} claim reopen --state {}",
            claim.seconds.div_ceil(60),
            self.here.program,
            self.state.display()
        );
        text
    }

    /// For a box that has its steward.
    pub(crate) fn claimed(&self, status: &BoxStatus) -> String {
        let trial = if self.site.is_trial() { " (from this machine only)" } else { "" };
        let mut text = format!("{} is at {}/{trial}", self.site.name, address(self.site));
        for engine in &status.engines {
            let state = crate::status::part(&engine.part);
            text += &format!("\n    {}: {}, {state}", engine.name, engine.recipe);
        }
        if status.engines.is_empty() {
            text += "\n    it has no model yet; sign in and choose one";
        }
        text += "\n";
        text += &self.vouches();
        if !self.here.display && self.site.is_trial() {
            let port = self.site.door.port;
            text += &format!(
                "\n    from another machine, run there first: ssh -L {port}:localhost:{port} {}",
                self.here.account
            );
        }
        text
    }

    /// By what its certificate is known.
    fn vouches(&self) -> String {
        format!(
            "    its certificate is signed by {}\n    with the SHA-256 fingerprint {}",
            self.ca_file.display(),
            self.fingerprint
        )
    }

    /// For a box that answers, with the key to it.
    pub(crate) fn ready(&self, key: &str, model: &str) -> String {
        let (url, ca) = (url(self.site), self.ca_file.display());
        format!(
            "The box answers at {url}/v1 with the model {model}.\n\n    \
             API key  {key}\n\n\
             Try it:\n\n    \
             curl --cacert {ca} {url}/v1/chat/completions \\\n      \
             -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n      \
             -d '{{\"model\": \"{model}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \
             \"content\": \"Hello!\"}}]}}'"
        )
    }
}

/// The address to give to programs on this machine: it holds whatever the box is called.
pub(crate) fn url(site: &Site) -> String {
    let port = site.door.port;
    match site.door.listen.first() {
        Some(address) if !reaches_this_machine(site) => match address {
            IpAddr::V4(address) => format!("https://{address}:{port}"),
            IpAddr::V6(address) => format!("https://[{address}]:{port}"),
        },
        _ => format!("https://localhost:{port}"),
    }
}

/// The address to tell people.
fn address(site: &Site) -> String {
    if reaches_this_machine(site) && !site.is_trial() {
        return format!("https://{}.local:{}", site.name, site.door.port);
    }
    url(site)
}

/// Whether `localhost` leads to the box.
pub(crate) fn reaches_this_machine(site: &Site) -> bool {
    site.door.listen.iter().any(|address| address.is_loopback() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use polder_control::{PartState, PartStatus};

    use super::*;

    fn at(display: bool) -> Surroundings {
        let program = "target/release/polder".to_owned();
        Surroundings { display, account: "ada@box".to_owned(), program }
    }

    fn said(site: &Site, here: &Surroundings) -> String {
        let claim = Claim { code: "AB12-CD34".into(), seconds: 1800 };
        let (state, ca_file) = (Path::new("/box"), Path::new("/box/pki/ca.crt"));
        Greeting { site, state, ca_file, fingerprint: "AA:BB", here }.unclaimed("/", &claim)
    }

    #[test]
    fn at_a_display_there_is_a_link_that_needs_no_typing_and_beside_it_the_address_and_code() {
        let here = at(true);
        assert_eq!(
            said(&Site::unclaimed(8443), &here),
            "Open this in a browser on this machine:\n\n    \
             http://localhost:8443/#claim=AB12-CD34\n\n\
             Or open https://localhost:8443/ and type the code AB12-CD34\n    \
             its certificate is signed by /box/pki/ca.crt\n    \
             with the SHA-256 fingerprint AA:BB\n\n\
             The code is good for 30 minutes and for one person. For a new one:\n    \
             target/release/polder claim reopen --state /box"
        );
    }

    #[test]
    fn without_a_display_there_is_an_ssh_line() {
        let here = at(false);
        let text = said(&Site::unclaimed(9000), &here);
        assert!(text.contains("\n    ssh -L 9000:localhost:9000 ada@box\n"), "{text}");
    }

    #[test]
    fn a_door_that_localhost_does_not_lead_to_is_not_called_localhost() {
        let mut site = Site::unclaimed(8443);
        site.door.listen = vec!["192.0.2.7".parse().unwrap()];
        let text = said(&site, &Surroundings::default());
        assert!(!text.contains("localhost"), "{text}");
        assert!(text.contains("https://192.0.2.7:8443/"), "{text}");
        site.door.listen = vec!["0.0.0.0".parse().unwrap()];
        assert_eq!(address(&site), "https://polder.local:8443");
        assert_eq!(url(&site), "https://localhost:8443", "a program here needs no such name");
    }

    #[test]
    fn a_claimed_box_says_where_it_is_and_how_it_is() {
        let site = Site::unclaimed(8443);
        let here = at(true);
        let part = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
        let status = BoxStatus {
            closed: None,
            others: Vec::new(),
            supply: None,
            safe: false,
            site: site.clone(),
            gateway: part,
            engines: Vec::new(),
        };
        let (state, ca_file) = (Path::new("/box"), Path::new("/box/pki/ca.crt"));
        let greeting = Greeting { site: &site, state, ca_file, fingerprint: "AA:BB", here: &here };
        let text = greeting.claimed(&status);
        assert_eq!(
            text,
            "polder is at https://localhost:8443/ (from this machine only)\n    \
             it has no model yet; sign in and choose one\n    \
             its certificate is signed by /box/pki/ca.crt\n    \
             with the SHA-256 fingerprint AA:BB"
        );
    }
}
