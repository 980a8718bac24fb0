use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::authority::{Authority, Ca};
use crate::clock::Clock;
use crate::decide::{self, AuthorityDue, LeafDue};
use crate::leaf::{Leaf, Served};
use crate::public::PublicChain;
use crate::{Names, PkiError, files};

/// Keeps the box's authority and certificate, and renews them when they are due.
///
/// In the folder: `authority-N.pem` (key and certificate, one file per authority there ever was),
/// `leaf.pem` (key and certificates that are served), `ca.pem` (the authority's certificate alone,
/// for members).
pub struct Keeper {
    folder: PathBuf,
    inner: Mutex<Inner>,
    moment: Arc<Moment>,
}

struct Inner {
    /// Oldest first; the number in the file's name is the index plus one.
    authorities: Vec<Authority>,
    /// Which of them signs.
    signs: usize,
    leaf: Leaf,
}

/// What [`Keeper::refresh`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// Everything was as it should be.
    Nothing,
    /// Another certificate is served; nobody notices.
    Leaf(LeafDue),
    /// Another authority signs: members must install its certificate.
    Authority {
        /// One sentence for stewards: what happened, and what members must do.
        statement: String,
    },
}

impl Keeper {
    /// Opens the folder, making what is missing.
    pub fn open(folder: &Path, names: &Names, clock: impl Into<Clock>) -> Result<Self, PkiError> {
        let now = clock.into();
        files::private_folder(folder)?;
        let mut authorities = Vec::new();
        while let Some(authority) = Authority::read(&authority_path(folder, authorities.len()))? {
            authorities.push(authority);
        }
        let (signs, statement) = signing(folder, &mut authorities, names, now)?;
        if let Some(statement) = statement {
            log::warn!("{statement}");
        }
        let (leaf, _) = current_leaf(folder, &authorities[signs], None, names, now)?;
        let moment =
            Arc::new(Moment { own: RwLock::new(leaf.served.clone()), public: RwLock::default() });
        let keeper = Self {
            folder: folder.to_owned(),
            inner: Mutex::new(Inner { authorities, signs, leaf }),
            moment,
        };
        keeper.publish()?;
        Ok(keeper)
    }

    /// Makes true again what time or a new name changed. Cheap when nothing is due; connections
    /// that are open stay open.
    pub fn refresh(&self, names: &Names, clock: impl Into<Clock>) -> Result<Refreshed, PkiError> {
        let now = clock.into();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        let before = inner.signs;
        let (signs, statement) = signing(&self.folder, &mut inner.authorities, names, now)?;
        let signer = &inner.authorities[signs];
        let (leaf, due) = current_leaf(&self.folder, signer, Some(&inner.leaf), names, now)?;
        inner.signs = signs;
        if due.is_some() {
            *self.moment.own.write().unwrap_or_else(PoisonError::into_inner) = leaf.served.clone();
            inner.leaf = leaf;
        }
        if signs == before {
            return Ok(due.map_or(Refreshed::Nothing, Refreshed::Leaf));
        }
        publish(&self.folder, signer)?;
        let statement = statement.unwrap_or_else(|| {
            format!(
                "The box is signed by an earlier certificate authority again ({}); devices that have its certificate installed need nothing.",
                signer.fingerprint()
            )
        });
        Ok(Refreshed::Authority { statement })
    }

    /// The authority's certificate.
    pub fn ca(&self) -> Ca {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let authority = &inner.authorities[inner.signs];
        Ca {
            file: ca_path(&self.folder),
            pem: authority.pem.clone(),
            fingerprint: authority.fingerprint(),
        }
    }

    /// SHA-256 of the certificate that whoever names no host is shown, by which somebody far away knows this door again.
    pub fn shown_without_a_name(&self) -> [u8; 32] {
        let served = self.moment.own.read().unwrap_or_else(PoisonError::into_inner);
        let certificate = served.by_address.cert.first().map_or(&[][..], |first| first.as_ref());
        use sha2::Digest;
        sha2::Sha256::digest(certificate).into()
    }

    /// From now on, who comes by a name that this certificate speaks for gets it; everybody else, and everybody once it is
    /// over, gets the box's own. Connections that are open stay open.
    pub fn serve_publicly(&self, chain: Option<PublicChain>) {
        *self.moment.public.write().unwrap_or_else(PoisonError::into_inner) = chain;
    }

