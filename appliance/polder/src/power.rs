use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use polder_control::{
    Actor, Client, ControlError, Handler, Outlet, PowerPhase, PowerReply, PowerRequest, Reply,
    Request, SecretText, Sockets, Supply,
};
use polder_power::cards::{NvidiaSmi, limit_all};
use polder_power::find::{self, Found};
use polder_power::watch::{House, Watcher};
use polder_site::{PowerPlan, SiteChange, UpsAddress, UpsRole};
use polder_supervisor::Part;

use crate::console::say;
use crate::follow::Follower;
use crate::part;
use crate::state::{State, runtime, unexpected};

/// The supervisor answers within this, or is asked again at the next look.
const LIMIT: Duration = Duration::from_secs(5);
/// Nobody's password is longer, in bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// Live off a UPS when the mains is away: which one, and how it is.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder power find                  UPSes on this machine's USB\n  polder power use usb               watch the one on USB (where Polder's image runs)\n  polder power use ups@localhost     watch one that NUT on this machine looks after\n  polder power status                how the power is, and what comes next"
)]
pub(crate) struct Power {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say how the power is, and what comes next.
    #[command(after_help = "Example:\n  polder power status")]
    Status {
        #[command(flatten)]
        state: State,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Watch this UPS from now on, or with `none` no UPS.
    #[command(
        after_help = "Examples:\n  polder power use usb                         plugged into this machine, where Polder's image runs\n  polder power use ups@localhost               NUT on this machine looks after it\n  polder power use ups@10.0.0.2 --secondary    another machine looks after it\n  polder power use none"
    )]
    Use {
        /// Its name at the machine whose upsd looks after it. On Polder's own image also usb, serial:LINE or snmp:ADDRESS: how it is
        /// plugged in.
        #[arg(value_name = "NAME@HOST")]
        ups: String,
        /// Another machine looks after it and tells this one.
        #[arg(long)]
        secondary: bool,
        /// At this charge the box stops, in percent. [default: 30]
        #[arg(long, value_name = "PERCENT")]
        low_charge: Option<u8>,
        /// Seconds that other machines on the UPS have to say goodbye, once they are told. [default: 60]
        #[arg(long, value_name = "SECONDS")]
        others: Option<u32>,
        /// Seconds that they need after that until they are off, at most 300. [default: 20]
        #[arg(long, value_name = "SECONDS")]
        others_halt: Option<u32>,
        /// The day on which its battery was put in, where the UPS does not tell it. What was said of the same UPS before stays.
        #[arg(long, value_name = "YYYY-MM-DD")]
        battery_since: Option<jiff::civil::Date>,
        /// Who this box is to upsd; `polder power password` keeps the password. [default: polder]
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// Keep the password for upsd, from standard input: this box's at another machine's, other machines' at its own.
    #[command(
        after_help = "Examples:\n  polder power password < password.txt\n  polder power password < /dev/null    forget it"
    )]
    Password {
        #[command(flatten)]
        state: State,
    },
    /// Have graphics cards draw a part of their usual power (root's part, which the supervisor asks for).
    #[command(
        after_help = "Examples:\n  sudo polder power limit 60\n  sudo polder power limit 100    all of it again"
    )]
    Limit {
        /// Percent of the usual.
        #[arg(value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(20..=100))]
        percent: u8,
    },
    /// List the UPSes that are plugged into this machine's USB.
    #[command(after_help = "Example:\n  polder power find")]
    Find,
    /// Watch the UPS of a box (its supervisor starts this).
    #[command(after_help = "Example:\n  polder power watch --state /var/lib/polder")]
    Watch {
        #[command(flatten)]
        state: State,
    },
}

impl Power {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Status { state, json } => {
                let Reply::Status(status) = state.ask(&Request::Status)? else {
                    return Err(unexpected());
                };
                if json {
                    say(serde_json::to_string_pretty(&status.supply)?);
                    return Ok(());
                }
                say(match (&status.site.power, &status.supply) {
                    (None, _) => "no UPS is watched; `polder power find` looks for one".to_owned(),
                    (Some(plan), None) => format!("the UPS {} was not heard yet", plan.ups),
                    (Some(plan), Some(supply)) => text(plan, supply),
                });
                Ok(())
            }
            Command::Use {
                ups,
                secondary,
                low_charge,
                others,
                others_halt,
                battery_since,
                user,
                state,
            } => {
                let change = match ups.as_str() {
                    "none" => SiteChange::RemovePower,
                    ups => {
                        let mut plan = match ups.contains('@') {
                            true => PowerPlan::of(ups.parse::<UpsAddress>()?),
                            false => PowerPlan::attached(ups.parse()?),
                        };
                        if secondary {
                            plan.role = UpsRole::Secondary;
                        }
                        plan.low_charge = low_charge.unwrap_or(plan.low_charge);
                        plan.start_charge = plan.start_charge.max(plan.low_charge);
                        plan.user = user.unwrap_or(plan.user);
                        plan.others = others.unwrap_or(plan.others);
                        plan.others_halt = others_halt.unwrap_or(plan.others_halt);
                        plan.battery_since = battery_since;
                        SiteChange::Power(plan.with_battery_of(watched(&state)?.as_ref()))
                    }
                };
                let none = change == SiteChange::RemovePower;
                runtime()?.block_on(Follower::of(&state.folder()?).apply(change))?;
                say(if none {
                    "no UPS is watched any more"
                } else {
                    "the UPS is heard and watched"
                });
                Ok(())
            }
            Command::Password { state } => {
                let mut text = String::new();
                let longest = std::io::stdin().take(LONGEST_PASSWORD).read_to_string(&mut text);
                longest.context("the password could not be read")?;
                let text = SecretText::new(text.lines().next().unwrap_or_default());
                let gone = text.expose().is_empty();
                match state.ask(&Request::UpsPassword { text, by: Actor::Console })? {
                    Reply::Done => {}
                    _ => return Err(unexpected()),
                }
                say(if gone { "no password is kept any more" } else { "the password is kept" });
                Ok(())
            }
            Command::Limit { percent } => {
                let part = (percent < 100).then_some(percent);
                if let Err(why) = limit_all(&mut NvidiaSmi::default(), part) {
                    bail!("graphics cards draw what they drew: {why}");
                }
                say(format!("graphics cards may draw {percent} % of their usual power"));
                Ok(())
            }
            Command::Find => {
                let found = find::ups_below(Path::new("/sys/bus/usb/devices"));
                if found.is_empty() {
                    say(
                        "no UPS is plugged into this machine's USB; one on the network is used by its name and machine",
                    );
                }
                for Found { name, driver, id } in found {
                    say(format!("{name} ({id}): NUT's driver for it is {driver}"));
                }
                Ok(())
            }
            Command::Watch { state } => watch(&state.folder()?),
        }
    }
}

