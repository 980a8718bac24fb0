use std::collections::{BTreeMap, BTreeSet};

use polder_backup::{BackupAction, Store, drill_plan, first_plan, restore_plan, save_plan};
use polder_control::{BackupWish, PartState, Plan, Step};
use polder_site::{
    BackupPlace, Budget, Container, EngineName, InterfaceName, RecipeName, Site, SiteChange, Spare,
    SpareRole, SuccessionStep, TrialHours,
};

use crate::foreign;
use crate::image::{Change, ImageAction};
use crate::shelf::Described;
use crate::work::Handing;

/// The box as it is.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What it is told to be now.
    pub site: Site,
    /// Models that are wholly there.
    pub imported: BTreeSet<RecipeName>,
    /// How the gateway is.
    pub gateway: PartState,
    /// How the engines are; one that is not named is stopped.
    pub engines: BTreeMap<EngineName, PartState>,
    /// What is at the place that backups are to go to, where that is what is asked for.
    pub store: Option<Store>,
    /// Registries of images that the box has a user and a password for.
    pub logins: BTreeSet<String>,
    /// The port that is asked about, where it is not in the machine and no seed has an address for it.
    pub gone: Option<InterfaceName>,
}

/// What the box should become.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// The site with this change.
    Change(SiteChange),
    /// Only this model in the store.
    Model(RecipeName),
    /// Another version of the image.
    Image(Change),
    /// Something about backups.
    Backup(BackupWish),
    /// Another one of a pair is to serve.
    Takeover(Handing),
}

/// One thing to do. In a plan they come in an order that leaves the box working whenever one of
/// them fails: a model is brought in before anything is stopped for it, and the site never names an
/// engine's new model while the old one is still answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bring a model into the store.
    ImportModel {
        /// Which.
        recipe: RecipeName,
        /// What it is.
        what: Described,
    },
    /// Make sure that this image is there, and no other.
    BringImage {
        /// Which, and for whom.
        container: Box<Container>,
        /// Whether something is kept to show its registry.
        login: bool,
    },
    /// Stop an engine in order.
    StopEngine(EngineName),
    /// Make this the site.
    WriteSite {
        /// The new site.
        site: Box<Site>,
        /// Why, for the history.
        why: String,
    },
    /// Start an engine, or start it again, and wait until it answers.
    StartEngine(EngineName),
    /// Wait until the gateway, which follows the site while it runs, keeps the door that it says.
    OpenDoor,
    /// Watch the UPS that the site names, or none.
    WatchUps(bool),
    /// Tell the other box that the two are no pair any more, and forget it.
    LeaveSpare,
    /// Have the system give the port its addresses.
    GiveAddresses,
    /// Listen for the main box, keep in touch with the spare, or neither.
    TendLink(Option<Spare>),
    /// Wait until a steward confirms, over whatever way they have now, that the change did not lock them out.
    Confirm,
    /// Do something about the image.
    Image(ImageAction),
    /// Do something about backups.
    Backup {
        /// What.
        action: BackupAction,
        /// Where they are.
        place: BackupPlace,
        /// Which one; the newest without one.
        snapshot: Option<String>,
    },
    /// Do something about which of a pair serves.
    HandOver {
        /// What.
        action: polder_takeover::Action,
        /// As people see it.
        step: Step,
    },
}

impl Action {
    /// The state of another box is put in place: what was done before has closed its door already, and to stop now would leave nobody who serves.
    pub fn is_without_return(&self) -> bool {
        matches!(self, Self::HandOver { action: polder_takeover::Action::PutInPlace, .. })
    }

