use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use polder_bakeoff::card;
use polder_bakeoff::endpoint::{Endpoint, without_password};
use polder_bakeoff::measure::{Plan, Side, measure, parity};
use polder_bakeoff::mix::{Mix, Used};
use polder_bakeoff::verdict::{Keep, ratios, verdict};
use polder_control::{Progress, Unit};
use polder_members::UsedLengths;

use crate::console::{ProgressLine, complain, say};
use crate::state::State;

/// Compare this box's engine with another one, such as vLLM, on your own model and lengths: do they answer alike, and which is faster?
///
/// Both are asked over the API of OpenAI, the same prompts, one after the other: first for answers that are compared, then for
/// requests as long as yours. Prompts are words in no order; nobody's texts are used. Where the card has no room for both at once,
/// measure one with --save, stop it, and name that file in place of its address.
///
/// The box counts these requests as it counts all others: until 30 days later they are part of what it takes for your lengths.
/// Where that matters, name lengths with --mix.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder bakeoff --ours https://box.local:8443 --ca ca.crt --theirs http://127.0.0.1:8000\n  polder bakeoff --ours https://box.local:8443 --ca ca.crt --mix lengths.jsonl --save polder.json\n  polder bakeoff --ours polder.json --theirs http://127.0.0.1:8000\n\nKeys are best kept out of command lines, which everybody on a machine can read. In a shell:\n  read -rs POLDER_API_KEY && export POLDER_API_KEY               # for --ours\n  read -rs POLDER_THEIR_API_KEY && export POLDER_THEIR_API_KEY   # for --theirs"
)]
pub(crate) struct Bakeoff {
    /// Polder: the address of a box, or a file of --save.
    #[arg(long, value_name = "URL|FILE")]
    ours: Option<String>,
    /// The other engine: its address, or a file of --save.
    #[arg(long, value_name = "URL|FILE")]
    theirs: Option<String>,
    /// The model, where Polder serves several.
    #[arg(long)]
    model: Option<String>,
    /// What the other one calls it, where it serves several.
    #[arg(long, value_name = "MODEL")]
    their_model: Option<String>,
    /// The API key for Polder.
    #[arg(long, env = "POLDER_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The API key for the other one, if it wants one.
    #[arg(long, value_name = "KEY", env = "POLDER_THEIR_API_KEY", hide_env_values = true)]
    their_key: Option<String>,
    /// The box's own authority, where its certificate is from that: it is at /ca.crt of the box.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The other one's authority, where its certificate is from one that this machine does not trust anyway.
    #[arg(long, value_name = "FILE")]
    their_ca: Option<PathBuf>,
    /// Lengths of requests, one per line: {"prompt": 1200, "answer": 150, "known": 0}, in tokens; "known" is how much of the
    /// prompt all have in common. Without it: what this box has counted in the last 30 days.
    #[arg(long, value_name = "FILE")]
    mix: Option<PathBuf>,
    #[command(flatten)]
    state: State,
    /// Requests of the mix.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Requests at once. Without it: as many as members used the box on its busiest day, 16 at most; 4 with --mix.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: Option<u32>,
    /// Prompts whose answers are compared.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    prompts: u32,
    /// Measure only the side that is named, and write it to this file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Days of usage that make up a mix.
const DAYS: u32 = 30;
/// Most requests at once that usage alone asks for: not everybody asks at the same moment.
const MOST_AT_ONCE: u64 = 16;

/// A side that is named.
enum Named {
    Saved(Box<Side>),
    Running(Endpoint),
}

impl Bakeoff {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let find = |address: &Option<String>,
                    key: &Option<String>,
                    model: &Option<String>,
                    ca: &Option<PathBuf>| {
            let Some(address) = address else { return Ok(None) };
            let trusted = ca.as_deref().map(read).transpose()?;
            named(address, key.as_deref(), model.as_deref(), trusted.as_deref()).map(Some)
        };
        let ours = find(&self.ours, &self.key, &self.model, &self.ca)?;
        let theirs = find(&self.theirs, &self.their_key, &self.their_model, &self.their_ca)?;
        if let Some(file) = &self.save {
            let server = match (ours, theirs) {
                (Some(Named::Running(server)), None) | (None, Some(Named::Running(server))) => {
                    server
                }
                _ => bail!(
                    "--save measures one engine: name its address with --ours or --theirs, and no other"
                ),
            };
            let side = watch("measuring", &server, &self.plan(&server)?)?;
            std::fs::write(file, serde_json::to_vec_pretty(&side)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
            say(format!("measured and kept in {}", file.display()));
            return Ok(());
        }
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            bail!("name both engines with --ours and --theirs, or measure one with --save");
        };
        let plan = match (&ours, &theirs) {
            (Named::Saved(side), _) | (_, Named::Saved(side)) => side.plan.clone(),
            (Named::Running(server), _) => self.plan(server)?,
        };
        let ours = side("Polder", ours, &plan)?;
        let theirs = side("the other one", theirs, &plan)?;
        if ours.plan != theirs.plan {
            bail!(
                "the two files were not asked the same: measure one, and the other with that file named"
            );
        }
        self.tell(&ours, &theirs)
    }

