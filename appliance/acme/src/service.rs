use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::{CertificateIdentifier, Error, RetryPolicy};
use polder_control::{BoxStatus, FailedTry, HeldCertificate, PublicStatus, SecretName, SecretText};
use polder_pki::{PkiError, PublicChain};
use polder_site::{Proof, PublicCertificate};
use tokio::sync::{Notify, watch};

use crate::decide::{self, Held, Hint, Next, Observed, Pending, Tries, Wanted};
use crate::obtain::{Obtain, Step};
use crate::prove::{self, HttpProofs};
use crate::store::{Diary, Folder, Waiting};
use crate::trouble::Trouble;
use crate::web::Web;

/// Nobody sleeps longer than this without looking at the clock, which may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// Who cannot read their own disk tries again after this.
const DISK_AGAIN: Duration = Duration::from_secs(60);

/// Keeps the public certificate.
#[derive(Debug)]
pub struct Acme {
    folder: Folder,
    proofs: Arc<HttpProofs>,
    shown: watch::Sender<PublicStatus>,
    step: watch::Sender<Option<Step>>,
    nudge: Notify,
    /// Held while files change that both a steward and the loop write.
    writing: Mutex<()>,
    patience: Patience,
}

/// How an authority is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Before it is asked for the first time whether it is done; then half as much again each time.
    pub first: Duration,
    /// In all. What is not decided then is asked for again later, with the same order.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), most: Duration::from_secs(180) }
    }
}

/// Something about a public certificate's files went wrong.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// A file.
    #[error(transparent)]
    Files(#[from] PkiError),
    /// There is nothing to be renewed.
    #[error(
        "the box is not told to have a public certificate; say for which names on the page Certificate"
    )]
    NoneWanted,
}

impl Acme {
    /// Opens the folder in this state folder.
    pub fn open(state: &Path, patience: Patience) -> Result<Arc<Self>, AcmeError> {
        Ok(Arc::new(Self {
            folder: Folder::open(state)?,
            proofs: Arc::default(),
            shown: watch::Sender::default(),
            step: watch::Sender::default(),
            nudge: Notify::new(),
            writing: Mutex::default(),
            patience,
        }))
    }

    /// The certificate that is there, for a start that nobody waits for.
    pub fn current(&self) -> Option<PublicChain> {
        match self.folder.chain() {
            Ok(chain) => chain.map(|(_, chain)| chain),
            Err(error) => {
                log::error!("the public certificate: {}", Trouble::Disk(error));
                None
            }
        }
    }

    /// What the door answers an authority.
    pub fn proofs(&self) -> &HttpProofs {
        &self.proofs
    }

    /// How things are.
    pub fn status(&self) -> PublicStatus {
        let mut status = self.shown.borrow().clone();
        status.doing = self.step.borrow().map(|step| step.words().to_owned());
        status
    }

    /// How far a certificate is that is being obtained.
    pub fn steps(&self) -> watch::Receiver<Option<Step>> {
        self.step.subscribe()
    }

