//! The gateway's private socket: the few things that only the owner of the machine may do.

use std::sync::Arc;
use std::time::Duration;

use polder_acme::{Acme, AcmeError};
use polder_control::{
    Actor, Claim, ControlError, DoorReply, DoorRequest, Doorway, Handler, Outlet, SecretName,
    StewardContact,
};
use polder_members::{Member, MembersError, Secret};

use crate::{Gateway, deeds};

/// How long a claim code is good.
pub(crate) const CLAIM_WINDOW: Duration = Duration::from_secs(30 * 60);

/// A code would let in whoever stands before the machine.
const OWNED: &str =
    "this box is claimed with its owner's key file and has no code; open it in a browser";

/// Its files cannot be used.
const NO_CERTIFICATE: &str =
    "the folder pki/public in the box's state folder cannot be used; the log says why";

/// For the audit trail; never the secret itself.
pub(crate) fn secret_in_words(name: SecretName, gone: bool) -> (&'static str, &'static str) {
    let on = match name {
        SecretName::Account => "the account with the certificate authority",
        SecretName::DnsKey => "the key to the DNS zone",
        SecretName::Hook => "the DNS hook",
    };
    (if gone { "forgot the secret of" } else { "gave the secret of" }, on)
}

/// Answers the console.
pub(crate) struct Console(pub(crate) Arc<Gateway>);

impl Handler<DoorRequest, DoorReply> for Console {
    async fn handle(
        &self,
        question: DoorRequest,
        outlet: &mut Outlet<DoorReply>,
    ) -> Result<(), ControlError> {
        let reply = match self.answer(question).await {
            Ok(reply) => reply,
            Err(MembersError::Claimed) => DoorReply::Claimed,
            Err(error) => DoorReply::Refused(error.to_string()),
        };
        outlet.send(&reply).await
    }
}

impl Console {
    async fn answer(&self, question: DoorRequest) -> Result<DoorReply, MembersError> {
        let members = &self.0.members;
        let claim = |code: Secret| {
            DoorReply::Claim(Claim {
                code: code.expose().to_owned(),
                seconds: CLAIM_WINDOW.as_secs(),
            })
        };
        let opens = matches!(question, DoorRequest::OpenClaim | DoorRequest::ReopenSetup);
        if opens && self.0.owner.is_some() && !members.ask(|m| m.is_claimed()).await? {
            return Ok(DoorReply::Refused(OWNED.to_owned()));
        }
        match question {
            DoorRequest::Ready => {
                let claimed = members.ask(|members| members.is_claimed()).await?;
                let ca = self.0.ca();
                let owner_key = self.0.owner.is_some();
                Ok(DoorReply::Ready {
                    ca_file: ca.file,
                    fingerprint: ca.fingerprint,
                    claimed,
                    owner_key,
                })
            }
            DoorRequest::Doorway => {
                let doorway = self.0.doorway.borrow().clone();
                let answering = u32::try_from(self.0.tally.streams()).unwrap_or(0);
                Ok(DoorReply::Doorway(Doorway { answering, ..doorway }))
            }
            DoorRequest::OpenClaim => {
                let code = members.ask(|members| members.open_claim(CLAIM_WINDOW)).await?;
                self.record("opened the claim window", "the box").await;
                Ok(claim(code))
            }
            DoorRequest::ReopenSetup => {
                let code = members.ask(|members| members.reopen_setup(CLAIM_WINDOW)).await?;
                self.record("reopened the set-up", "the box").await;
                Ok(claim(code))
            }
            DoorRequest::UpKey => {
                let minted = members.ask(|members| members.ensure_up_key()).await?;
                self.record("made the key", &minted.info.label).await;
                Ok(DoorReply::Key(minted.key.expose().to_owned()))
            }
            DoorRequest::Certificate => Ok(self.certificate(|_| Ok(()))),
            DoorRequest::RenewCertificate => {
                self.record("asked for a renewal of", "the public certificate").await;
                Ok(self.certificate(|acme| acme.try_now()))
            }
            DoorRequest::KeepSecret { name, text } => {
                let (what, on) = secret_in_words(name, text.expose().is_empty());
                self.record(what, on).await;
                Ok(self.certificate(|acme| acme.keep_secret(name, text)))
            }
            DoorRequest::TestKey => match members.ask(|members| members.mint_test_key()).await? {
                Some(minted) => Ok(DoorReply::Key(minted.key.expose().to_owned())),
                None => Ok(DoorReply::Refused("nobody owns this box yet".to_owned())),
            },
            DoorRequest::Stewards => {
                let members = members.ask(|members| members.members()).await?;
                let stewards = members.into_iter().filter(|m| m.is_steward() && !m.disabled);
                let contact = |m: Member| StewardContact { name: m.name, email: m.email };
                Ok(DoorReply::Stewards(stewards.map(contact).collect()))
            }
            DoorRequest::Outside => Ok(DoorReply::Outside(self.0.outside.seen())),
            DoorRequest::HearGone => members.ask(|m| m.hear_gone()).await.map(DoorReply::Gone),
        }
    }

    fn certificate(&self, act: impl FnOnce(&Acme) -> Result<(), AcmeError>) -> DoorReply {
        let Some(acme) = &self.0.acme else {
            return DoorReply::Refused(NO_CERTIFICATE.to_owned());
        };
        match act(acme) {
            Ok(()) => DoorReply::Certificate(acme.status()),
            Err(error) => DoorReply::Refused(error.to_string()),
        }
    }

    /// For the audit trail, which the supervisor keeps. Its absence keeps nobody at the console from
    /// their box.
    async fn record(&self, what: &str, on: &str) {
        deeds::record(&self.0, Actor::Console, what, on).await;
    }
}