    /// The step that people see.
    pub fn step(&self) -> Step {
        let (id, title) = match self {
            Self::ImportModel { what, .. } => {
                let size = what.bytes.map(|b| format!(" ({})", size(b))).unwrap_or_default();
                ("import-model", format!("Import {}{size}", what.title))
            }
            Self::BringImage { container, login } => {
                ("bring-image", foreign::image_step(container, *login))
            }
            Self::StopEngine(name) => {
                ("stop-engine", format!("Let the engine {name} finish and stop it"))
            }
            Self::WriteSite { .. } => {
                ("write-site", "Write down what the box should be".to_owned())
            }
            Self::StartEngine(name) => {
                ("start-engine", format!("Start the engine {name} and wait until it answers"))
            }
            Self::OpenDoor => {
                ("open-door", "Open the door as written down; answers that run go on".to_owned())
            }
            Self::WatchUps(true) => ("watch-ups", "Listen to the UPS".to_owned()),
            Self::WatchUps(false) => ("watch-ups", "Listen to no UPS any more".to_owned()),
            Self::GiveAddresses => (
                "give-addresses",
                "Give the port its address; the other ports keep theirs".to_owned(),
            ),
            Self::LeaveSpare => {
                ("leave-spare", "Tell the other box that the two are no pair any more, and forget it; backups stay where they are".to_owned())
            }
            Self::TendLink(None) => ("tend-link", "Stop the link to the other box".to_owned()),
            Self::TendLink(Some(spare)) => (
                "tend-link",
                match spare.role {
                    SpareRole::ForAnother => {
                        format!("Listen at port {} for the box that this one is the spare of", spare.port)
                    }
                    SpareRole::OfThis => "Keep in touch with the spare".to_owned(),
                },
            ),
            Self::Confirm => (
                polder_control::CONFIRM,
                format!(
                    "Wait for a steward to confirm; without that it is undone after {} s",
                    CONFIRM_WITHIN.as_secs()
                ),
            ),
            Self::Image(action) => return action.step(),
            Self::Backup { action, place, .. } => return action.step(&place.shown()),
            Self::HandOver { step, .. } => return step.clone(),
        };
        Step { id: id.to_owned(), title }
    }
}

/// What has to be done to make the box as wanted, in order; nothing when it already is. `describe`
/// tells about the recipes named.
pub fn plan(
    observed: &Observed,
    wanted: &Wanted,
    describe: &dyn Fn(&RecipeName) -> Option<Described>,
) -> (Plan, Vec<Action>) {
    let known = |recipe: &RecipeName| {
        describe(recipe).unwrap_or_else(|| Described { title: recipe.to_string(), bytes: None })
    };
    let import =
        |recipe: &RecipeName| Action::ImportModel { recipe: recipe.clone(), what: known(recipe) };
    let title = title(wanted, &observed.site, &|recipe| known(recipe).title);
    let mut actions = Vec::new();
    match wanted {
        Wanted::Image(change) => actions.extend(change.actions().into_iter().map(Action::Image)),
        Wanted::Model(recipe) => {
            if !observed.imported.contains(recipe) {
                actions.push(import(recipe));
            }
        }
        Wanted::Backup(wish) => actions.extend(backup_actions(wish, &observed.site)),
        Wanted::Takeover(handing) => {
            let all = handing.actions.iter().cloned().zip(handing.plan.steps.iter().cloned());
            actions.extend(all.map(|(action, step)| Action::HandOver { action, step }));
        }
        Wanted::Change(change) => {
            let next = site_after(observed, change);
            let mut missing: Vec<&RecipeName> = Vec::new();
            let (mut images, mut stop, mut start) = (Vec::new(), Vec::new(), Vec::new());
            let stays = |name: &EngineName| observed.site.tells_alike(&next, name);
            for name in observed.site.engines.keys() {
                let state = observed.engines.get(name).unwrap_or(&PartState::Stopped);
                if !stays(name) && *state != PartState::Stopped {
                    stop.push(Action::StopEngine(name.clone()));
                }
            }
            // Whoever names a server elsewhere because an engine is away does not wait for that engine.
            let about_others =
                matches!(change, SiteChange::Upstream { .. } | SiteChange::RemoveUpstream(_));
            for (name, slot) in &next.engines {
                let state = observed.engines.get(name).unwrap_or(&PartState::Stopped);
                if stays(name) && (*state == PartState::Ready || about_others) {
                    continue;
                }
                let here =
                    observed.imported.contains(&slot.recipe) || !foreign::needs_weights(slot);
                if !here && !missing.contains(&&slot.recipe) {
                    missing.push(&slot.recipe);
                }
                images.extend(slot.container.clone().map(|container| Action::BringImage {
                    login: observed.logins.contains(container.image.registry()),
                    container,
                }));
                start.push(Action::StartEngine(name.clone()));
            }
            // What is to run later is brought in now.
            let parked = next.succession.as_ref().and_then(|succession| succession.parked.as_ref());
            if let Some(slot) = parked
                && !observed.imported.contains(&slot.recipe)
                && !missing.contains(&&slot.recipe)
            {
                missing.push(&slot.recipe);
            }
            actions.extend(missing.into_iter().map(import));
            actions.extend(images);
            actions.extend(stop);
            let (first, then) = first_backup(change, observed);
            actions.extend(first);
            if observed.site.spare.is_some() && next.spare.is_none() {
                actions.push(Action::LeaveSpare);
            }
            if next != observed.site {
                actions
                    .push(Action::WriteSite { site: Box::new(next.clone()), why: title.clone() });
            }
            actions.extend(then);
            actions.extend(start);
            if next.ports != observed.site.ports {
                actions.push(Action::GiveAddresses);
            }
            if must_be_confirmed(change) && next != observed.site {
                actions.push(Action::Confirm);
            }
            if next.spare != observed.site.spare {
                actions.push(Action::TendLink(next.spare));
            }
            if next.power != observed.site.power {
                actions.push(Action::WatchUps(next.power.is_some()));
            }
            let door = |site: &Site| (site.name.clone(), site.door.clone());
            if door(&next) != door(&observed.site)
                || matches!(observed.gateway, PartState::GaveUp(_))
            {
                actions.push(Action::OpenDoor);
            }
        }
    }
    (Plan { title, steps: actions.iter().map(Action::step).collect() }, actions)
}

