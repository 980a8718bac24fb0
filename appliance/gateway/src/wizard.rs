//! Mounts the first-boot wizard: what it needs of the box, from the members' database and the
//! supervisor.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use polder_control::{
    Actor, BackupWish, BoxStatus, Disk, KitWords, Machine, Plan, PluggedDisk, RecoveryKey, Reply,
    Request as Ask, Run, RunId, SecretText,
};
use polder_firstboot::{
    ClaimRefusal, ClaimToken, Distance, Host, Newcomer, Setup, SetupError, Trust, Visitor, Window,
};
use polder_members::{ClaimRefused, MembersError, NewKey, NewMember, Secret, SetupWindow};
use polder_power::around::{self, Around, Heard};
use polder_site::{BackupPlace, RecipeName, SiteChange};

use crate::{AskError, Gateway, Peer, auth, deeds};

/// What the key is called that the wizard's last page shows.
const FIRST_KEY: &str = "first key";

/// The wizard's routes, to be merged into the door's router. They answer for as long as the box is
/// unclaimed or its set-up was opened again, and lead home otherwise.
pub fn routes(gateway: &Arc<Gateway>) -> Router<Arc<Gateway>> {
    let setup = Setup::new(ThisBox(gateway.clone()));
    setup.routes().layer(from_fn(say_who)).with_state(())
}

/// Tells the wizard who comes.
async fn say_who(mut request: Request, next: Next) -> axum::response::Response {
    if let Some(peer) = request.extensions().get::<Peer>() {
        let visitor = visitor(peer);
        request.extensions_mut().insert(visitor);
    }
    next.run(request).await
}

fn visitor(peer: &Peer) -> Visitor {
    let distance = if peer.is_this_machine() {
        Distance::ThisMachine
    } else if peer.is_local_network() {
        Distance::LocalNetwork
    } else {
        Distance::Foreign
    };
    Visitor { from: peer.remote.ip(), distance, reached: peer.local.ip(), tls: peer.tls }
}

/// The box that the wizard sets up.
struct ThisBox(Arc<Gateway>);

impl ThisBox {
    async fn ask(&self, question: Ask) -> Result<Reply, SetupError> {
        self.0.ask(question).await.map_err(|error| match error {
            AskError::Refused(why) => SetupError::Refused(why),
            AskError::Away(_) => SetupError::Refused(error.to_string()),
        })
    }

    /// For the audit trail; its absence keeps nobody from their box.
    async fn record(&self, what: &str, on: &str) {
        deeds::record(&self.0, Actor::Claimer, what, on).await;
    }
}

impl Host for ThisBox {
    async fn load(&self) -> Result<Option<String>, SetupError> {
        self.0.members.ask(|members| members.wizard_state()).await.map_err(notes)
    }

    async fn save(&self, state: String) -> Result<(), SetupError> {
        self.0.members.ask(move |members| members.set_wizard_state(&state)).await.map_err(notes)
    }

    async fn steward(&self) -> Result<Option<String>, SetupError> {
        let find = |members: &polder_members::Members| {
            // Asked on every page: the cheap question first.
            if !members.is_claimed()? {
                return Ok(None);
            }
            let all = members.members()?;
            Ok(all.into_iter().find(|m| m.is_steward() && !m.disabled).map(|m| m.name))
        };
        self.0.members.ask(find).await.map_err(notes)
    }

    async fn window(&self) -> Result<Window, SetupError> {
        Ok(match self.0.members.ask(|members| members.setup_window()).await.map_err(notes)? {
            SetupWindow::Open { seconds } => Window::Open(Duration::from_secs(seconds)),
            SetupWindow::Closed => Window::Closed,
        })
    }

    async fn claim(&self, code: String, from: IpAddr) -> Result<ClaimToken, SetupError> {
        let code = Secret::new(code);
        let claimed = self.0.members.ask(move |members| members.claim(code.expose(), from)).await;
        match claimed {
            Ok(polder_members::ClaimToken(token)) => {
                self.record("claimed the box", "the box").await;
                Ok(ClaimToken(token.expose().to_owned()))
            }
            Err(ClaimRefused::Wrong) => Err(ClaimRefusal::Wrong.into()),
            Err(ClaimRefused::TooMany { seconds }) => {
                Err(ClaimRefusal::TooMany(Duration::from_secs(seconds)).into())
            }
            Err(ClaimRefused::Failed(error)) => Err(notes(error)),
        }
    }

