use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How stewards are told that something is wrong. Passwords, and web addresses that are as good as one, are not here: the
/// part that looks after the box's health keeps them in a file of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// What is told, from this on.
    #[serde(default)]
    pub from: AlertsFrom,
    /// By e-mail to every steward who gave an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<MailServer>,
    /// As a JSON document to a web address.
    #[serde(default)]
    pub webhook: bool,
    /// To a topic of an ntfy server.
    #[serde(default)]
    pub ntfy: bool,
    /// A web address is asked for while all is well, so that somebody notices silence.
    #[serde(default)]
    pub dead_man: bool,
}

/// How bad something has to be to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertsFrom {
    /// Everything, also that there is an update.
    Notice,
    /// What is to be looked at within days, and worse.
    #[default]
    Warning,
    /// Only what does not work.
    Urgent,
}

/// A server that takes mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailServer {
    /// Its name or address, without the port.
    pub server: MailHost,
    /// Its port.
    pub port: u16,
    /// How the way to it is kept secret.
    #[serde(default)]
    pub security: MailSecurity,
    /// Whom mails come from.
    pub sender: MailAddress,
    /// Whom the box signs in as; nobody where the server takes mail without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The certificate of the authority that signed the server's, PEM, where that is not one the world trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// How the way to a mail server is kept secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MailSecurity {
    /// TLS from the first byte; usually port 465.
    #[default]
    Tls,
    /// TLS after a word in the clear; usually port 587. Nothing is sent where the server does not do it.
    Starttls,
    /// None: only to a server on this machine.
    None,
}

/// A host name or an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MailHost(String);

/// An e-mail address: enough of one to be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MailAddress(String);

/// Not something that mail can go to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// Not a host.
    #[error(
        "{0:?} is not the name of a mail server; write it without port and without https://, as in smtp.example.org"
    )]
    Host(String),
    /// Not an address.
    #[error("{0:?} is not an e-mail address, as in box@example.org")]
    Address(String),
    /// In the clear over a network.
    #[error(
        "mail to {0} would go over the network in the clear, with its password; choose TLS or STARTTLS"
    )]
    Clear(String),
    /// Port 0.
    #[error("a mail server has a port: usually 465 with TLS, 587 with STARTTLS")]
    Port,
}

impl MailServer {
    /// What types cannot say.
    pub fn check(&self) -> Result<(), MailError> {
        if self.port == 0 {
            return Err(MailError::Port);
        }
        if self.security == MailSecurity::None && !self.server.is_this_machine() {
            return Err(MailError::Clear(self.server.0.clone()));
        }
        Ok(())
    }
}

impl MailHost {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What goes there does not leave this machine.
    pub fn is_this_machine(&self) -> bool {
        self.0 == "localhost"
            || self.0.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for MailHost {
    type Err = MailError;
    fn from_str(given: &str) -> Result<Self, MailError> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-.:".contains(&c);
        let numbers = given.parse::<std::net::IpAddr>().is_ok();
        let name = !given.contains(':') && !given.starts_with(['-', '.']);
        match !given.is_empty()
            && given.len() <= 253
            && given.bytes().all(plain)
            && (name || numbers)
        {
            true => Ok(Self(given.to_owned())),
            false => Err(MailError::Host(given.chars().take(80).collect())),
        }
    }
}

impl MailAddress {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MailAddress {
    type Err = MailError;
    fn from_str(given: &str) -> Result<Self, MailError> {
        let plain = |c: u8| c.is_ascii_graphic() && !b"<>()[],;:\\\"".contains(&c);
        let parts = given.split_once('@');
        let good = parts
            .is_some_and(|(who, host)| !who.is_empty() && !host.is_empty() && !host.contains('@'));
        match good && given.len() <= 254 && given.bytes().all(plain) {
            true => Ok(Self(given.to_owned())),
            false => Err(MailError::Address(given.chars().take(80).collect())),
        }
    }
}

macro_rules! text {
    ($name:ty) => {
        impl TryFrom<String> for $name {
            type Error = MailError;
            fn try_from(given: String) -> Result<Self, MailError> {
                given.parse()
            }
        }
        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text!(MailHost);
text!(MailAddress);

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str, security: MailSecurity) -> MailServer {
        let (server, sender) = (host.parse().unwrap(), "box@example.org".parse().unwrap());
        MailServer { server, port: 465, security, sender, user: None, authority: None }
    }

    #[test]
    fn mail_in_the_clear_stays_on_this_machine() {
        assert!(server("127.0.0.1", MailSecurity::None).check().is_ok());
        assert!(server("smtp.example.org", MailSecurity::Starttls).check().is_ok());
        let clear = server("smtp.example.org", MailSecurity::None).check();
        assert!(matches!(clear, Err(MailError::Clear(_))));
    }

    #[test]
    fn hosts_and_addresses_that_are_none_are_refused() {
        for bad in ["", "https://x.org", "x.org:465", "a b", "-x", "x\r\ny"] {
            assert!(bad.parse::<MailHost>().is_err(), "{bad}");
        }
        for bad in ["", "ada", "@x", "ada@", "a@b@c", "a b@c", "ada@x\r\nBcc: eve@x", "<a@b>"] {
            assert!(bad.parse::<MailAddress>().is_err(), "{bad}");
        }
        assert!("::1".parse::<MailHost>().unwrap().is_this_machine());
    }

    #[test]
    fn alerts_are_a_table_of_the_site_that_is_left_out_where_nobody_wants_them() {
        let mut site = crate::Site::unclaimed(8443);
        assert!(!site.to_toml().contains("alerts"));
        let mail = Some(server("smtp.example.org", MailSecurity::Tls));
        site.alerts = Some(Alerts { mail, webhook: true, ..Alerts::default() });
        assert_eq!(crate::Site::from_toml(&site.to_toml()).unwrap(), site);
        let clear = site.to_toml().replace("security = \"tls\"", "security = \"none\"");
        assert!(crate::Site::from_toml(&clear).unwrap_err().to_string().contains("in the clear"));
    }
}