    /// TLS 1.2 and 1.3 with the certificate of the moment, offering these protocols.
    pub fn server_config(&self, protocols: &[&str]) -> Result<Arc<ServerConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.moment.clone());
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        config.ticketer = rustls::crypto::ring::Ticketer::new()?;
        Ok(Arc::new(config))
    }

    fn publish(&self) -> Result<(), PkiError> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        publish(&self.folder, &inner.authorities[inner.signs])
    }
}

/// Writes `ca.pem`, unless it already says so.
fn publish(folder: &Path, authority: &Authority) -> Result<(), PkiError> {
    let path = ca_path(folder);
    if files::read(&path)?.as_deref() == Some(&authority.pem) {
        return Ok(());
    }
    files::write(&path, &authority.pem)
}

/// The authority that signs now, made if need be; with what to tell people about it.
fn signing(
    folder: &Path,
    authorities: &mut Vec<Authority>,
    names: &Names,
    now: Clock,
) -> Result<(usize, Option<String>), PkiError> {
    let facts: Vec<_> = authorities.iter().map(|authority| authority.facts.clone()).collect();
    let due = match decide::choose_authority(&facts, names, now) {
        Ok(index) => return Ok((index, None)),
        Err(due) => due,
    };
    let made = Authority::make(&authority_path(folder, authorities.len()), names, now.now)?;
    let fingerprint = made.fingerprint();
    authorities.push(made);
    let why = match due {
        AuthorityDue::None => {
            log::info!("made the box's certificate authority, SHA-256 {fingerprint}");
            return Ok((authorities.len() - 1, None));
        }
        AuthorityDue::Outside(host) => {
            format!("the old one may not speak for the box's new name {host}")
        }
        AuthorityDue::TooWide => {
            "the old one may speak for a name without a dot, below which others may have theirs; take the old one off every device".to_owned()
        }
        AuthorityDue::Ends => "the old one is near its end".to_owned(),
        AuthorityDue::Future => {
            "the old one was made while the clock was ahead, and no device takes it yet".to_owned()
        }
    };
    let statement = format!(
        "The box has another certificate authority, because {why}; members must install its certificate once more (SHA-256 {fingerprint}). The old one is kept, unused."
    );
    Ok((authorities.len() - 1, Some(statement)))
}

/// The certificate to serve: the one there is, or a new one with the reason for it.
fn current_leaf(
    folder: &Path,
    authority: &Authority,
    held: Option<&Leaf>,
    names: &Names,
    now: Clock,
) -> Result<(Leaf, Option<LeafDue>), PkiError> {
    let path = folder.join("leaf.pem");
    let there = match held {
        Some(leaf) => Some(Leaf { facts: leaf.facts.clone(), served: leaf.served.clone() }),
        None => Leaf::read(&path)?,
    };
    let due = decide::leaf_due(there.as_ref().map(|l| &l.facts), &authority.facts, names, now);
    let before = there.as_ref().map(|leaf| leaf.facts.validity);
    match (there, due) {
        (Some(leaf), None) => Ok((leaf, None)),
        (_, due) => {
            let due = due.unwrap_or(LeafDue::None);
            log::info!("made a certificate for the box: {due}");
            let held = before.filter(|_| due == LeafDue::Early);
            let validity = decide::leaf_validity(now, authority.facts.validity, held);
            Ok((Leaf::make(&path, authority, names, validity)?, Some(due)))
        }
    }
}

pub(crate) fn authority_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("authority-{}.pem", index + 1))
}

pub(crate) fn ca_path(folder: &Path) -> PathBuf {
    folder.join("ca.pem")
}

/// Hands rustls the certificate of the moment. Who comes by address names none.
struct Moment {
    own: RwLock<Served>,
    public: RwLock<Option<PublicChain>>,
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Moment")
    }
}

impl ResolvesServerCert for Moment {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(host) = hello.server_name() {
            let public = self.public.read().unwrap_or_else(PoisonError::into_inner);
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            let host = host.to_ascii_lowercase();
            if let Some(served) = public.as_ref().and_then(|chain| chain.served_at(&host, now)) {
                return Some(served);
            }
        }
        let served = self.own.read().unwrap_or_else(PoisonError::into_inner);
        Some(match hello.server_name() {
            Some(_) => served.by_name.clone(),
            None => served.by_address.clone(),
        })
    }
}
