//! One certificate, from the account to the file. It may be cut off anywhere, by a power cut too: what was reached is on disk
//! before the next thing is asked for, and the next try goes on from there.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ExternalAccountKey, Identifier, Key,
    NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use polder_control::SecretName;
use polder_pki::{PkiError, PublicChain};
use polder_site::PublicCertificate;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::prove::{HttpProofs, Prover, Shown};
use crate::store::{self, Folder, Secrets};
use crate::trouble::{Trouble, clean};
use crate::web::Web;

/// How far a certificate is; also what people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The account's key is on disk.
    AccountKey,
    /// The authority knows us.
    Account,
    /// It has our order.
    Ordered,
    /// Proofs are about to be shown, and where is on disk.
    Showing,
    /// They can be seen.
    Shown,
    /// The authority was told to look.
    Looking,
    /// It has seen them.
    Proved,
    /// It has the request for the certificate itself.
    Requested,
    /// The certificate is on disk.
    Kept,
}

impl Step {
    /// In words, while it goes on to the next.
    pub fn words(self) -> &'static str {
        match self {
            Self::AccountKey => "introduces the box to the authority",
            Self::Account => "orders the certificate",
            Self::Ordered => "prepares the proofs",
            Self::Showing => "shows the proofs",
            Self::Shown => "waits until the world can see the proofs",
            Self::Looking => "waits for the authority to look at the proofs",
            Self::Proved => "asks for the certificate",
            Self::Requested => "waits for the certificate",
            Self::Kept => "puts everything away",
        }
    }
}

/// How often a whole try is gone on with at once after bad nonces.
const MOST_NONCES: u32 = 6;

/// What one certificate is obtained with.
pub(crate) struct Obtain<'a> {
    pub(crate) folder: &'a Folder,
    pub(crate) certificate: &'a PublicCertificate,
    pub(crate) secrets: &'a Secrets,
    pub(crate) proofs: &'a Arc<HttpProofs>,
    pub(crate) web: &'a Web,
    /// How long and how often an authority is asked whether it is done.
    pub(crate) patience: RetryPolicy,
    pub(crate) step: &'a watch::Sender<Option<Step>>,
    /// The certificate that this one is for, where its authority speaks of renewing.
    pub(crate) replaces: Option<CertificateDer<'static>>,
    pub(crate) now: i64,
}

