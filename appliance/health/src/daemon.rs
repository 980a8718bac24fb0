//! The part that looks after a box's health: looks every minute, remembers, tells, and answers on `health.sock`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polder_control::{
    AlertSecret, AuditHead, Channel, ChannelState, ControlError, Handler, HealthReply,
    HealthReport, HealthRequest, Machine, Outlet, Reply, Request, Severity, Sockets, UpdateStatus,
};
use polder_site::{Alerts, Site};

use crate::alerts::{self, Agent, Letter};
use crate::checks::{self, MINUTE};
use crate::look::{Eyes, Look, ask};
use crate::memory::Remembered;
use crate::secrets::Secrets;
use crate::seen::Mute;
use crate::support::{self, Sources};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// After a start, before the first: the other parts start at the same time.
const FIRST: Duration = Duration::from_secs(5);
/// Whom to tell is asked for this often, in looks.
const WHOM: u64 = 10;
/// "All is well" is said this often, in seconds.
const PING: i64 = 5 * MINUTE;

/// The part could not go on.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Nobody could ask it anything.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Looks after the box in this state folder until `told` is done.
pub async fn run(state: &Path, told: impl Future<Output = ()>) -> Result<(), HealthError> {
    let remembered = Remembered::read(state);
    let report = HealthReport {
        standing: remembered.ledger.standing.clone(),
        past: remembered.ledger.past.clone(),
        ..HealthReport::default()
    };
    let core = Core {
        state: state.to_owned(),
        eyes: Eyes::of(state),
        remembered,
        site: None,
        looks: 0,
        pinged: 0,
    };
    let keeper = Arc::new(Keeper {
        state: state.to_owned(),
        sockets: Sockets::of(state),
        core: tokio::sync::Mutex::new(core),
        report: Mutex::new(report),
    });
    let socket = keeper.sockets.health();
    tokio::select! {
        ended = polder_control::serve(&socket, keeper.clone()) => ended.map_err(Into::into),
        () = keeper.keep_looking() => Ok(()),
        () = told => Ok(()),
    }
}

struct Keeper {
    state: PathBuf,
    sockets: Sockets,
    core: tokio::sync::Mutex<Core>,
    report: Mutex<HealthReport>,
}

/// What a look needs; one look at a time.
struct Core {
    state: PathBuf,
    eyes: Eyes,
    remembered: Remembered,
    /// As it was when the supervisor last answered.
    site: Option<Site>,
    looks: u64,
    /// When "all is well" was said last, Unix seconds.
    pinged: i64,
}

