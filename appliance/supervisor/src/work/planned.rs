//! What would have to be done, against the box as it is now.

use polder_control::{ImportSource, Machine, Plan};
use polder_site::{Difference, EngineName, RecipeName, SiteChange, SuccessionStep};

use super::{Refusal, Work, blocking, ups};
use crate::foreign;
use crate::machine;
use crate::parts::{Part, Parts};
use crate::plan::{Action, Observed, Wanted, plan};
use crate::runs::Intent;

/// What the operating system allows the path of a socket.
const LONGEST_SOCKET: usize = 107;

impl<P: Parts> Work<P> {
    pub(crate) async fn machine(&self) -> Machine {
        // Asking the driver takes a second, and cards are not changed while a box runs; early in its start the
        // driver may not be there yet, or not tell yet how much memory they have.
        let gpus = match self.gpus.get() {
            Some(gpus) => gpus.clone(),
            None => {
                let (gpus, told) = machine::gpus().await;
                if told {
                    let _ = self.gpus.set(gpus.clone());
                }
                gpus
            }
        };
        let seen = machine::detect(&self.state, gpus);
        match &self.image {
            Some(image) => machine::on_the_image(seen, image.ports()),
            None => seen,
        }
    }

    pub(crate) async fn imported(&self) -> Result<Vec<RecipeName>, Refusal> {
        let shelf = self.shelf.clone();
        Ok(blocking(move || shelf.imported()).await?.into_iter().collect())
    }

    pub(crate) async fn preview(
        &self,
        change: SiteChange,
    ) -> Result<(Vec<Difference>, Plan), Refusal> {
        let site = self.board.site();
        let next = change.applied_to(&site);
        let (plan, _) = self.plan_of(&Intent::Change(change)).await?;
        Ok((site.differences(&next), plan))
    }

    /// What would have to be done, against the box as it is now.
    pub(super) async fn plan_of(&self, intent: &Intent) -> Result<(Plan, Vec<Action>), Refusal> {
        let site = self.board.site();
        let wanted = match intent {
            Intent::Change(change) => {
                if let SiteChange::Succession(step) = change {
                    site.stepped(step).map_err(|e| e.to_string())?;
                }
                change.applied_to(&site).check().map_err(|e| e.to_string())?;
                Wanted::Change(change.clone())
            }
            Intent::Import { recipe, from } => {
                check_source(from)?;
                Wanted::Model(recipe.clone())
            }
            Intent::Update(wish) => Wanted::Image(self.image_change(*wish).await?),
            Intent::Backup(wish) => Wanted::Backup(self.backup_wish(wish, &site)?),
            Intent::Takeover(wish) => Wanted::Takeover(self.handing(wish).await?),
        };
        let recipe = match &wanted {
            Wanted::Model(recipe) => Some(recipe),
            // A server that somebody else runs may have a model that there is no recipe for.
            Wanted::Change(SiteChange::Engine { slot, .. }) if !foreign::needs_weights(slot) => {
                None
            }
            Wanted::Change(
                SiteChange::Engine { slot, .. }
                | SiteChange::Succession(SuccessionStep::Begin { slot, .. }),
            ) => Some(&slot.recipe),
            Wanted::Change(_) | Wanted::Image(_) | Wanted::Backup(_) | Wanted::Takeover(_) => None,
        };
        if let Some(recipe) = recipe
            && self.shelf.describe(recipe).is_none()
        {
            return Err(format!(
                "there is no recipe called {recipe}; `polder recipes` lists those there are"
            ));
        }
        if let Wanted::Change(SiteChange::Engine { name, .. }) = &wanted
            && self.sockets.engine(name).as_os_str().len() > LONGEST_SOCKET
        {
            return Err(format!(
                "the name {name} is too long for a socket in {}; choose a shorter one",
                self.state.display()
            ));
        }
        if let Wanted::Change(change @ (SiteChange::Engine { .. } | SiteChange::Succession(_))) =
            &wanted
            && change.applied_to(&site).engines != site.engines
        {
            self.shelf.fits(&change.applied_to(&site), &self.machine().await)?;
        }
        if let Wanted::Change(SiteChange::Power(power)) = &wanted
            && power.attached.is_some()
            && self.image.is_none()
        {
            return Err(ups::NO_NUT.to_owned());
        }
        let mut gone = None;
        if let Wanted::Change(SiteChange::Port { port, address }) = &wanted {
            self.may_have_address(port, address)?;
            gone = Some(port.clone()).filter(|port| self.may_be_forgotten(port));
        }
        let store = match &wanted {
            Wanted::Change(SiteChange::Backup(backup)) => Some(self.store_at(backup).await?),
            _ => None,
        };
        let imported = self.imported().await?.into_iter().collect();
        let engine =
            |name: &EngineName| (name.clone(), self.board.part(&Part::Engine(name.clone())).state);
        let observed = Observed {
            engines: site.engines.keys().map(engine).collect(),
            gateway: self.board.part(&Part::Gateway).state,
            imported,
            store,
            site,
            logins: crate::foreign::logins(&self.state),
            gone,
        };
        Ok(plan(&observed, &wanted, &|recipe| self.shelf.describe(recipe)))
    }
}

/// An address with a password in it would end up in the list of runs.
fn check_source(from: &ImportSource) -> Result<(), Refusal> {
    match from {
        ImportSource::Web(address) => {
            let rest = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
            let authority = rest.split('/').next().unwrap_or_default();
            if authority.contains('@') {
                return Err("the address has a name or password in it, which would be written \
                            down; use one without"
                    .to_owned());
            }
            Ok(())
        }
        ImportSource::Folder(path) if !path.is_absolute() => Err(format!(
            "{} is not a whole path; write it from the root, beginning with /",
            path.display()
        )),
        ImportSource::Folder(_) | ImportSource::Recipe => Ok(()),
    }
}