impl Obtain<'_> {
    /// All of it.
    pub(crate) async fn run(&self) -> Result<PublicChain, Trouble> {
        let mut nonces = 0;
        let mut strange = false;
        loop {
            match self.attempt().await {
                // It has lost our account, or threw it out: once more as a stranger.
                Err(trouble) if trouble.knows_us_not() && !strange => {
                    strange = true;
                    self.folder.forget_account()?;
                    self.folder.forget_order()?;
                }
                // instant-acme has tried three times; the order goes on where it was.
                Err(trouble) if trouble.is_nonce() && nonces < MOST_NONCES => nonces += 1,
                done => return done,
            }
        }
    }

    async fn attempt(&self) -> Result<PublicChain, Trouble> {
        let prover = Prover::of(self.certificate, self.secrets, self.proofs, self.web);
        let prover = prover.map_err(Trouble::Said)?;
        let account = self.account().await?;
        let (mut order, mut kept) = self.order(&account, &prover).await?;
        let outcome = self.fulfil(&mut order, &mut kept, &prover).await;
        // Whatever became of it, nobody needs to see the proofs any more; unless it is only not decided yet.
        match outcome {
            Ok(chain) => {
                self.clear(&kept, &prover).await;
                self.folder.forget_order()?;
                Ok(chain)
            }
            Err(trouble) if trouble.ends_the_order() => {
                self.clear(&kept, &prover).await;
                self.folder.forget_order()?;
                Err(trouble)
            }
            Err(trouble) => Err(trouble),
        }
    }

    async fn at(&self, step: Step) {
        self.step.send_replace(Some(step));
        tokio::task::yield_now().await;
    }

    pub(crate) async fn account(&self) -> Result<Account, Trouble> {
        let directory = self.certificate.directory.as_str();
        let bound_to = self.certificate.account.as_deref();
        let kept = self.folder.account(directory, bound_to)?;
        let builder = Account::builder_with_http(Box::new(self.web.clone()));
        let mut keep = store::Account {
            directory: directory.to_owned(),
            bound_to: bound_to.map(str::to_owned),
            key: None,
            credentials: None,
        };
        let key = match kept {
            Some(store::Account { credentials: Some(credentials), .. }) => {
                return Ok(builder.from_credentials(credentials).await?);
            }
            Some(store::Account { key, .. }) => key,
            None => None,
        };
        let contact = self.certificate.contact.as_ref().map(|to| format!("mailto:{to}"));
        let contact: Vec<&str> = contact.as_deref().into_iter().collect();
        let (account, credentials) = match bound_to {
            Some(id) => {
                // instant-acme makes the key of a bound account itself: it cannot be on disk before.
                let key = external(id, self.secrets)?;
                let new = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                builder.create(&new, directory.to_owned(), Some(&key)).await?
            }
            None => {
                let der = match key.and_then(|key| BASE64_STANDARD.decode(key).ok()) {
                    Some(der) => PrivatePkcs8KeyDer::from(der),
                    None => Key::generate_pkcs8()?.1,
                };
                keep.key = Some(BASE64_STANDARD.encode(der.secret_pkcs8_der()));
                self.folder.keep_account(&keep)?;
                self.at(Step::AccountKey).await;
                let key = (Key::from_pkcs8_der(der.clone_key())?, PrivateKeyDer::Pkcs8(der));
                let made = builder.create_from_key(key, directory.to_owned()).await?;
                if !contact.is_empty()
                    && let Err(error) = made.0.update_contacts(&contact).await
                {
                    log::warn!("the authority did not take the address {contact:?}: {error}");
                }
                made
            }
        };
        self.folder.keep_account(&store::Account {
            key: None,
            credentials: Some(credentials),
            ..keep
        })?;
        Ok(account)
    }

    /// The order that was begun, if there is one that can be gone on with; a new one otherwise.
    async fn order(
        &self,
        account: &Account,
        prover: &Prover,
    ) -> Result<(instant_acme::Order, store::Order), Trouble> {
        self.at(Step::Account).await;
        let directory = self.certificate.directory.as_str();
        let names: Vec<String> =
            self.certificate.names.iter().map(|name| name.as_str().to_owned()).collect();
        if let Some(kept) = self.folder.order()? {
            if kept.directory == directory && kept.names == names && kept.is_young(self.now) {
                match account.order(kept.url.clone()).await.map_err(Trouble::from) {
                    Ok(order) => return Ok((order, kept)),
                    Err(trouble) if !trouble.is_about_the_order() => return Err(trouble),
                    Err(trouble) => log::info!("the order that was begun is gone: {trouble}"),
                }
            }
            self.clear(&kept, prover).await;
            self.folder.forget_order()?;
        }
        let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
        let plain = || NewOrder::new(&identifiers);
        let replaces =
            self.replaces.as_ref().and_then(|der| CertificateIdentifier::try_from(der).ok());
        let order = match replaces {
            Some(replaces) => match account.new_order(&plain().replaces(replaces)).await {
                Err(error) if Trouble::refuses_replacement(&error) => {
                    account.new_order(&plain()).await?
                }
                order => order?,
            },
            None => account.new_order(&plain()).await?,
        };
        let kept = store::Order {
            directory: directory.to_owned(),
            names,
            url: order.url().to_owned(),
            since: self.now,
            key: KeyPair::generate()?.serialize_pem(),
            proofs: Vec::new(),
        };
        self.folder.keep_order(&kept)?;
        Ok((order, kept))
    }

    async fn fulfil(
        &self,
        order: &mut instant_acme::Order,
        kept: &mut store::Order,
        prover: &Prover,
    ) -> Result<PublicChain, Trouble> {
        self.at(Step::Ordered).await;
        let key = KeyPair::from_pem(&kept.key)?;
        if order.state().status == OrderStatus::Pending {
            self.prove(order, kept, prover).await?;
        }
        if order.state().status == OrderStatus::Invalid {
            return Err(why_invalid(order).await);
        }
        self.at(Step::Proved).await;
        if order.state().status == OrderStatus::Ready {
            let mut params = CertificateParams::new(kept.names.clone())?;
            params.distinguished_name = DistinguishedName::new();
            order.finalize_csr(params.serialize_request(&key)?.der()).await?;
        }
        self.at(Step::Requested).await;
        let pem = match order.state().status {
            OrderStatus::Valid => order.certificate().await?,
            _ => Some(order.poll_certificate(&self.patience).await?),
        };
        let pem = format!("{}\n{}", pem.unwrap_or_default().trim_end(), kept.key);
        let chain = PublicChain::from_pem(&pem).ok_or(Trouble::NotOurs)?;
        if let Some(name) = kept.names.iter().find(|name| !chain.names().contains(name)) {
            return Err(Trouble::NotFor(name.clone()));
        }
        self.folder.keep_chain(&kept.directory, &pem)?;
        self.at(Step::Kept).await;
        Ok(chain)
    }

    /// Until the order is ready, or will never be.
    async fn prove(
        &self,
        order: &mut instant_acme::Order,
        kept: &mut store::Order,
        prover: &Prover,
    ) -> Result<(), Trouble> {
        let mut proofs: Vec<Shown> = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let name = authorization.identifier().to_string();
            let challenge = authorization.challenge(prover.kind());
            let challenge = challenge.ok_or_else(|| Trouble::NoSuchProof(name.clone()))?;
            let answer = challenge.key_authorization();
            proofs.push(match prover {
                Prover::Http(_) => (challenge.token.clone(), answer.as_str().to_owned()),
                Prover::Update { .. } | Prover::Hook { .. } => {
                    let base = name.strip_prefix("*.").unwrap_or(&name);
                    (format!("_acme-challenge.{base}"), answer.dns_value())
                }
            });
        }
        // Before it is shown: after a power cut somebody must still know what to remove, and what to answer.
        let new = proofs.iter().filter(|proof| !kept.proofs.contains(proof));
        let new: Vec<Shown> = new.cloned().collect();
        kept.proofs.extend(new);
        self.folder.keep_order(kept)?;
        self.at(Step::Showing).await;
        prover.show(&proofs).await.map_err(Trouble::Said)?;
        self.have_looked(order, prover).await
    }

    async fn have_looked(
        &self,
        order: &mut instant_acme::Order,
        prover: &Prover,
    ) -> Result<(), Trouble> {
        self.at(Step::Shown).await;
        tokio::time::sleep(prover.wait()).await;
        let mut refused = None;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(prover.kind())
                // After a cut it may have been told already.
                && challenge.status == instant_acme::ChallengeStatus::Pending
            {
                refused = challenge.set_ready().await.err().or(refused);
            }
        }
        if let Some(refused) = refused
            && is_undecided(order).await
        {
            return Err(refused.into());
        }
        self.at(Step::Looking).await;
        match order.poll_ready(&self.patience).await {
            Ok(OrderStatus::Invalid) => Err(why_invalid(order).await),
            Ok(_) => Ok(()),
            Err(instant_acme::Error::Api(problem)) => match why_invalid(order).await {
                // It says no more of the proofs than of the order.
                Trouble::Invalid(why) if why.is_empty() => {
                    Err(instant_acme::Error::Api(problem).into())
                }
                trouble => Err(trouble),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Takes proofs away. Left over they only litter.
    async fn clear(&self, kept: &store::Order, prover: &Prover) {
        if kept.proofs.is_empty() {
            return;
        }
        if let Err(why) = prover.remove(&kept.proofs).await {
            log::warn!("the proofs for a certificate stay where they are: {why}");
        }
    }
}

/// Whether the authority still waits to be told of a proof. One that was told before a cut may decide between two questions, and
/// does not want to be told any more.
async fn is_undecided(order: &mut instant_acme::Order) -> bool {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { return true };
        match authorization.refresh().await {
            Ok(state) if state.status != AuthorizationStatus::Pending => {}
            _ => return true,
        }
    }
    false
}