impl Keeper {
    async fn keep_looking(&self) {
        tokio::time::sleep(FIRST).await;
        loop {
            self.look(false).await;
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&self, everything: bool) {
        let mut core = self.core.lock().await;
        let look = core.look(everything).await;
        let report = core.report(look);
        *self.report.lock().expect("nothing panics while it holds this") = report;
        core.tell().await;
        let channels = core.channels();
        self.report.lock().expect("nothing panics while it holds this").channels = channels;
        if let Err(error) = core.remembered.write(&core.state) {
            log::error!("what was seen of the box's health could not be written down: {error}");
        }
    }

    fn now(&self) -> HealthReport {
        self.report.lock().expect("nothing panics while it holds this").clone()
    }

    async fn test(&self, channel: Channel) -> Result<(), String> {
        let mut core = self.core.lock().await;
        // Asked for now, and not as it was a minute ago: a steward changes it and tries.
        let status = ask::<Request, Reply>(&self.sockets.control(), &Request::Status).await?;
        let Reply::Status(status) = status else {
            return Err("the supervisor answered oddly".to_owned());
        };
        core.site = Some(status.site);
        core.ask_whom().await;
        core.try_out(channel).await
    }

    async fn support(&self, by: polder_control::Actor) -> Result<String, String> {
        let secrets = Secrets::read(&self.state).unwrap_or_default();
        let control = self.sockets.control();
        let question = |request| {
            let control = control.clone();
            async move { ask::<Request, Reply>(&control, &request).await }
        };
        let what = "made a support text about".to_owned();
        let _ = question(Request::Record { by, what, on: "the box".to_owned() }).await;
        let status = match question(Request::Status).await {
            Ok(Reply::Status(status)) => Some(status),
            _ => None,
        };
        let machine: Option<Machine> = match question(Request::Machine).await {
            Ok(Reply::Machine(machine)) => Some(machine),
            _ => None,
        };
        let update: Option<Box<UpdateStatus>> = match question(Request::Updates).await {
            Ok(Reply::Updates(update)) => Some(update),
            _ => None,
        };
        let head: Option<AuditHead> = match question(Request::AuditHead).await {
            Ok(Reply::AuditHead(head)) => Some(head),
            _ => None,
        };
        let known = self.core.lock().await.remembered.stewards.clone();
        let mut hidden: Vec<String> = secrets.values().map(str::to_owned).collect();
        hidden.extend(known.into_iter().flat_map(|s| [Some(s.name), s.email]).flatten());
        let journal = journal().await;
        let report = self.now();
        let sources = Sources {
            now: jiff::Timestamp::now().as_second(),
            system: system(),
            status: status.as_deref(),
            machine: machine.as_ref(),
            update: update.as_deref(),
            head: head.as_ref(),
            report: &report,
            journal: &journal,
            secrets: hidden,
        };
        Ok(support::text(&sources))
    }
}

impl Core {
    async fn look(&mut self, everything: bool) -> Look {
        let mut look = self.eyes.look(&mut self.remembered, everything).await;
        if let Some(status) = &look.status {
            self.site = Some(status.site.clone());
        }
        if self.looks.is_multiple_of(WHOM) {
            self.ask_whom().await;
        }
        self.looks += 1;
        let on = self.site.as_ref().and_then(|site| site.alerts.as_ref());
        let used = self.remembered.told.iter().filter(|(channel, _)| is_on(on, **channel));
        let mute = used.filter_map(|(channel, told)| {
            let (since, why) = told.failing.clone()?;
            Some(Mute { channel: channel.word().to_owned(), since, why })
        });
        look.seen.mute = mute.collect();
        look
    }

    async fn ask_whom(&mut self) {
        if let Some(stewards) = self.eyes.stewards().await {
            self.remembered.stewards = stewards;
        }
    }

    fn report(&mut self, look: Look) -> HealthReport {
        let now = look.seen.now;
        let blind: Vec<_> = look.unseen.iter().map(|unseen| unseen.check).collect();
        let before: Vec<_> =
            self.remembered.ledger.standing.iter().map(|s| s.issue.id.clone()).collect();
        self.remembered.ledger.take(now, checks::all(&look.seen), &blind);
        let ledger = &self.remembered.ledger;
        for standing in ledger.standing.iter().filter(|s| !before.contains(&s.issue.id)) {
            let level = match standing.issue.severity {
                Severity::Notice => log::Level::Info,
                Severity::Warning | Severity::Urgent => log::Level::Warn,
            };
            log::log!(level, "{}: {}", standing.issue.severity.word(), standing.issue.what);
        }
        HealthReport {
            at: now,
            standing: ledger.standing.clone(),
            past: ledger.past.clone(),
            unseen: look.unseen,
            channels: Vec::new(),
        }
    }

    fn alerts(&self) -> Option<Alerts> {
        self.site.as_ref()?.alerts.clone()
    }

    fn name(&self) -> String {
        self.site.as_ref().map_or("polder".to_owned(), |site| site.name.to_string())
    }

    fn channels(&self) -> Vec<ChannelState> {
        let alerts = self.alerts();
        let state = |channel| {
            let told = self.remembered.told.get(&channel);
            ChannelState {
                channel,
                on: is_on(alerts.as_ref(), channel),
                worked: told.and_then(|told| told.worked),
                failed: told.and_then(|told| told.failing.clone()).map(|(_, why)| why),
            }
        };
        Channel::ALL.map(state).into()
    }