    fn plan(&self, server: &Endpoint) -> anyhow::Result<Plan> {
        let (mix, at_once) = self.mix()?;
        let sizes = (self.prompts as usize, self.requests as usize, at_once);
        Ok(Plan::new(&mix, server, sizes, fresh())?)
    }

    /// The mix, and how many ask at once.
    fn mix(&self) -> anyhow::Result<(Mix, usize)> {
        let chosen = self.concurrency.map(|n| n as usize);
        if let Some(file) = &self.mix {
            let text = String::from_utf8_lossy(&read(file)?).into_owned();
            return Ok((Mix::from_lines(&text)?, chosen.unwrap_or(4)));
        }
        let used = UsedLengths::read(&self.state.folder()?.join("polder.db"), DAYS)?;
        let rows = used.rows.iter().map(|[requests, prompt, completion]| Used {
            requests: *requests,
            prompt: *prompt,
            completion: *completion,
        });
        let mix = Mix::from_usage(rows)?;
        Ok((mix, chosen.unwrap_or(used.most_members.clamp(1, MOST_AT_ONCE) as usize)))
    }

    fn tell(&self, ours: &Side, theirs: &Side) -> anyhow::Result<()> {
        let parity = parity(ours, theirs);
        let (keep, why) = verdict(&parity, &ours.figures, &theirs.figures);
        let ratios = ratios(&ours.figures, &theirs.figures);
        let card = card::label(card::name().as_deref());
        let told = |side: &Side| {
            serde_json::json!({
                "model": side.model, "version": side.version, "figures": side.figures,
                "why_failed": side.why_failed,
            })
        };
        if self.json {
            let document = serde_json::json!({
                "keep": keep, "why": why, "card": card, "parity": parity, "ratios": ratios,
                "ours": told(ours), "theirs": told(theirs),
            });
            say(serde_json::to_string_pretty(&document)?);
            return Ok(());
        }
        say(format!("card: {card}"));
        let name = |side: &Side, else_called: &str| {
            let version = side.version.as_deref().unwrap_or(else_called);
            format!("{} ({version})", side.model)
        };
        say(format!("ours: {}; theirs: {}", name(ours, "Polder"), name(theirs, "version unknown")));
        say(format!(
            "answers: of {} prompts {} identical, {} agree; they part after {} tokens in the middle; the same tokens differ by {:.3} nats",
            parity.prompts, parity.identical, parity.agree, parity.median_same, parity.drift
        ));
        let plan = &ours.plan;
        say(format!("speed: {} requests, {} at once", plan.shapes.len(), plan.concurrency));
        say(format!("  {:26} {:>10} {:>10} {:>8}", "", "ours", "theirs", "ratio"));
        for ratio in ratios {
            say(format!(
                "  {:26} {:>10.3} {:>10.3} {:>7.2}x",
                ratio.what, ratio.ours, ratio.theirs, ratio.ratio
            ));
        }
        for (who, side) in [("Polder", ours), ("the other one", theirs)] {
            if let Some(why) = &side.why_failed {
                say(format!("why {who} failed first: {why}"));
            }
        }
        say(match keep {
            Keep::Ours => format!("keep Polder: {why}"),
            Keep::Theirs => format!("keep the other one: {why}"),
            Keep::Either => format!("keep what you have: {why}"),
            Keep::Neither => format!("keep neither yet: {why}"),
        });
        Ok(())
    }
}

fn named(
    address: &str,
    key: Option<&str>,
    model: Option<&str>,
    trusted: Option<&[u8]>,
) -> anyhow::Result<Named> {
    if address.starts_with("http://") || address.starts_with("https://") {
        return Ok(Named::Running(Endpoint::find(address, key, model, trusted)?));
    }
    let text = std::fs::read(address).with_context(|| {
        let address = without_password(address);
        format!("{address} is neither an address (http://...) nor a file of --save")
    })?;
    let side = serde_json::from_slice(&text)
        .with_context(|| format!("{address} is no file that --save wrote"))?;
    Ok(Named::Saved(Box::new(side)))
}

/// Another number each time.
fn fresh() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn side(who: &str, named: Named, plan: &Plan) -> anyhow::Result<Side> {
    match named {
        Named::Saved(side) => Ok(*side),
        Named::Running(server) => watch(&format!("asking {who}"), &server, plan),
    }
}

/// Measures, and says how far it is.
fn watch(title: &str, server: &Endpoint, plan: &Plan) -> anyhow::Result<Side> {
    let line = Mutex::new(ProgressLine::new());
    let began = Instant::now();
    let total = plan.requests();
    let show = |done: usize| {
        let rate = done as f64 / began.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let progress = Progress {
            phase: "requests".to_owned(),
            done: done as u64,
            total: Some(total as u64),
            unit: Unit::Items,
            rate: Some(rate),
            eta_seconds: Some(((total - done.min(total)) as f64 / rate) as u64),
        };
        if let Ok(mut line) = line.lock() {
            line.show(title, Some(&progress));
        }
    };
    let side = measure(server, plan, fresh(), &show)?;
    if let Ok(mut line) = line.lock() {
        line.finish("");
    }
    if side.figures.failed > 0 {
        let why = side.why_failed.as_deref().unwrap_or("no reason is known");
        let failed = side.figures.failed;
        complain(format!("{title}: {failed} of {total} requests failed, the first: {why}"));
    }
    Ok(side)
}