/// What the authority says about each proof that it did not accept.
async fn why_invalid(order: &mut instant_acme::Order) -> Trouble {
    let mut why = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        let errors =
            authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        for error in errors {
            let detail = error.detail.as_deref().or(error.r#type.as_deref());
            why.push(format!("{name}: {}", clean(detail.unwrap_or("no reason"))));
        }
    }
    Trouble::Invalid(why.join("; "))
}

fn external(id: &str, secrets: &Secrets) -> Result<ExternalAccountKey, Trouble> {
    let text = secrets.get(&SecretName::Account).map_or("", |text| text.expose());
    let bytes = BASE64_URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .or_else(|_| BASE64_URL_SAFE.decode(text))
        .or_else(|_| BASE64_STANDARD.decode(text));
    match bytes {
        Ok(bytes) if !bytes.is_empty() => Ok(ExternalAccountKey::new(id.to_owned(), &bytes)),
        _ => Err(Trouble::Said(
            "the secret of the authority's account is not base64; copy it once more from where the authority shows it".into(),
        )),
    }
}

impl store::Order {
    fn is_young(&self, now: i64) -> bool {
        crate::decide::is_young(self.since, now)
    }
}

impl From<PkiError> for Trouble {
    fn from(error: PkiError) -> Self {
        Self::Disk(error)
    }
}
