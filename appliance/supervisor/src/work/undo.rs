//! What becomes of a run that failed or was stopped: the box is again what it was before.

use std::sync::Arc;

use polder_control::PartState;
use polder_site::{EngineName, Site, SiteChange};
use tokio_util::sync::CancellationToken;

use super::{Work, moves_the_door};
use crate::parts::{Part, Parts};
use crate::runs::Intent;

impl<P: Parts> Work<P> {
    /// After a run that failed or was stopped, the box is what it was before: a door that does not
    /// open would lock everyone out, and a model that does not start leaves nobody to answer.
    /// Gives `why` with what came of that.
    pub(super) async fn put_back(
        self: &Arc<Self>,
        intent: &Intent,
        before: &Site,
        why: String,
        cancel: &CancellationToken,
    ) -> String {
        if let Intent::Takeover(wish) = intent {
            self.come_to_nothing(wish).await;
        }
        let site = self.board.site();
        let back = match intent {
            Intent::Change(change) => as_before(change, &site, before),
            Intent::Import { .. } | Intent::Update(_) | Intent::Backup(_) | Intent::Takeover(_) => {
                site.clone()
            }
        };
        if back == site {
            self.restore();
            return why;
        }
        for name in site.engines.keys() {
            if !site.tells_alike(&back, name) {
                self.stop_engine(name).await;
            }
        }
        let written = self.write_site(back.clone(), format!("undone: {why}")).await;
        self.restore();
        if let Err(error) = written {
            return format!("{why}; it could not be undone: {error}");
        }
        match intent {
            Intent::Change(SiteChange::Engine { name, .. }) if back.engines.contains_key(name) => {
                format!("{why}; {}", self.model_before(name, cancel).await)
            }
            Intent::Change(SiteChange::Engine { .. }) => why,
            Intent::Change(SiteChange::Succession(_)) if site.engines != back.engines => {
                let serves = back.succession.as_ref().map(|under_way| under_way.serves().clone());
                match serves.filter(|name| back.engines.contains_key(name)) {
                    Some(name) => format!("{why}; {}", self.model_before(&name, cancel).await),
                    None => format!("{why}; the change was undone"),
                }
            }
            _ => {
                if moves_the_door(intent) && !self.ending.is_cancelled() {
                    // It follows the site back by itself, unless it died of the new one.
                    self.keeper(&Part::Gateway).ensure();
                }
                if site.power != back.power {
                    // Whether that one is heard, its own run has seen; not waiting cannot fail.
                    let _ = self.watch_ups(false).await;
                }
                if site.ports != back.ports
                    && let Err(error) = self.give_addresses().await
                {
                    return format!("{why}; the address could not be taken back: {error}");
                }
                format!("{why}; the change was undone")
            }
        }
    }

    /// Waits for the model that ran before, and says how it is.
    async fn model_before(
        self: &Arc<Self>,
        name: &EngineName,
        cancel: &CancellationToken,
    ) -> String {
        const LATER: &str = "the model before it is being started again";
        if self.ending.is_cancelled() {
            return LATER.to_owned();
        }
        let part = Part::Engine(name.clone());
        let keeper = self.keeper(&part);
        let state = tokio::select! {
            state = self.settles(&part, &keeper) => state,
            () = cancel.cancelled() => return LATER.to_owned(),
            () = self.ending.cancelled() => return LATER.to_owned(),
        };
        match state {
            PartState::GaveUp(why) => format!("the model before it does not start either: {why}"),
            _ => "the model before it is back".to_owned(),
        }
    }

    /// After a run that did not finish, whatever the site says should run does.
    fn restore(self: &Arc<Self>) {
        if self.ending.is_cancelled() || !self.engines_may_start() {
            return;
        }
        for name in self.board.site().engines.keys() {
            let part = Part::Engine(name.clone());
            if self.board.part(&part).state == PartState::Stopped {
                self.keeper(&part).ensure();
            }
        }
    }
}