/// What a wish about backups comes to.
fn backup_actions(wish: &BackupWish, site: &Site) -> Vec<Action> {
    let of = |place: &BackupPlace, snapshot: &Option<String>, actions: Vec<BackupAction>| {
        let action = |action| {
            let (place, snapshot) = (place.clone(), snapshot.clone());
            Action::Backup { action, place, snapshot }
        };
        actions.into_iter().map(action).collect()
    };
    match (wish, &site.backup) {
        (BackupWish::Restore { from, snapshot }, _) => of(from, snapshot, restore_plan()),
        (BackupWish::Now, Some(backup)) => of(&backup.to, &None, save_plan(backup)),
        (BackupWish::Drill, Some(backup)) => of(&backup.to, &None, drill_plan()),
        (BackupWish::Now | BackupWish::Drill, None) => Vec::new(),
    }
}

/// Another place for backups is made and used before a change counts as done: what is to be done before the site is written, and what after.
fn first_backup(change: &SiteChange, observed: &Observed) -> (Vec<Action>, Vec<Action>) {
    let (SiteChange::Backup(backup), Some(store)) = (change, observed.store) else {
        return (Vec::new(), Vec::new());
    };
    let action = |action| Action::Backup { action, place: backup.to.clone(), snapshot: None };
    let all = |actions: Vec<BackupAction>| actions.into_iter().map(action).collect();
    let (before, after) = first_plan(store, backup);
    (all(before), all(after))
}

/// A step of a change of model. What it is about stands in the site before it.
fn succession(step: &SuccessionStep, site: &Site, known: &dyn Fn(&RecipeName) -> String) -> String {
    use SuccessionStep as S;
    let under_way = site.succession.as_ref();
    let alias = under_way.map_or("?", |s| s.alias.as_str());
    let model = |which: fn(&polder_site::Succession) -> &EngineName| {
        let slot = under_way.and_then(|s| site.engines.get(which(s)).or(s.parked.as_ref()));
        slot.map_or_else(|| "the model".to_owned(), |slot| known(&slot.recipe))
    };
    let (old, new) = (model(|s| &s.from), model(|s| &s.to));
    match step {
        S::Begin { alias, from, slot, beside: true, .. } => format!(
            "Try {} beside the engine {from}, before the name {alias} is switched to it",
            known(&slot.recipe)
        ),
        S::Begin { alias, from, slot, hours, .. } => {
            let hours: Vec<String> = hours.iter().map(span).collect();
            format!(
                "Try {} in the place of the engine {from}, {}, before the name {alias} is switched to it",
                known(&slot.recipe),
                hours.join(" and ")
            )
        }
        S::Announce { at } => format!("Announce that {alias} is {new} from {} on", moment(*at)),
        S::Withdraw => format!("Take back that {alias} will be {new}"),
        S::HoursBegin { until } => format!("Run {new} for its trial until {}", moment(*until)),
        S::HoursEnd { .. } => format!("End the hours of the trial; {old} serves again"),
        S::Switch => format!("Switch the name {alias} from {old} to {new}"),
        S::Return => format!("Return the name {alias} from {new} to {old}"),
        S::LetGo => format!("Let {old} go; its files stay"),
        S::CallOff => format!("Call the change off; {old} stays"),
    }
}