    /// Keeps a secret, or forgets it where the text is empty. What failed for want of it is tried again.
    pub fn keep_secret(&self, name: SecretName, text: SecretText) -> Result<(), AcmeError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut secrets = self.folder.secrets()?;
        match text.expose().is_empty() {
            true => secrets.remove(&name),
            false => secrets.insert(name, text),
        };
        self.folder.keep_secrets(&secrets)?;
        self.shown.send_modify(|shown| shown.secrets = secrets.keys().copied().collect());
        self.forgive(false)?;
        Ok(())
    }

    /// Keeps secrets for when the site says this, and not before: a change that is refused must cost the certificate that there is
    /// nothing, nor may the service that proves it hear what is meant for another. An empty text forgets one.
    pub fn keep_for(
        &self,
        wanted: Option<&PublicCertificate>,
        secrets: impl IntoIterator<Item = (SecretName, SecretText)>,
    ) -> Result<(), AcmeError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting =
            Waiting { asked: in_one_line(wanted), secrets: secrets.into_iter().collect() };
        match waiting.secrets.is_empty() {
            true => self.folder.forget_waiting()?,
            false => self.folder.keep_waiting(&waiting)?,
        }
        Ok(())
    }

    /// The change was refused: nothing of what came with it is kept.
    pub fn leave_waiting(&self) -> Result<(), AcmeError> {
        self.keep_for(None, [])
    }

    /// The change was taken; a site that said so before does not tell.
    pub fn look(&self) {
        self.nudge.notify_one();
    }

    /// What waited for this wish counts from now on.
    fn adopt(&self, wanted: Option<&PublicCertificate>) -> Result<(), PkiError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = in_one_line(wanted);
        let Some(waiting) = self.folder.waiting()?.filter(|waiting| waiting.asked == asked) else {
            return Ok(());
        };
        let mut secrets = self.folder.secrets()?;
        for (name, text) in waiting.secrets {
            match text.expose().is_empty() {
                true => secrets.remove(&name),
                false => secrets.insert(name, text),
            };
        }
        self.folder.keep_secrets(&secrets)?;
        self.folder.forget_waiting()?;
        self.forgive(false)
    }

    /// Tries at once what failed, or renews what is not old yet. What an authority asked for is still respected.
    pub fn try_now(&self) -> Result<(), AcmeError> {
        if self.shown.borrow().wanted.is_empty() {
            return Err(AcmeError::NoneWanted);
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.forgive(true)?)
    }

    fn forgive(&self, renew: bool) -> Result<(), PkiError> {
        let mut diary = self.folder.diary()?;
        diary.tries = Tries { not_before: diary.tries.not_before, ..Tries::default() };
        diary.renew |= renew && diary.why.is_none();
        self.folder.keep_diary(&diary)?;
        self.nudge.notify_one();
        Ok(())
    }

    /// Makes true what the site says, for ever. `serve` is called with what is to be served from now on.
    pub async fn follow(
        &self,
        mut status: watch::Receiver<Arc<BoxStatus>>,
        serve: impl Fn(Option<PublicChain>),
    ) {
        loop {
            let wanted = status.borrow_and_update().site.certificate.clone();
            // A status comes with every change of any part; only another wish matters here.
            let changed = async {
                while status.changed().await.is_ok() {
                    if status.borrow().site.certificate != wanted {
                        return;
                    }
                }
                std::future::pending().await
            };
            tokio::select! {
                () = changed => {}
                done = self.round(wanted.as_ref(), &serve) => if let Err(error) = done {
                    log::error!("the public certificate's files: {}", Trouble::Disk(error));
                    tokio::time::sleep(DISK_AGAIN).await;
                },
            }
            self.step.send_replace(None);
        }
    }

    /// Looks, decides, and does one thing.
    async fn round(
        &self,
        wanted: Option<&PublicCertificate>,
        serve: &impl Fn(Option<PublicChain>),
    ) -> Result<(), PkiError> {
        let now = now();
        let chain = self.folder.chain()?;
        serve(wanted.and(chain.as_ref().map(|(_, chain)| chain.clone())));
        self.adopt(wanted)?;
        let diary = self.diary_for(wanted)?;
        let secrets = self.folder.secrets()?;
        let seen = self.observe(now, wanted, chain.as_ref(), &diary)?;
        let next = match (decide::decide(&seen), &seen.held) {
            // Somebody does not want to wait for its age.
            (Next::Wait { then, .. }, Some(_))
                if diary.renew
                    && matches!(*then, Next::AskHint | Next::Order(decide::Reason::Age)) =>
            {
                let not_before = diary.tries.not_before.unwrap_or(now);
                match not_before > now {
                    true => Next::Wait { until: not_before, then },
                    false => Next::Order(decide::Reason::Age),
                }
            }
            (next, _) => next,
        };
        let told = self.shown.borrow().next.clone();
        self.shown.send_replace(PublicStatus {
            wanted: seen.wanted.iter().flat_map(|wanted| wanted.names.clone()).collect(),
            held: chain.as_ref().filter(|_| wanted.is_some()).map(|(_, chain)| held(chain, &seen)),
            next: next.to_string(),
            doing: None,
            failed: diary.why.clone().filter(|_| diary.tries.last > 0).map(|why| FailedTry {
                at: diary.tries.last,
                times: diary.tries.failed,
                why,
            }),
            secrets: secrets.keys().copied().collect(),
        });
        match (next, wanted) {
            (Next::Wait { until, .. }, _) => self.sleep_until(until, now).await,
            (Next::Tell(why), _) => {
                if told != why {
                    log::warn!("no public certificate can be had: {why}");
                }
                self.sleep_until(now + 60, now).await;
            }
            (Next::AskHint, Some(wanted)) => self.ask_hint(wanted, chain, &seen).await?,
            (Next::Order(_) | Next::Resume, Some(wanted)) => {
                log::info!("{}", seen_words(&seen));
                self.obtain(wanted, chain, &seen).await?;
            }
            (Next::Nothing | Next::AskHint | Next::Order(_) | Next::Resume, _) => {
                self.nudge.notified().await;
            }
        }
        Ok(())
    }

    /// How it went so far with this wish.
    fn diary_for(&self, wanted: Option<&PublicCertificate>) -> Result<Diary, PkiError> {
        let asked = in_one_line(wanted);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let diary = self.folder.diary()?;
        if diary.asked == asked {
            return Ok(diary);
        }
        let directory = wanted.map(|w| w.directory.to_string()).unwrap_or_default();
        // Another wish does not make the same authority forget that it wants to be left alone.
        let same = diary.directory == directory;
        let not_before = diary.tries.not_before.filter(|_| same);
        let tries = Tries { not_before, ..Tries::default() };
        let diary = Diary { asked, directory, tries, ..Diary::default() };
        self.folder.keep_diary(&diary)?;
        Ok(diary)
    }

    fn observe(
        &self,
        now: i64,
        wanted: Option<&PublicCertificate>,
        chain: Option<&(String, PublicChain)>,
        diary: &Diary,
    ) -> Result<Observed, PkiError> {
        let secrets = self.folder.secrets()?;
        let held = chain.map(|(directory, chain)| Held {
            names: chain.names().to_vec(),
            directory: directory.clone(),
            validity: chain.validity(),
            dice: dice(chain),
        });
        let order = self.folder.order()?;
        if wanted.is_some_and(|wanted| wanted.proof() == Proof::Http)
            && let Some(order) = &order
        {
            // The authority may look at any time, also while we wait, and after the box was off.
            self.proofs.show(&order.proofs);
        }
        let pending = order.map(|order| Pending {
            wanted: Wanted { names: order.names, directory: order.directory },
            since: order.since,
        });
        Ok(Observed {
            now,
            lacks: wanted.and_then(|wanted| prove::lacks(wanted, &secrets)),
            wanted: wanted.map(|wanted| Wanted {
                names: wanted.names.iter().map(|name| name.as_str().to_owned()).collect(),
                directory: wanted.directory.as_str().to_owned(),
            }),
            held,
            pending,
            tries: diary.tries.clone(),
            obtained: diary.obtained,
            hint: diary.hint.clone(),
        })
    }

    async fn sleep_until(&self, until: i64, now: i64) {
        let seconds = u64::try_from(until - now).unwrap_or(0);
        let pause = Duration::from_secs(seconds).min(LONGEST_SLEEP);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.nudge.notified() => {}
        }
    }

    async fn obtain(
        &self,
        wanted: &PublicCertificate,
        chain: Option<(String, PublicChain)>,
        seen: &Observed,
    ) -> Result<(), PkiError> {
        let secrets = self.folder.secrets()?;
        let speaks_of_renewing = seen.hint.as_ref().is_some_and(|hint| hint.window.is_some());
        let same = |(directory, _): &(String, PublicChain)| directory == wanted.directory.as_str();
        let replaces = chain.filter(same).filter(|_| speaks_of_renewing);
        let patience = RetryPolicy::new()
            .initial_delay(self.patience.first)
            .backoff(1.5)
            .timeout(self.patience.most);
        let (outcome, not_before) = match Web::trusting(wanted.root.as_deref()) {
            Err(error) => (Err(Trouble::Said(error.to_string())), None),
            Ok(web) => {
                let obtain = Obtain {
                    folder: &self.folder,
                    certificate: wanted,
                    secrets: &secrets,
                    proofs: &self.proofs,
                    web: &web,
                    patience,
                    step: &self.step,
                    replaces: replaces.map(|(_, chain)| chain.own().clone()),
                    now: seen.now,
                };
                let outcome = obtain.run().await;
                (outcome, web.take_not_before())
            }
        };
        self.step.send_replace(None);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut diary = self.folder.diary()?;
        match outcome {
            Ok(chain) => {
                let until = decide::date(chain.validity().until);
                log::info!(
                    "{} signed a certificate for {}, until {until}",
                    chain.issuer(),
                    chain.names().join(", ")
                );
                let (asked, directory) = (diary.asked, diary.directory);
                let obtained = Some(now());
                diary = Diary { asked, directory, obtained, ..Diary::default() };
            }
            Err(trouble) => {
                let why = trouble.to_string();
                log::warn!("no public certificate was obtained: {why}");
                diary.tries = Tries {
                    failed: diary.tries.failed.saturating_add(1),
                    last: now(),
                    not_before: not_before.or(diary.tries.not_before),
                };
                diary.why = Some(why);
                // Who wants it at once can say so again.
                diary.renew = false;
            }
        }
        self.folder.keep_diary(&diary)
    }

    async fn ask_hint(
        &self,
        wanted: &PublicCertificate,
        chain: Option<(String, PublicChain)>,
        seen: &Observed,
    ) -> Result<(), PkiError> {
        let Some((_, chain)) = chain else { return Ok(()) };
        let life = chain.validity().until - chain.validity().from;
        let before = seen.hint.as_ref().and_then(|hint| hint.window);
        let secrets = self.folder.secrets()?;
        let asked = async {
            let web = Web::trusting(wanted.root.as_deref())
                .map_err(|error| Trouble::Said(error.to_string()))?;
            let obtain = Obtain {
                folder: &self.folder,
                certificate: wanted,
                secrets: &secrets,
                proofs: &self.proofs,
                web: &web,
                patience: RetryPolicy::new(),
                step: &self.step,
                replaces: None,
                now: seen.now,
            };
            let account = obtain.account().await?;
            let id = CertificateIdentifier::try_from(chain.own()).map_err(Trouble::Said)?;
            Ok::<_, Trouble>(account.renewal_info(&id).await?)
        };
        let (window, again) = match asked.await {
            Ok((info, after)) => {
                let window = &info.suggested_window;
                let (from, until) = (window.start.unix_timestamp(), window.end.unix_timestamp());
                // RFC 9773, 4.2: an end that is not after its start is no window.
                let window = (from < until).then_some((from, until));
                (window, i64::try_from(after.as_secs()).unwrap_or(i64::MAX))
            }
            Err(Trouble::Acme(Error::Unsupported(_))) => (None, i64::MAX),
            Err(trouble) => {
                log::info!("the authority did not say when to renew: {trouble}");
                (before, 6 * 3_600)
            }
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Read only now: a steward may have asked for something meanwhile.
        let mut diary = self.folder.diary()?;
        diary.hint = Some(Hint { window, again: decide::ask_hint_again(now(), again, life) });
        self.folder.keep_diary(&diary)
    }
}