    /// Sends what is due, in every way that the site says.
    async fn tell(&mut self) {
        let Some(alerts) = self.alerts() else { return };
        let now = jiff::Timestamp::now().as_second();
        let standing = self.remembered.ledger.standing.clone();
        let least = alerts::least(alerts.from);
        for channel in [Channel::Mail, Channel::Webhook, Channel::Ntfy] {
            if !is_on(Some(&alerts), channel) {
                continue;
            }
            let told = self.remembered.told.entry(channel).or_default();
            let Some(letter) = told.due(&standing, least, now) else { continue };
            let sent = self.send(channel, &letter, now).await;
            self.note(&letter, sent.is_ok()).await;
            let told = self.remembered.told.entry(channel).or_default();
            match sent {
                Ok(()) => told.sent(&letter, now),
                Err(why) => {
                    log::warn!("stewards could not be told by {}: {why}", channel.word());
                    told.failed(&why, now);
                }
            }
        }
        self.say_that_all_is_well(&alerts, now).await;
    }

    /// Into the audit trail, in whose words the box itself told somebody.
    async fn note(&self, letter: &Letter, sent: bool) {
        let urgent = letter.begun.iter().filter(|s| s.issue.severity == Severity::Urgent);
        for standing in urgent.take(5).filter(|_| sent) {
            let (what, on) = ("told stewards that".to_owned(), standing.issue.what.clone());
            let control = Sockets::of(&self.state).control();
            let _ = ask::<Request, Reply>(&control, &Request::Noticed { what, on }).await;
        }
    }

    /// A clock that was set back must not make it silent.
    async fn say_that_all_is_well(&mut self, alerts: &Alerts, now: i64) {
        let well =
            self.remembered.ledger.standing.iter().all(|s| s.issue.severity < Severity::Urgent);
        let due = !(0..PING).contains(&now.saturating_sub(self.pinged));
        if !alerts.dead_man || !well || !due {
            return;
        }
        self.pinged = now;
        let pinged = self.ping().await;
        let told = self.remembered.told.entry(Channel::DeadMan).or_default();
        match pinged {
            Ok(()) => told.it_worked(now),
            Err(why) => {
                log::warn!("nobody could be told that all is well: {why}");
                told.failed(&why, now);
            }
        }
    }

    async fn ping(&self) -> Result<(), String> {
        let secrets = Secrets::read(&self.state)?;
        let url = secret(&secrets, AlertSecret::DeadManUrl)?.to_owned();
        blocking(move || Agent::new().ping(&url)).await
    }

    async fn send(&self, channel: Channel, letter: &Letter, now: i64) -> Result<(), String> {
        let name = self.name();
        let (subject, urgent) = (letter.subject(&name), letter.is_urgent());
        match channel {
            Channel::Webhook => self.webhook(letter.document(&name, now)).await,
            Channel::Ntfy => self.ntfy(urgent, subject, letter.message(&name, now)).await,
            Channel::Mail => self.mail(subject, letter.body(&name, now)).await,
            Channel::DeadMan => self.ping().await,
        }
    }

    async fn try_out(&mut self, channel: Channel) -> Result<(), String> {
        let (subject, body) = Letter::test(channel);
        let subject = format!("[{}] {subject}", self.name());
        let tried = match channel {
            Channel::Mail => self.mail(subject, body).await,
            Channel::Webhook => {
                let document =
                    serde_json::json!({"box": self.name(), "test": true, "text": subject});
                self.webhook(document).await
            }
            Channel::Ntfy => self.ntfy(false, subject, body).await,
            Channel::DeadMan => self.ping().await,
        };
        if tried.is_ok() {
            let now = jiff::Timestamp::now().as_second();
            self.remembered.told.entry(channel).or_default().it_worked(now);
        }
        tried
    }