/// `site` without what `change` made different from `before`. Only that, because the box may have
/// been started with another door since.
fn as_before(change: &SiteChange, site: &Site, before: &Site) -> Site {
    let mut back = site.clone();
    match change {
        SiteChange::Rename(_) => back.name = before.name.clone(),
        SiteChange::Door { .. } => {
            back.door.listen = before.door.listen.clone();
            back.door.names = before.door.names.clone();
        }
        SiteChange::Engine { name, .. } | SiteChange::RemoveEngine(name) => {
            match before.engines.get(name) {
                Some(slot) => back.engines.insert(name.clone(), slot.clone()),
                None => back.engines.remove(name),
            };
        }
        SiteChange::Alias { name, .. } | SiteChange::RemoveAlias(name) => {
            match before.aliases.get(name) {
                Some(to) => back.aliases.insert(name.clone(), to.clone()),
                None => back.aliases.remove(name),
            };
        }
        SiteChange::Succession(step) => return site.after_failed(step, before),
        SiteChange::Money(_) | SiteChange::RemoveMoney => back.money = before.money.clone(),
        SiteChange::Usage(_) => back.usage = before.usage.clone(),
        SiteChange::Sharing(_) => back.sharing = before.sharing,
        SiteChange::Common { title, .. } | SiteChange::RemoveCommon(title) => {
            match before.common.get(title) {
                Some(text) => back.common.insert(title.clone(), text.clone()),
                None => back.common.remove(title),
            };
        }
        SiteChange::Keeping(_) => back.keeping = before.keeping,
        SiteChange::App { name, .. } | SiteChange::RemoveApp(name) => {
            match before.apps.get(name) {
                Some(app) => back.apps.insert(name.clone(), app.clone()),
                None => back.apps.remove(name),
            };
        }
        SiteChange::Verifier(_) | SiteChange::RemoveVerifier => {
            back.verifier = before.verifier.clone();
        }
        SiteChange::SignIn(_) | SiteChange::RemoveSignIn => {
            back.sign_in = before.sign_in.clone();
        }
        SiteChange::Updates(_) | SiteChange::RemoveUpdates => {
            back.updates = before.updates.clone();
        }
        SiteChange::DynamicDns(_) | SiteChange::RemoveDynamicDns => {
            back.dynamic_dns = before.dynamic_dns.clone();
        }
        SiteChange::Certificate(_) | SiteChange::RemoveCertificate => {
            back.certificate = before.certificate.clone();
            back.door.names = before.door.names.clone();
        }
        SiteChange::Power(_) | SiteChange::RemovePower => back.power = before.power.clone(),
        SiteChange::Backup(_) | SiteChange::RemoveBackup => back.backup = before.backup.clone(),
        SiteChange::Spare(_) => back.spare = before.spare,
        SiteChange::RemoveSpare => {
            back.spare = before.spare;
            // Without a spare there are no backups at it.
            back.backup = before.backup.clone();
        }
        SiteChange::Port { port, .. } => {
            match before.ports.get(port) {
                Some(address) => back.ports.insert(port.clone(), address.clone()),
                None => back.ports.remove(port),
            };
        }
        SiteChange::Uplinks(_) | SiteChange::AskRouter { .. } => {
            back.uplinks = before.uplinks.clone();
        }
        SiteChange::Alerts(_) | SiteChange::RemoveAlerts => back.alerts = before.alerts.clone(),
        SiteChange::Upstream { name, .. } | SiteChange::RemoveUpstream(name) => {
            match before.upstreams.get(name) {
                Some(server) => back.upstreams.insert(name.clone(), server.clone()),
                None => back.upstreams.remove(name),
            };
        }
    }
    back.format = back.layout();
    back
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_did_not_come_to_the_door_goes_with_its_certificate() {
        let before = Site::unclaimed(8443);
        let change = SiteChange::Certificate(Box::new(polder_site::PublicCertificate {
            names: vec!["gpu.example.org".parse().unwrap()],
            directory: "https://acme.example/dir".parse().unwrap(),
            account: None,
            contact: None,
            root: None,
            dns_update: None,
            dns_hook: None,
        }));
        let after = change.applied_to(&before);
        assert_eq!(after.door.names, ["gpu.example.org"]);
        assert_eq!(as_before(&change, &after, &before), before);
    }

    #[test]
    fn where_people_sign_in_is_as_it_was_after_a_change_that_failed() {
        let before = Site::unclaimed(8443);
        let issuer = "https://sso.example.org".parse().unwrap();
        let sign_in = Box::new(polder_site::SignIn::at("house", issuer, "box"));
        let change = SiteChange::SignIn(sign_in);
        let after = change.applied_to(&before);
        assert_eq!(as_before(&change, &after, &before), before);
        assert_eq!(as_before(&SiteChange::RemoveSignIn, &before, &after), after);
    }

    #[test]
    fn a_verifier_is_as_it_was_after_a_change_that_failed() {
        let before = Site::unclaimed(8443);
        let url = "unix:/run/auth.sock:/auth".parse().unwrap();
        let change = SiteChange::Verifier(polder_site::Verifier { url, mode: Default::default() });
        let after = change.applied_to(&before);
        assert_eq!(as_before(&change, &after, &before), before);
        assert_eq!(as_before(&SiteChange::RemoveVerifier, &before, &after), after);
    }
}