    async fn owner_text(&self) -> Result<Option<String>, SetupError> {
        let Some(owner) = &self.0.owner else { return Ok(None) };
        let claimed = self.0.members.ask(|members| members.is_claimed()).await.map_err(notes)?;
        Ok((!claimed).then(|| owner.text(&self.0.ca().fingerprint)))
    }

    async fn claim_as_owner(
        &self,
        signature: String,
        from: IpAddr,
    ) -> Result<ClaimToken, SetupError> {
        let gateway = self.0.clone();
        let claimed = self.0.members.ask(move |members| {
            let fingerprint = gateway.ca().fingerprint;
            let proof = || {
                gateway.owner.as_ref().is_some_and(|owner| owner.proves(&fingerprint, &signature))
            };
            members.claim_proven(proof, from)
        });
        match claimed.await {
            Ok(polder_members::ClaimToken(token)) => {
                self.record("claimed the box with the owner's key", "the box").await;
                Ok(ClaimToken(token.expose().to_owned()))
            }
            Err(ClaimRefused::Wrong) => Err(ClaimRefusal::NotTheOwner.into()),
            Err(ClaimRefused::TooMany { seconds }) => {
                Err(ClaimRefusal::TooMany(Duration::from_secs(seconds)).into())
            }
            Err(ClaimRefused::Failed(error)) => Err(notes(error)),
        }
    }

    async fn holds_claim(&self, token: ClaimToken) -> Result<bool, SetupError> {
        let token = Secret::new(token.0);
        let holds = self.0.members.ask(move |members| members.setup_session(token.expose())).await;
        holds.map_err(notes)
    }

    async fn make_steward(
        &self,
        by: ClaimToken,
        name: String,
        password: String,
        secure: bool,
    ) -> Result<Newcomer, SetupError> {
        let by = Secret::new(by.0);
        let new = NewMember { name, email: None, password: Secret::new(password) };
        let make = move |members: &polder_members::Members| {
            let member = members.add_first_steward(by.expose(), &new)?;
            let (_, session) = members.begin_session(member.id)?;
            let wish = NewKey { label: FIRST_KEY.to_owned(), ..NewKey::default() };
            let key = members.mint_key(member.id, &wish);
            Ok((member, session, key))
        };
        let made: Result<_, MembersError> = self.0.members.ask(make).await;
        let (member, session, key) =
            made.map_err(|error| SetupError::Refused(error.to_string()))?;
        self.record("made the first steward", &member.name).await;
        // The steward is there and signed in, key or no key: they can make one on their page.
        let api_key = match key {
            Ok(minted) => {
                self.record("made key", &minted.info.label).await;
                minted.key.expose().to_owned()
            }
            Err(error) => {
                log::error!("the first steward's key could not be made: {error}");
                "no key could be made just now; make one on your page of the box".to_owned()
            }
        };
        Ok(Newcomer { cookies: vec![auth::session_cookie(&session, secure)], api_key })
    }

    async fn end(&self) -> Result<(), SetupError> {
        self.0.members.ask(|members| members.end_setup()).await.map_err(notes)
    }

    async fn machine(&self) -> Result<Machine, SetupError> {
        match self.ask(Ask::Machine).await? {
            Reply::Machine(machine) => Ok(machine),
            _ => Err(odd_answer()),
        }
    }

    async fn disk(&self) -> Result<Option<Disk>, SetupError> {
        match self.ask(Ask::Disk).await? {
            Reply::Disk(disk) => Ok(disk),
            _ => Err(odd_answer()),
        }
    }

    async fn seal(&self) -> Result<RecoveryKey, SetupError> {
        match self.ask(Ask::Seal { by: Actor::Claimer }).await? {
            Reply::RecoveryKey(key) => Ok(key),
            _ => Err(odd_answer()),
        }
    }

    async fn confirm_seal(&self, key: RecoveryKey) -> Result<(), SetupError> {
        self.ask(Ask::ConfirmSeal { key, by: Actor::Claimer }).await.map(drop)
    }

