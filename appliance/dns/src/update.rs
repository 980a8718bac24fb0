use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::message::{self, Odd, Said};
use crate::name::Name;
use crate::tsig::Key;

/// How long the server may take, name look-up and connection included.
const WITHIN: Duration = Duration::from_secs(15);
/// More changes than anybody makes at once.
const MOST: usize = 200;

/// A zone that may be changed.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Its primary server: `HOST:PORT`.
    pub server: String,
    /// What it is called.
    pub name: Name,
    /// What the server knows us by.
    pub key: Key,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A text.
    Txt(String),
}

impl Data {
    pub(crate) fn kind(&self) -> u16 {
        match self {
            Self::A(_) => 1,
            Self::Txt(_) => 16,
            Self::Aaaa(_) => 28,
        }
    }
}

/// One thing to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Add a record; the same one twice is there once.
    Add {
        /// Of this name.
        name: Name,
        /// For how many seconds others may keep it.
        ttl: u32,
        /// What it says.
        data: Data,
    },
    /// Remove the record that says this; one that is not there is no error.
    Remove {
        /// Of this name.
        name: Name,
        /// What it says.
        data: Data,
    },
    /// Remove every record of this name that is of the same kind as `like`.
    RemoveAll {
        /// Of this name.
        name: Name,
        /// What kind.
        like: Data,
    },
}

impl Change {
    fn name(&self) -> &Name {
        match self {
            Self::Add { name, .. } | Self::Remove { name, .. } | Self::RemoveAll { name, .. } => {
                name
            }
        }
    }
}

/// The zone is as it was, as far as we know.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The server cannot be reached.
    #[error(
        "the DNS server {server} cannot be reached ({source}); check its address and port, and that it takes TCP"
    )]
    Unreachable {
        /// Which.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// It said nothing in time.
    #[error("the DNS server {0} did not answer within 15 s; check its address and port")]
    Silent(String),
    /// It does not answer as a DNS server that has the key would.
    #[error(
        "the DNS server {server} {what}; check that {server} is the zone's primary server and has the key"
    )]
    Odd {
        /// Which.
        server: String,
        /// What it did.
        what: &'static str,
    },
    /// It said no.
    #[error("the DNS server {server} does not let the zone {zone} be changed: {why}")]
    Refused {
        /// Which.
        server: String,
        /// The zone.
        zone: Name,
        /// Why, and what to do.
        why: String,
    },
    /// A name that is not in the zone.
    #[error("{name} is not in the zone {zone}; name the zone that it is in")]
    Outside {
        /// The name.
        name: Name,
        /// The zone.
        zone: Name,
    },
}

/// Makes all of these changes or none, and comes back when the zone's server has.
pub async fn update(zone: &Zone, changes: &[Change]) -> Result<(), DnsError> {
    if let Some(outside) = changes.iter().find(|change| !change.name().is_within(&zone.name)) {
        return Err(DnsError::Outside { name: outside.name().clone(), zone: zone.name.clone() });
    }
    for changes in changes.chunks(MOST) {
        let mut id = [0; 2];
        // Without randomness the number is guessable, which TCP and the signature make up for.
        let _ = SystemRandom::new().fill(&mut id);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = u16::from_be_bytes(id);
        let request = message::request(id, &zone.name, changes, &zone.key, since.as_secs());
        let server = || zone.server.clone();
        let answer = match timeout(WITHIN, exchange(&zone.server, &request.bytes)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => return Err(DnsError::Unreachable { server: server(), source }),
            Err(_) => return Err(DnsError::Silent(server())),
        };
        let odd = |what| DnsError::Odd { server: server(), what };
        match message::read(&answer, &request, &zone.key) {
            Ok(Said { code: 0, signature: 0 }) => {}
            Ok(said) => {
                let (server, zone) = (server(), zone.name.clone());
                return Err(DnsError::Refused { server, zone, why: why(said) });
            }
            Err(Odd::Garbled) => return Err(odd("sent something that is no DNS")),
            Err(Odd::NotOurs) => return Err(odd("answered another question")),
            Err(Odd::Unsigned) => return Err(odd("did not sign its answer")),
        }
    }
    Ok(())
}

async fn exchange(server: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    // Changes that come to more than this are cut into several messages before.
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), request].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn why(said: Said) -> String {
    match (said.signature, said.code) {
        (16, _) => "the secret of the key is another one there (BADSIG); copy it once more".into(),
        (17, _) => "it does not know the key (BADKEY); check the key's name, and that it is an hmac-sha256 key".into(),
        (18, _) => "its clock and the box's differ by more than five minutes (BADTIME); set them right".into(),
        (_, 5) => "the key may not (REFUSED); allow it there, as with `update-policy` in BIND".into(),
        (_, 9) => "it is not the primary server of that zone, or does not know the key (NOTAUTH)".into(),
        (_, 10) => "a name is not in that zone (NOTZONE)".into(),
        (_, 2) => "it failed (SERVFAIL); its log says why, often that it may not write its zone's file".into(),
        (_, 4) => "it takes no updates (NOTIMP)".into(),
        (0, code) => format!("its code is {code}"),
        (signature, code) => format!("its codes are {code} and {signature}"),
    }
}
