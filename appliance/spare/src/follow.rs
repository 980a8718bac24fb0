//! The main box's side: pairs, and from then on says every second that it is there, and sends what the spare does not have.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, StatusCode};
use polder_control::{BoxStatus, Client, PartState, Reply, Request as Ask, Sockets};
use polder_takeover::Moment;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::door::{NO_PAIR, RETIRED, now, plain};
use crate::link::{self, Body, connect};
use crate::messages::{Answer, Beat, Begin, Begun, Head, Hello, Prove, Pushed};
use crate::pairing::{Asking, Binding};
use crate::{
    BEAT, Certificate, Code, Folders, Identity, Lease, Link, PORT, Peer, Side, SpareError, State,
    Tombstones, tls,
};

/// The whole exchange.
const EXCHANGE: Duration = Duration::from_secs(15);
const LONGEST: usize = 16 << 10;
/// A spare that does not answer is tried again after this, at most.
const AGAIN: Duration = Duration::from_secs(5);
/// Who the box is and the key to its backups are said again this often, and whenever a connection is new.
const HELLO: Duration = Duration::from_secs(300);
/// The trail is looked at this often, and its end sent where it has grown.
const TRAIL: Duration = Duration::from_secs(300);
/// The supervisor answers within this.
const SOON: Duration = Duration::from_secs(2);

/// Pairs this box, called `name`, with the spare at `address` (`HOST` or `HOST:PORT`) that shows `code`. `key` opens this box's backups; the spare gets it
/// over the pinned link.
pub async fn pair(
    state: &Path,
    address: &str,
    code: &Code,
    name: &str,
    key: Option<String>,
) -> Result<Peer, SpareError> {
    let folders = Folders::of(state);
    if let Some(peer) = Peer::read(&folders)? {
        return Err(SpareError::Taken(peer.name));
    }
    let address = with_port(address);
    let identity = Identity::of_box(&folders)?;
    let asked = exchange(&identity, &address, code, name);
    let (certificate, spare_name) =
        timeout(EXCHANGE, asked).await.map_err(|_| link::slow(&address))??;
    // Of another pairing than this one.
    Peer::forget(&folders)?;
    let mut peer = Peer {
        side: Side::Main,
        name: spare_name,
        certificate,
        address: Some(address),
        paired_at: now(),
        settled: false,
    };
    peer.keep(&folders)?;
    // The spare forgets a box that does not come back; if this does not work now, the part tries again and again.
    let hello = Hello { name: name.to_owned(), key };
    let link = Link::of(&folders)?;
    match link.ask::<_, Answer>(Method::POST, "/link/hello", &hello).await {
        Ok(_) => {
            peer.settled = true;
            peer.keep(&folders)?;
        }
        Err(error) => log::warn!("the spare did not answer after the pairing: {error}"),
    }
    Ok(peer)
}

async fn exchange(
    identity: &Identity,
    address: &str,
    code: &Code,
    name: &str,
) -> Result<(Certificate, String), SpareError> {
    let (mut sender, shown) = connect(address, Arc::new(tls::stranger()?)).await?;
    let asking = Asking::begin(code);
    let begin = Begin {
        name: name.to_owned(),
        certificate: identity.certificate().clone(),
        message: BASE64_STANDARD.encode(asking.message()),
    };
    let begun: Begun = say(&mut sender, address, "/pair/begin", &begin).await?;
    let foreign = |why: &str| SpareError::Foreign { who: address.to_owned(), why: why.to_owned() };
    if !plain(&begun.name) || begun.exchange.len() > 100 {
        return Err(foreign("its name"));
    }
    let message = BASE64_STANDARD.decode(&begun.message).map_err(|_| foreign("its message"))?;
    let binding = Binding {
        main: identity.certificate().clone(),
        main_name: name.to_owned(),
        spare: shown.clone(),
        spare_name: begun.name.clone(),
    };
    let shared = asking.hear(&message, &binding).ok_or_else(|| foreign("its message"))?;
    let prove =
        Prove { exchange: begun.exchange, proof: BASE64_STANDARD.encode(shared.main_proof()) };
    let proved: Prove = say(&mut sender, address, "/pair/prove", &prove).await?;
    let proof = BASE64_STANDARD.decode(&proved.proof).map_err(|_| foreign("its proof"))?;
    match shared.is_spare(&proof) {
        true => Ok((shown, begun.name)),
        false => Err(SpareError::Impostor { address: address.to_owned() }),
    }
}

async fn say<Q: Serialize, A: DeserializeOwned>(
    sender: &mut hyper::client::conn::http1::SendRequest<Body>,
    address: &str,
    path: &str,
    question: &Q,
) -> Result<A, SpareError> {
    let text = serde_json::to_vec(question).expect("what is said has only plain values");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let answer = sender.send_request(link::request(Method::POST, path, body)?).await;
    let answer = answer.map_err(|error| link::away(address, &error))?;
    let status = answer.status();
    let foreign = |why: String| SpareError::Foreign { who: address.to_owned(), why };
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    let body = body.map_err(|error| foreign(error.to_string()))?.to_bytes();
    if status == StatusCode::FORBIDDEN || status == StatusCode::CONFLICT {
        let why = link::words(status, &body);
        return Err(SpareError::Refused { who: address.to_owned(), why });
    }
    if !status.is_success() {
        return Err(foreign(link::words(status, &body)));
    }
    serde_json::from_slice(&body).map_err(|error| foreign(error.to_string()))
}