    async fn leave_disk_open(&self) -> Result<(), SetupError> {
        self.record("left open", "the disk").await;
        Ok(())
    }

    async fn status(&self) -> Result<BoxStatus, SetupError> {
        match self.ask(Ask::Status).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(odd_answer()),
        }
    }

    async fn imported(&self) -> Result<Vec<RecipeName>, SetupError> {
        match self.ask(Ask::Imported).await? {
            Reply::Imported(recipes) => Ok(recipes),
            _ => Err(odd_answer()),
        }
    }

    async fn preview(&self, change: SiteChange) -> Result<Plan, SetupError> {
        match self.ask(Ask::Preview(change)).await? {
            Reply::Preview { plan, .. } => Ok(plan),
            _ => Err(odd_answer()),
        }
    }

    async fn apply(&self, change: SiteChange) -> Result<RunId, SetupError> {
        match self.ask(Ask::Apply { change, by: Actor::Claimer }).await? {
            Reply::Accepted(run) => Ok(run),
            _ => Err(odd_answer()),
        }
    }

    async fn runs(&self) -> Result<Vec<Run>, SetupError> {
        match self.ask(Ask::Runs).await? {
            Reply::Runs(runs) => Ok(runs),
            _ => Err(odd_answer()),
        }
    }

    async fn confirm(&self, run: RunId) -> Result<(), SetupError> {
        self.ask(Ask::Confirm { run, by: Actor::Claimer }).await.map(drop)
    }

    async fn cancel(&self, run: RunId) -> Result<(), SetupError> {
        self.ask(Ask::Cancel(run)).await.map(drop)
    }

    async fn plugged(&self) -> Result<Vec<PluggedDisk>, SetupError> {
        match self.ask(Ask::Backup).await? {
            Reply::Backup(status) => Ok(status.disks),
            _ => Err(odd_answer()),
        }
    }

    async fn restore(&self, from: BackupPlace, key: KitWords) -> Result<RunId, SetupError> {
        let wish = BackupWish::Restore { from, snapshot: None };
        match self.ask(Ask::Backups { wish, key: Some(key), by: Actor::Claimer }).await? {
            Reply::Accepted(run) => Ok(run),
            _ => Err(odd_answer()),
        }
    }

    fn ended(&self) -> Option<&'static str> {
        self.0.state.join(polder_control::ENDED).exists().then_some("/ended")
    }

    async fn batteries(&self) -> Around {
        around::look().await
    }

    async fn batteries_at(&self, place: String) -> Result<Vec<Heard>, String> {
        around::at(&place).await.map_err(|error| error.to_string())
    }

    async fn ups_password(&self, text: SecretText) -> Result<(), SetupError> {
        self.ask(Ask::UpsPassword { text, by: Actor::Claimer }).await.map(drop)
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, SetupError> {
        Ok(polder_pki::machine_addresses())
    }

    async fn trust(&self) -> Result<Trust, SetupError> {
        let ca = self.0.ca();
        Ok(Trust { ca_file: ca.file, fingerprint: ca.fingerprint, page: "/ca" })
    }
}

/// The wizard's notes are in the members' database.
fn notes(error: MembersError) -> SetupError {
    SetupError::Notes(error.to_string())
}

/// The two sides are of different versions.
fn odd_answer() -> SetupError {
    SetupError::Refused(
        "the supervisor answered something else than was asked; restart the box".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_visitor_is_follows_from_their_address() {
        for (from, expected) in [
            ("127.0.0.1", Distance::ThisMachine),
            ("[::1]", Distance::ThisMachine),
            ("192.168.7.9", Distance::LocalNetwork),
            ("[fe80::1]", Distance::LocalNetwork),
            ("203.0.113.9", Distance::Foreign),
            ("[2001:db8::1]", Distance::Foreign),
        ] {
            let remote = format!("{from}:4000").parse().unwrap();
            let peer = Peer { remote, local: "10.0.0.1:8443".parse().unwrap(), tls: true };
            let visitor = visitor(&peer);
            assert_eq!(visitor.distance, expected, "{from}");
            assert_eq!(visitor.reached, IpAddr::from([10, 0, 0, 1]));
        }
    }
}