/// A wish as it is noted down; empty for none.
fn in_one_line(wanted: Option<&PublicCertificate>) -> String {
    wanted.map(|wanted| serde_json::to_string(wanted).unwrap_or_default()).unwrap_or_default()
}

fn held(chain: &PublicChain, seen: &Observed) -> HeldCertificate {
    let window = seen.hint.as_ref().and_then(|hint| hint.window);
    HeldCertificate {
        names: chain.names().to_vec(),
        issuer: chain.issuer().to_owned(),
        from: chain.validity().from,
        until: chain.validity().until,
        renews: decide::renew_at(chain.validity(), window, dice(chain)),
    }
}

/// A number that every certificate has of its own: the last bytes of its signature.
fn dice(chain: &PublicChain) -> u64 {
    let bytes = chain.own().as_ref();
    bytes.iter().rev().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn seen_words(seen: &Observed) -> String {
    let names = seen.wanted.as_ref().map(|wanted| wanted.names.join(", ")).unwrap_or_default();
    format!("the box {} ({names})", decide::decide(seen))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(hook: &str) -> PublicCertificate {
        PublicCertificate {
            names: vec!["gpu.example.org".parse().unwrap()],
            directory: "https://ca.example.org/dir".parse().unwrap(),
            account: None,
            contact: None,
            root: None,
            dns_update: None,
            dns_hook: Some(polder_site::DnsHook { url: hook.parse().unwrap(), wait: 20 }),
        }
    }

    #[test]
    fn what_came_with_a_change_counts_when_the_box_is_told_so_and_never_before() {
        let state = tempfile::tempdir().unwrap();
        let acme = Acme::open(state.path(), Patience::default()).unwrap();
        let hook = |acme: &Acme| {
            let secrets = acme.folder.secrets().unwrap();
            secrets.get(&SecretName::Hook).map(|text| text.expose().to_owned())
        };
        let (here, there) = (wish("https://a.example"), wish("https://b.example"));
        acme.keep_secret(SecretName::Hook, SecretText::new("ada:first")).unwrap();
        acme.keep_for(Some(&there), [(SecretName::Hook, SecretText::new("ada:second"))]).unwrap();
        acme.adopt(Some(&here)).unwrap();
        assert_eq!(
            hook(&acme).as_deref(),
            Some("ada:first"),
            "the service of now got the next one's"
        );
        // Refused.
        acme.leave_waiting().unwrap();
        acme.adopt(Some(&there)).unwrap();
        assert_eq!(hook(&acme).as_deref(), Some("ada:first"));
        // Taken, over a restart.
        acme.keep_for(Some(&there), [(SecretName::Hook, SecretText::new("ada:second"))]).unwrap();
        let acme = Acme::open(state.path(), Patience::default()).unwrap();
        acme.adopt(Some(&there)).unwrap();
        assert_eq!(hook(&acme).as_deref(), Some("ada:second"));
        assert!(!state.path().join("pki/public/secrets-next.json").exists());
        // Nobody asks a hook any more.
        acme.keep_for(None, [(SecretName::Hook, SecretText::new(""))]).unwrap();
        acme.adopt(None).unwrap();
        assert_eq!(hook(&acme), None);
    }
}
