//! A mail to each steward.

use std::time::Duration;

use lettre::address::AddressError;
use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};
use polder_control::StewardContact;
use polder_site::{MailSecurity, MailServer};

const PATIENCE: Duration = Duration::from_secs(20);

/// A mail could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailTrouble {
    /// Nobody to send to.
    #[error("no steward gave an e-mail address; each can do that on the page Account")]
    Nobody,
    /// Not an address.
    #[error("{0:?} is not an e-mail address")]
    Address(String, #[source] AddressError),
    /// The message could not be made.
    #[error("a mail could not be written: {0}")]
    Message(#[from] lettre::error::Error),
    /// The certificate of the authority cannot be read.
    #[error("the certificate of the mail server's authority cannot be read: {0}")]
    Authority(lettre::transport::smtp::Error),
    /// The server did not take it.
    #[error("the mail server {server} did not take it: {why}")]
    Server {
        /// Which.
        server: String,
        /// Why, in its own words where it said any.
        why: String,
    },
}

/// Sends one mail to every steward with an address, one after the other. Blocks.
pub(crate) fn send(
    server: &MailServer,
    password: Option<&str>,
    stewards: &[StewardContact],
    subject: &str,
    body: &str,
) -> Result<usize, MailTrouble> {
    let addresses: Vec<&str> = stewards.iter().filter_map(|s| s.email.as_deref()).collect();
    if addresses.is_empty() {
        return Err(MailTrouble::Nobody);
    }
    let transport = transport(server, password)?;
    let from = mailbox(server.sender.as_str())?;
    let mut last = Ok(0);
    for address in addresses {
        // One whose address is bad must not keep the others from hearing.
        let sent = mailbox(address).and_then(|to| {
            let message = Message::builder()
                .from(from.clone())
                .to(to)
                .subject(subject)
                .header(ContentType::TEXT_PLAIN)
                .body(body.to_owned())?;
            transport.send(&message).map(drop).map_err(|error| refused(server, &error))
        });
        last = match (last, sent) {
            (Ok(count), Ok(())) => Ok(count + 1),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        };
    }
    last
}

fn transport(server: &MailServer, password: Option<&str>) -> Result<SmtpTransport, MailTrouble> {
    let host = server.server.as_str();
    let mut parameters = TlsParameters::builder(host.to_owned());
    if let Some(pem) = &server.authority {
        let authority = Certificate::from_pem(pem.as_bytes()).map_err(MailTrouble::Authority)?;
        parameters = parameters.add_root_certificate(authority);
    }
    let parameters = || parameters.build_rustls().map_err(MailTrouble::Authority);
    let tls = match server.security {
        MailSecurity::Tls => Tls::Wrapper(parameters()?),
        MailSecurity::Starttls => Tls::Required(parameters()?),
        // Only to this machine: the site refuses anything else.
        MailSecurity::None => Tls::None,
    };
    let mut builder =
        SmtpTransport::builder_dangerous(host).port(server.port).tls(tls).timeout(Some(PATIENCE));
    if let Some(user) = &server.user {
        let password = password.unwrap_or_default().to_owned();
        builder = builder.credentials(Credentials::new(user.clone(), password));
    }
    Ok(builder.build())
}

fn mailbox(address: &str) -> Result<Mailbox, MailTrouble> {
    let parsed =
        address.parse().map_err(|error| MailTrouble::Address(address.to_owned(), error))?;
    Ok(Mailbox::new(None, parsed))
}

fn refused(server: &MailServer, error: &lettre::transport::smtp::Error) -> MailTrouble {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = inner.source();
    }
    MailTrouble::Server { server: server.server.to_string(), why }
}