    async fn mail(&self, subject: String, body: String) -> Result<(), String> {
        let server = self.alerts().and_then(|alerts| alerts.mail);
        let server = server.ok_or("the site names no mail server; set one first")?;
        let secrets = Secrets::read(&self.state)?;
        let password = secrets.get(AlertSecret::MailPassword).map(str::to_owned);
        let stewards = self.remembered.stewards.clone();
        blocking(move || {
            let sent = alerts::send_mail(&server, password.as_deref(), &stewards, &subject, &body);
            sent.map(drop).map_err(|trouble: alerts::MailTrouble| trouble.to_string())
        })
        .await
    }

    async fn webhook(&self, document: serde_json::Value) -> Result<(), String> {
        let secrets = Secrets::read(&self.state)?;
        let url = secret(&secrets, AlertSecret::WebhookUrl)?.to_owned();
        blocking(move || Agent::new().webhook(&url, &document)).await
    }

    async fn ntfy(&self, urgent: bool, title: String, body: String) -> Result<(), String> {
        let secrets = Secrets::read(&self.state)?;
        let url = secret(&secrets, AlertSecret::NtfyUrl)?.to_owned();
        let token = secrets.get(AlertSecret::NtfyToken).map(str::to_owned);
        blocking(move || Agent::new().ntfy(&url, token.as_deref(), urgent, &title, &body)).await
    }
}

fn is_on(alerts: Option<&Alerts>, channel: Channel) -> bool {
    alerts.is_some_and(|alerts| match channel {
        Channel::Mail => alerts.mail.is_some(),
        Channel::Webhook => alerts.webhook,
        Channel::Ntfy => alerts.ntfy,
        Channel::DeadMan => alerts.dead_man,
    })
}

fn secret(secrets: &Secrets, which: AlertSecret) -> Result<&str, String> {
    secrets.get(which).ok_or_else(|| "its web address was not given yet; set it first".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The system, in a line.
fn system() -> String {
    let name = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let (kernel, machine) = (text(name.release()), text(name.machine()));
    format!("kernel {kernel} on {machine}, up for {}", checks::span(up))
}

/// The last lines of our own units' logs, where a journal keeps them.
async fn journal() -> String {
    let asked = tokio::process::Command::new("journalctl")
        .args([
            "-u",
            "polder-*",
            "-n",
            "400",
            "-o",
            "short-iso",
            "--no-hostname",
            "--no-pager",
            "-q",
        ])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(10), asked).await {
        Ok(Ok(out)) => {
            String::from_utf8_lossy(&out.stdout[..out.stdout.len().min(1 << 20)]).into_owned()
        }
        _ => String::new(),
    }
}

impl Handler<HealthRequest, HealthReply> for Keeper {
    async fn handle(
        &self,
        request: HealthRequest,
        outlet: &mut Outlet<HealthReply>,
    ) -> Result<(), ControlError> {
        let report = || HealthReply::Report(Box::new(self.now()));
        let reply = match request {
            HealthRequest::Ready => Ok(HealthReply::Done),
            HealthRequest::Report => Ok(report()),
            HealthRequest::LookNow => {
                self.look(true).await;
                Ok(report())
            }
            HealthRequest::Test(channel) => self.test(channel).await.map(|()| HealthReply::Done),
            HealthRequest::Keep { secret, value } => Secrets::read(&self.state)
                .or_else(|_| Ok(Secrets::default()))
                .and_then(|mut secrets| secrets.keep(&self.state, secret, &value))
                .map(|()| HealthReply::Done),
            HealthRequest::Kept => Secrets::read(&self.state).map(|s| HealthReply::Kept(s.kept())),
            HealthRequest::Support { by } => self.support(by).await.map(HealthReply::Support),
        };
        outlet.send(&reply.unwrap_or_else(HealthReply::Refused)).await
    }
}
