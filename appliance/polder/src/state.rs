//! `--state`, and asking the box that runs there.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use polder_control::{Client, DoorReply, DoorRequest, Reply, Request, Sockets};
use rustix::fs::{Access, access};

/// A box answers within this, or something is wrong with it.
const LIMIT: Duration = Duration::from_secs(20);

/// Which box.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct State {
    /// The folder that the box keeps everything in.
    #[arg(long, value_name = "DIR", env = "POLDER_STATE", default_value = "./.polder")]
    state: PathBuf,
}

impl State {
    /// The folder, from the root: parts must find it whatever folder they are started in.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        std::path::absolute(&self.state)
            .with_context(|| format!("--state {} is not a folder's name", self.state.display()))
    }

    /// The folder, made if need be, for its owner only: keys will be kept there.
    pub(crate) fn make(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder()?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(
            || {
                format!(
                    "{} cannot be the box's folder; name another one with --state",
                    folder.display()
                )
            },
        )?;
        // Said here once, instead of by whichever file in it comes first.
        if access(&folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
            bail!(
                "{} belongs to somebody else; start polder as its owner, or name another folder \
                 with --state",
                folder.display()
            );
        }
        Ok(folder)
    }

    /// Asks the supervisor once.
    pub(crate) fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        let path = Sockets::of(&self.folder()?).control();
        let reply = runtime()?.block_on(async {
            let mut client: Client<Request, Reply> = Client::connect(&path).await?;
            client.ask_within(LIMIT, request).await
        })?;
        match reply {
            Reply::Refused(why) => bail!(why),
            reply => Ok(reply),
        }
    }

    /// Asks the gateway once.
    pub(crate) fn ask_door(&self, request: &DoorRequest) -> anyhow::Result<DoorReply> {
        let path = Sockets::of(&self.folder()?).gateway();
        runtime()?.block_on(ask_door(&path, request))
    }
}

/// Makes a folder for its owner only, if it is not there.
pub(crate) fn make(folder: &std::path::Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not make the folder {}", folder.display()))
}

/// Asks the gateway at this socket once.
pub(crate) async fn ask_door(
    path: &std::path::Path,
    request: &DoorRequest,
) -> anyhow::Result<DoorReply> {
    let mut client: Client<DoorRequest, DoorReply> = Client::connect(path).await?;
    match client.ask_within(LIMIT, request).await? {
        DoorReply::Refused(why) => bail!(why),
        reply => Ok(reply),
    }
}

/// The two sides are of different versions.
pub(crate) fn unexpected() -> anyhow::Error {
    anyhow::anyhow!("the box answered something else than was asked; is it of another version?")
}

pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not set up asynchronous input and output")
}