fn moment(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn span(hours: &TrialHours) -> String {
    format!("{} to {}", moment(hours.from), hours.until.strftime("%H:%M UTC"))
}

fn title(wanted: &Wanted, site: &Site, known: &dyn Fn(&RecipeName) -> String) -> String {
    match wanted {
        Wanted::Image(change) => change.title(),
        Wanted::Model(recipe) => format!("Bring in {}", known(recipe)),
        Wanted::Change(SiteChange::Rename(name)) => format!("Call the box {name}"),
        Wanted::Change(SiteChange::Door { listen, names }) => {
            let list = |items: Vec<String>| items.join(", ");
            let mut title = format!(
                "Open the door at {}",
                list(listen.iter().map(ToString::to_string).collect())
            );
            if !names.is_empty() {
                title += &format!(", also as {}", list(names.clone()));
            }
            title
        }
        Wanted::Change(SiteChange::Engine { name, slot }) => {
            let memory = match slot.memory {
                Some(bytes @ Budget::Bytes(_)) => format!(", with {bytes} of memory"),
                Some(part @ Budget::Percent(_)) => format!(", with {part} of the memory"),
                None => String::new(),
            };
            format!("Serve {} as {name}{memory}{}", known(&slot.recipe), foreign::title(slot))
        }
        Wanted::Change(SiteChange::RemoveEngine(name)) => format!("Remove the engine {name}"),
        Wanted::Change(SiteChange::Alias { name, to }) => {
            format!("Have the name {name} lead to the engine {to}")
        }
        Wanted::Change(SiteChange::RemoveAlias(name)) => {
            format!("Have the name {name} lead nowhere")
        }
        Wanted::Change(SiteChange::Succession(step)) => succession(step, site, known),
        Wanted::Change(SiteChange::Money(money)) => {
            format!("Keep the collective's books in {}", money.currency)
        }
        Wanted::Change(SiteChange::RemoveMoney) => {
            "Keep no books any more; what was written down stays".to_owned()
        }
        Wanted::Change(SiteChange::Usage(usage)) if usage.per_member => {
            "Count usage per member".to_owned()
        }
        Wanted::Change(SiteChange::Usage(_)) => "Count no usage".to_owned(),
        Wanted::Change(SiteChange::Sharing(sharing)) if sharing.trusting => {
            "Keep the beginnings of conversations for all members together".to_owned()
        }
        Wanted::Change(SiteChange::Sharing(_)) => {
            "Keep the beginnings of conversations for each member alone".to_owned()
        }
        Wanted::Change(SiteChange::Common { title, .. }) => {
            format!("Read the instructions {title:?} once for all members")
        }
        Wanted::Change(SiteChange::RemoveCommon(title)) => {
            format!("Read the instructions {title:?} for each member again")
        }
        Wanted::Change(SiteChange::Keeping(keeping)) if keeping.days == 0 => {
            "Keep nothing of conversations on disk".to_owned()
        }
        Wanted::Change(SiteChange::Keeping(keeping)) => format!(
            "Keep what models read for {} {}, on at most {} % of the disk",
            keeping.days,
            if keeping.days == 1 { "day" } else { "days" },
            keeping.disk_percent
        ),
        Wanted::Change(SiteChange::App { name, app }) => {
            format!("Open the app {name} at {} to those who sign in", app.upstream)
        }
        Wanted::Change(SiteChange::RemoveApp(name)) => format!("Close the app {name}"),
        Wanted::Change(SiteChange::Verifier(verifier)) => {
            format!("Ask {} who somebody is that brings no key of the box", verifier.url)
        }
        Wanted::Change(SiteChange::RemoveVerifier) => {
            "Ask no verifier any more who somebody is".to_owned()
        }
        Wanted::Change(SiteChange::SignIn(sign_in)) => {
            format!("Let people sign in with {} ({})", sign_in.name, sign_in.issuer)
        }
        Wanted::Change(SiteChange::RemoveSignIn) => {
            "Let people sign in with the box's own passwords only".to_owned()
        }
        Wanted::Change(SiteChange::Updates(updates)) => {
            format!("Look for updates at {}", updates.from)
        }
        Wanted::Change(SiteChange::Power(plan)) => {
            format!("Live off the UPS {} when the mains is away", plan.ups)
        }
        Wanted::Change(SiteChange::RemovePower) => "Watch no UPS any more".to_owned(),
        Wanted::Change(SiteChange::Uplinks(uplinks)) => match uplinks.len() {
            0 => "Leave the ways to the internet as this machine has them".to_owned(),
            _ => {
                let mut names: Vec<_> = uplinks.iter().collect();
                names.sort_by_key(|(_, uplink)| uplink.order);
                let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
                format!("Go out by {}", names.join(", else by "))
            }
        },
        Wanted::Change(SiteChange::Port { port, address }) => {
            format!("Give the port {port} {address}")
        }
        Wanted::Change(SiteChange::AskRouter { uplink, ask: true }) => format!(
            "Ask the router of {uplink} to pass callers at port {} on to this box: anybody on the internet can then knock at its sign-in page and its API, and at nothing else",
            site.door.port
        ),
        Wanted::Change(SiteChange::AskRouter { uplink, ask: false }) => {
            format!("Give back the port that the router of {uplink} passes on to this box")
        }
        Wanted::Change(SiteChange::DynamicDns(dns)) => match (&dns.hook, &dns.zone) {
            (Some(hook), _) => format!("Tell {} where the box is", hook.parts().0),
            (None, Some(zone)) => format!("Keep {} where the box is", zone.name),
            (None, None) => "Tell nobody where the box is".to_owned(),
        },
        Wanted::Change(SiteChange::RemoveDynamicDns) => "Tell nobody where the box is".to_owned(),
        Wanted::Change(SiteChange::Alerts(alerts)) => {
            let ways = [
                (alerts.mail.is_some(), "by mail"),
                (alerts.webhook, "by webhook"),
                (alerts.ntfy, "by ntfy"),
            ];
            let ways: Vec<_> = ways.iter().filter(|(on, _)| *on).map(|(_, way)| *way).collect();
            match ways[..] {
                [] => "Tell stewards on the dashboard only when something is wrong".to_owned(),
                _ => format!("Tell stewards {} when something is wrong", ways.join(" and ")),
            }
        }
        Wanted::Change(SiteChange::RemoveAlerts) => {
            "Tell stewards on the dashboard only when something is wrong".to_owned()
        }
        Wanted::Change(SiteChange::Upstream { name, upstream }) => {
            let models: Vec<&str> = upstream.models.keys().map(RecipeName::as_str).collect();
            let of = match models[..] {
                [] => "nothing yet".to_owned(),
                _ => models.join(", "),
            };
            format!(
                "Ask {name} at {} {}, for at most {} {} a month: {of}",
                upstream.url,
                upstream.when(),
                upstream.budget,
                upstream.currency
            )
        }
        Wanted::Change(SiteChange::RemoveUpstream(name)) => format!("Ask {name} no more"),
        Wanted::Change(SiteChange::RemoveUpdates) => "Look for updates on sticks only".to_owned(),
        Wanted::Change(SiteChange::Certificate(certificate)) => {
            let names: Vec<&str> = certificate.names.iter().map(|name| name.as_str()).collect();
            format!("Have {} sign a certificate for {}", certificate.directory, names.join(", "))
        }
        Wanted::Change(SiteChange::RemoveCertificate) => {
            "Have no certificate but the box's own".to_owned()
        }
        Wanted::Change(SiteChange::Backup(backup)) => format!("Keep backups at {}", backup.to),
        Wanted::Change(SiteChange::Spare(spare)) => match spare.role {
            SpareRole::ForAnother => {
                format!(
                    "Be the spare of another box, with at most {} % of the disk",
                    spare.disk_percent
                )
            }
            SpareRole::OfThis => "Have a spare".to_owned(),
        },
        Wanted::Change(SiteChange::RemoveSpare) => "Have no spare any more, and be none".to_owned(),
        Wanted::Change(SiteChange::RemoveBackup) => {
            "Make no more backups; those there are stay".to_owned()
        }
        Wanted::Takeover(handing) => handing.plan.title.clone(),
        Wanted::Backup(BackupWish::Now) => "Make a backup".to_owned(),
        Wanted::Backup(BackupWish::Drill) => "Restore the newest backup for a trial".to_owned(),
        Wanted::Backup(BackupWish::Restore { from, .. }) => {
            format!("Become the box whose backups are at {from}")
        }
    }
}

/// What the site is to be. Of a port that is gone nothing is kept: another may have its address.
fn site_after(observed: &Observed, change: &SiteChange) -> Site {
    let mut next = change.applied_to(&observed.site);
    if let SiteChange::Port { port, address } = change
        && address.by_dhcp()
        && observed.gone.as_ref() == Some(port)
    {
        next.ports.remove(port);
        next.format = next.layout();
    }
    next
}

/// How long a steward has to confirm.
pub(crate) const CONFIRM_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Whether a change may take away the very way over which somebody could take it back.
pub(crate) fn must_be_confirmed(change: &SiteChange) -> bool {
    matches!(change, SiteChange::Uplinks(_) | SiteChange::Port { .. })
}

/// Bytes as people say them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests;