/// `HOST` with the usual port, where it names none.
fn with_port(address: &str) -> String {
    let address = address.trim();
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match (has_port, address.parse::<std::net::Ipv6Addr>()) {
        (true, _) => address.to_owned(),
        (false, Ok(ip)) => format!("[{ip}]:{PORT}"),
        (false, Err(_)) => format!("{address}:{PORT}"),
    }
}

/// What the main box's side knows, for whoever asks the part.
pub(crate) struct Follower {
    pub(crate) state: PathBuf,
    pub(crate) folders: Folders,
    name: String,
    inner: Mutex<Followed>,
}

pub(crate) struct Followed {
    pub(crate) lease: Lease,
    pub(crate) answer: Option<Answer>,
    pub(crate) trouble: Option<String>,
    pub(crate) revoked: Option<u64>,
    /// What the trail here lacks of what the spare has.
    pub(crate) lacks: Option<String>,
}

impl Follower {
    pub(crate) fn of(state: &Path, name: &str) -> Self {
        let folders = Folders::of(state);
        let lease = Lease::read(&folders);
        let inner = Followed { lease, answer: None, trouble: None, revoked: None, lacks: None };
        Self { state: state.to_owned(), folders, name: name.to_owned(), inner: Mutex::new(inner) }
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Followed> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in touch until the future is dropped.
    pub(crate) async fn keep_in_touch(&self) {
        let mut tries = 0u32;
        loop {
            let why = match Link::of(&self.folders) {
                Ok(link) => {
                    let Err(why) = self.stay_with(&link, &mut tries).await;
                    why
                }
                Err(why) => why,
            };
            log::debug!("the spare: {why}");
            self.inner().trouble = Some(why.to_string());
            tries = (tries + 1).min(5);
            tokio::time::sleep((BEAT * tries).min(AGAIN)).await;
        }
    }

    /// As long as it answers.
    async fn stay_with(
        &self,
        link: &Link,
        tries: &mut u32,
    ) -> Result<std::convert::Infallible, SpareError> {
        let (mut greeted, mut looked): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            // The moment counts for the lease, and pauses in between do not.
            let (asked, heard_from) = (Instant::now(), Moment::now());
            if greeted.is_none_or(|greeted| greeted.elapsed() >= HELLO) {
                self.greet(link).await?;
                greeted = Some(asked);
            }
            let beat = Beat {
                epoch: self.epoch(),
                state: self.state_now().await,
                yields: self.yields(),
                may_be_left: true,
            };
            let answer: Answer = link.ask(Method::POST, "/link/beat", &beat).await?;
            *tries = 0;
            self.heard(heard_from, &answer)?;
            if answer.retired {
                // Nothing else of this box is wanted there.
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            self.send_revoked(link, &answer).await?;
            if looked.is_none_or(|looked| looked.elapsed() >= TRAIL) {
                self.send_head(link).await?;
                looked = Some(asked);
            }
            tokio::time::sleep(BEAT.saturating_sub(asked.elapsed())).await;
        }
    }

    async fn greet(&self, link: &Link) -> Result<(), SpareError> {
        let key = std::fs::read_to_string(self.state.join("backup/key")).ok();
        let hello = Hello { name: self.name.clone(), key: key.map(|key| key.trim().to_owned()) };
        let answer: Answer = link.ask(Method::POST, "/link/hello", &hello).await?;
        if answer.retired {
            return Ok(());
        }
        let peer = Peer::read(&self.folders)?;
        if let Some(mut peer) = peer.filter(|peer| !peer.settled || peer.name != answer.name)
            && plain(&answer.name)
        {
            (peer.settled, peer.name) = (true, answer.name);
            peer.keep(&self.folders)?;
        }
        Ok(())
    }

    /// Whether this box has promised to stop in a silence; see the crate `takeover`.
    fn yields(&self) -> bool {
        polder_takeover::Term::read(&self.state).ok().flatten().is_some_and(|term| term.yields)
    }

    fn epoch(&self) -> u64 {
        self.inner().lease.standing(Side::Main, now()).epoch
    }

    fn heard(&self, asked: Moment, answer: &Answer) -> Result<(), SpareError> {
        let mut inner = self.inner();
        if answer.retired {
            inner.lease.retire()?;
        }
        // Nothing could ever follow such a number, and the door would stay closed.
        if answer.epoch > polder_takeover::MOST_TERMS {
            let why = format!("that term number {} has begun", answer.epoch);
            return Err(SpareError::Foreign { who: answer.name.clone(), why });
        }
        inner.lease.hear(answer.epoch, asked, now())?;
        inner.answer = Some(answer.clone());
        inner.trouble = None;
        Ok(())
    }

    async fn state_now(&self) -> State {
        match ask(&self.state, &Ask::Status).await {
            Some(Reply::Status(status)) => state_of(&status),
            _ => State::Starting,
        }
    }

    async fn send_revoked(&self, link: &Link, answer: &Answer) -> Result<(), SpareError> {
        let (mut has, mut digest) = (answer.revocations, answer.revoked_digest.clone());
        loop {
            let own = Tombstones::of_main(&self.state)?;
            self.inner().revoked = Some(own.have().0);
            let Some(push) = own.missing(has, &digest) else { return Ok(()) };
            let _: Pushed = link.ask(Method::POST, "/link/revoked", &push).await?;
            let answer: Answer = link.ask(Method::POST, "/link/hello", &self.bare()).await?;
            if (answer.revocations, &answer.revoked_digest) == (has, &digest) {
                return Ok(());
            }
            (has, digest) = (answer.revocations, answer.revoked_digest.clone());
            self.inner().answer = Some(answer);
        }
    }

    fn bare(&self) -> Hello {
        Hello { name: self.name.clone(), key: None }
    }

    /// First compares what the spare has with the trail as it is here, then sends what it ends with.
    async fn send_head(&self, link: &Link) -> Result<(), SpareError> {
        // While the other one serves, the trail goes on there.
        let status = ask(&self.state, &Ask::Status).await;
        if matches!(status, Some(Reply::Status(status)) if status.closed.is_some()) {
            return Ok(());
        }
        let kept: Vec<Head> = link.ask(Method::GET, "/link/heads", &()).await?;
        if let Some(last) = kept.first() {
            let lacks = self.compare(last).await;
            self.inner().lacks = lacks;
        }
        let Some(Reply::AuditHead(head)) = ask(&self.state, &Ask::AuditHead).await else {
            return Ok(());
        };
        if head.number == 0 {
            return Ok(());
        }
        let head = Head { number: head.number, hash: head.hash };
        let answer: Answer = link.ask(Method::POST, "/link/head", &head).await?;
        self.inner().answer = Some(answer);
        Ok(())
    }

    async fn compare(&self, head: &Head) -> Option<String> {
        let before = Some(head.number.saturating_add(1));
        let Some(Reply::Audit(found)) = ask(&self.state, &Ask::Audit { before, limit: 1 }).await
        else {
            return None;
        };
        match found.first() {
            Some(entry) if entry.number == head.number && entry.hash == head.hash => None,
            Some(entry) if entry.number == head.number => {
                Some(format!("entry {} is another one than the spare keeps", head.number))
            }
            _ => Some(format!("the trail had {} entries, and has fewer", head.number)),
        }
    }

    /// What the trail ended with, as the spare keeps it.
    pub(crate) async fn heads(&self) -> Result<Vec<Head>, SpareError> {
        Link::of(&self.folders)?.ask(Method::GET, "/link/heads", &()).await
    }

    /// Tells the spare, and forgets it, unless it says no: then both stay a pair. One that cannot be reached is forgotten all the same.
    pub(crate) async fn unpair(&self) -> Result<(), SpareError> {
        if self.inner().lease.standing(Side::Main, now()).retired {
            let who = Peer::read(&self.folders)?.map(|peer| peer.name).unwrap_or_default();
            return Err(SpareError::Refused { who, why: RETIRED.to_owned() });
        }
        let told = match Link::of(&self.folders) {
            Ok(link) => link.ask::<_, ()>(Method::POST, "/link/unpair", &()).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => {}
            // It has forgotten this box already.
            Err(SpareError::Refused { why, .. }) if why.contains(NO_PAIR) => {}
            // It was asked and would not, or there is no telling: two that disagree about it may both serve.
            Err(error @ (SpareError::Refused { .. } | SpareError::Foreign { .. })) => {
                return Err(error);
            }
            Err(error) => {
                log::warn!("the spare was not told that it is none any more: {error}");
            }
        }
        Peer::forget(&self.folders)?;
        let mut inner = self.inner();
        inner.lease = Lease::read(&self.folders);
        (inner.answer, inner.trouble, inner.lacks) = (None, None, None);
        Ok(())
    }
}

async fn ask(state: &Path, question: &Ask) -> Option<Reply> {
    let mut client: Client<Ask, Reply> =
        Client::connect(&Sockets::of(state).control()).await.ok()?;
    client.ask_within(SOON, question).await.ok()
}

/// A box serves when its door is open and no engine that it should have is away.
fn state_of(status: &BoxStatus) -> State {
    let ready = status.gateway.state == PartState::Ready
        && status.engines.iter().all(|engine| engine.part.state == PartState::Ready);
    if ready { State::Serving } else { State::Starting }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_the_usual_port_where_it_names_none() {
        for (typed, meant) in [
            ("ash.local", "ash.local:8444"),
            (" 10.0.0.2 ", "10.0.0.2:8444"),
            ("10.0.0.2:9000", "10.0.0.2:9000"),
            ("fd00::2", "[fd00::2]:8444"),
            ("[fd00::2]:9000", "[fd00::2]:9000"),
        ] {
            assert_eq!(with_port(typed), meant);
        }
    }
}
