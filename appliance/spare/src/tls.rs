//! TLS 1.3 alone, between two certificates that know each other byte for byte. No authority has a say.

use std::sync::{Arc, RwLock};

use polder_pin::{Known, Versions};
use rustls::{ClientConfig, Error, ServerConfig};
use rustls_pki_types::ServerName;

use crate::identity::NAME;
use crate::{Certificate, Identity, SpareError};

/// Whose certificate is let in; none while nobody is paired.
pub(crate) type Pin = Arc<RwLock<Option<Certificate>>>;
/// Whose certificates are let in to hear that they are out.
pub(crate) type Out = Arc<RwLock<Vec<Certificate>>>;

/// The spare's side. A caller that shows the pinned certificate is let in as the main box, one of a former main box to hear that it is out,
/// one that shows none as a stranger, and one that shows another not at all.
pub(crate) fn server(identity: &Identity, pin: Pin, out: Out) -> Result<ServerConfig, SpareError> {
    let known = Known::by(move |shown| {
        let pin = pin.read().expect("nothing panics while it holds this");
        let out = out.read().expect("nothing panics while it holds this");
        pin.iter().chain(out.iter()).any(|known| known.der() == shown)
    });
    let config = polder_pin::called(known, Versions::Only13)
        .map_err(cannot)?
        .with_single_cert(vec![identity.certificate().der().clone()], identity.key());
    let mut config = config.map_err(cannot)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets would let a caller in again without asking whether it is still pinned.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The main box's side, to a spare that is pinned.
pub(crate) fn client(identity: &Identity, pin: &Certificate) -> Result<ClientConfig, SpareError> {
    let config = polder_pin::calling(Known::certificate(pin.der()), Versions::Only13)
        .map_err(cannot)?
        .with_client_auth_cert(vec![identity.certificate().der().clone()], identity.key());
    config.map_err(cannot)
}

/// To a spare that is not known yet: any certificate is taken, and proved afterwards.
pub(crate) fn stranger() -> Result<ClientConfig, SpareError> {
    let config = polder_pin::calling(Known::anybody(), Versions::Only13).map_err(cannot)?;
    Ok(config.with_no_client_auth())
}

/// The name that is asked for; nobody goes by it.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("the literal is a host name")
}

fn cannot(error: Error) -> SpareError {
    SpareError::Certificate(error.to_string())
}