/// The UPS that is watched now.
fn watched(state: &State) -> anyhow::Result<Option<PowerPlan>> {
    match state.ask(&Request::Status)? {
        Reply::Status(status) => Ok(status.site.power),
        _ => Err(unexpected()),
    }
}

fn text(plan: &PowerPlan, supply: &Supply) -> String {
    let mut lines = vec![supply.words.clone(), format!("  UPS       {}", plan.ups)];
    if let Some(charge) = supply.charge {
        lines.push(format!("  battery   {charge} %"));
    }
    if let Some(runtime) = supply.runtime {
        lines.push(format!("  lasts     {} minutes", runtime / 60));
    }
    if let Some(load) = supply.load {
        lines.push(format!("  load      {load} %"));
    }
    if supply.replace_battery {
        lines.push("  the UPS asks for a new battery".to_owned());
    }
    if let Some(at) = supply.battery_since.and_then(|at| jiff::Timestamp::from_second(at).ok()) {
        lines.push(format!("  in since  {}", at.strftime("%Y-%m-%d")));
    } else if let Some(at) = supply.ups_made.and_then(|at| jiff::Timestamp::from_second(at).ok()) {
        lines.push(format!(
            "  made      {} (the UPS; nobody has said when its battery was put in)",
            at.strftime("%Y-%m-%d")
        ));
    }
    if supply.test_failed.is_some() {
        lines.push("  the battery failed its last test".to_owned());
    }
    if let Some(test) = &supply.last_test {
        lines.push(format!("  last test {test}"));
    }
    lines.join("\n")
}

/// The part itself.
fn watch(state: &Path) -> anyhow::Result<()> {
    let site = part::site(state)?;
    let Some(plan) = site.power else {
        bail!("site.toml names no UPS; `polder power use NAME@HOST` does");
    };
    let sockets = Sockets::of(state);
    let folder = state.join("power");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("could not make {}", folder.display()))?;
    part::run(part::one_thread()?, Part::Power, state, |told| async move {
        let house = Supervisor { control: sockets.control() };
        let watcher = Watcher::new(plan, folder, house);
        let socket = sockets.power();
        tokio::select! {
            served = polder_control::serve(&socket, std::sync::Arc::new(Here)) => served,
            () = watcher.run() => Ok(()),
            () = told => Ok(()),
        }
    })
}

/// Says that the part is there.
struct Here;

impl Handler<PowerRequest, PowerReply> for Here {
    async fn handle(
        &self,
        PowerRequest::Ready: PowerRequest,
        outlet: &mut Outlet<PowerReply>,
    ) -> Result<(), ControlError> {
        outlet.send(&PowerReply::Ready).await
    }
}

/// The box, as the watcher reaches it.
struct Supervisor {
    control: std::path::PathBuf,
}

impl Supervisor {
    async fn ask(&self, request: &Request) -> Result<Reply, String> {
        let asked = async {
            let mut client: Client<Request, Reply> = Client::connect(&self.control).await?;
            client.ask_within(LIMIT, request).await
        };
        match asked.await.map_err(|error| error.to_string())? {
            Reply::Refused(why) => Err(why),
            reply => Ok(reply),
        }
    }
}

impl House for Supervisor {
    async fn tell(&mut self, supply: &Supply) -> Result<bool, String> {
        match self.ask(&Request::Supply(Box::new(supply.clone()))).await? {
            Reply::Supplied { drained } => Ok(drained),
            other => Err(format!("it answered {other:?}")),
        }
    }

    async fn power_off(&mut self) -> Result<(), String> {
        let off = Request::Power { how: polder_control::Power::Off, by: Actor::Itself };
        self.ask(&off).await.map(drop)
    }

    async fn phase(&mut self) -> Option<PowerPhase> {
        match self.ask(&Request::Status).await {
            Ok(Reply::Status(status)) => status.supply.map(|supply| supply.phase),
            _ => None,
        }
    }
}
