use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use polder_update::{Here, Job, JobState, KEYS, Keys, Shelf, Version};

use crate::console::say;
use crate::state::State;

/// How far the writing is, is told at most this often.
const TELL: Duration = Duration::from_millis(200);

/// Root's part of updates: look at the two slots, write one, leave one. Units of the image run this.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder slots look --told /run/polder-slots")]
pub(crate) struct Slots {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write down what is in the slots and what starts next.
    #[command(after_help = "Example:\n  polder slots look")]
    Look {
        #[command(flatten)]
        told: Told,
    },
    /// Write a version that was fetched into the slot that does not run.
    #[command(after_help = "Example:\n  polder slots write 0.2.0 --state /var/lib/polder")]
    Write {
        /// Which.
        version: Version,
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        told: Told,
    },
    /// Have the other slot started from now on.
    #[command(after_help = "Example:\n  polder slots back")]
    Back {
        #[command(flatten)]
        told: Told,
    },
}

#[derive(Debug, clap::Args)]
struct Told {
    /// Where it is written down for the rest of the box.
    #[arg(long, value_name = "DIR", default_value = "/run/polder-slots")]
    told: PathBuf,
}

impl Slots {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        crate::part::log("info");
        let here = polder_update::here()?.context(
            "this machine does not run from an image of Polder, so that it has no slots",
        )?;
        let keys = Keys::in_folder(Path::new(KEYS))?;
        match self.command {
            Command::Look { told } => told.slots(&polder_update::look(&here, &keys)?),
            Command::Back { told } => told.slots(&polder_update::go_back(&here, &keys)?),
            Command::Write { version, state, told } => write(&version, &state, &told, &here, &keys),
        }
    }
}

fn write(
    version: &Version,
    state: &State,
    told: &Told,
    here: &Here,
    keys: &Keys,
) -> anyhow::Result<()> {
    let shelf = Shelf::of(&state.folder()?);
    let mut last = Job {
        version: version.clone(),
        phase: "reading".to_owned(),
        done: 0,
        total: 0,
        state: JobState::Running,
    };
    told.job(&last)?;
    let mut at = Instant::now();
    let written = polder_update::write(&shelf, version, keys, here, &mut |job| {
        last = job.clone();
        if at.elapsed() > TELL {
            at = Instant::now();
            if let Err(error) = told.job(job) {
                log::warn!("{error:#}");
            }
        }
    });
    last.state = match &written {
        Ok(()) => JobState::Done,
        Err(error) => JobState::Failed(error.to_string()),
    };
    told.job(&last)?;
    // Also after a failure: what the slot held may be gone.
    told.slots(&polder_update::look(here, keys)?)?;
    Ok(written?)
}

impl Told {
    fn slots(&self, slots: &polder_update::Slots) -> anyhow::Result<()> {
        say(format!("{} runs", slots.running));
        for entry in &slots.entries {
            say(entry.file());
        }
        self.put("slots.json", &serde_json::to_vec_pretty(slots)?)
    }

    fn job(&self, job: &Job) -> anyhow::Result<()> {
        self.put("job.json", &serde_json::to_vec(job)?)
    }

    /// Whole or not at all for those who read it, and for everybody to read: there is no secret in it.
    fn put(&self, name: &str, text: &[u8]) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.told.join(name);
        let beside = path.with_extension("new");
        fs::create_dir_all(&self.told)
            .and_then(|()| fs::write(&beside, text))
            .and_then(|()| fs::set_permissions(&beside, fs::Permissions::from_mode(0o644)))
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("could not write {}", path.display()))
    }
}
