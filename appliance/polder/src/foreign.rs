//! Slots that another server than our own engine serves.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use polder_control::SecretText;
use polder_site::{
    Container, EngineKind, EngineName, EngineSlot, ImageDigest, Served, UpstreamUrl,
};
use polder_supervisor::Part;
use polder_upstream::container::{ContainerError, Podman, is_alone};
use polder_upstream::images::{Images, digest_of_archive};
use polder_upstream::{Holder, Secrets, ServerRecipe, StandIn};

use crate::console::say;
use crate::engine::socket;
use crate::part;
use crate::state::State;

/// A key is one line.
const LONGEST_KEY: u64 = 8192;

/// Who serves a model, where that is not Polder's own engine.
#[derive(Debug, clap::Args)]
pub(crate) struct By {
    /// Another server that speaks OpenAI's API, which somebody else starts: where its API begins.
    #[arg(long, conflicts_with = "image")]
    url: Option<UpstreamUrl>,
    /// With --url: its certificate authority (PEM), where the world does not know it. With --image: that of the registry.
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// With --url: read its API key, one line, from standard input.
    #[arg(long, requires = "url")]
    key: bool,
    /// A container that the box starts: its image as NAME@sha256:DIGEST. What it is told comes after `--`; the model's files are in /weights.
    #[arg(long, value_name = "NAME@DIGEST")]
    image: Option<String>,
    /// A container that the box starts, by a recipe: vllm, sglang, nim. What it is told beside comes after `--`.
    #[arg(long, value_name = "RECIPE", conflicts_with_all = ["url", "image", "port", "authority", "called", "health"])]
    server: Option<String>,
    /// With --server: this image instead of the recipe's own.
    #[arg(long, value_name = "DIGEST", requires = "server")]
    digest: Option<ImageDigest>,
    /// With --image: where the server listens inside.
    #[arg(long, default_value_t = 8000, requires = "image")]
    port: u16,
    /// With --image: where the server says that it has its model. [default: /health]
    #[arg(long, value_name = "PATH", requires = "image")]
    health: Option<String>,
    /// With --image or --server: a variable in its environment. No secret: they have no place there.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// What the server calls the model. [default: as the box does]
    #[arg(long, value_name = "NAME")]
    called: Option<String>,
    /// With --image or --server: what the server is told.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl By {
    /// On another machine, or at least not the box's own affair.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.url.is_some()
    }

    /// Keeps the key that comes on standard input.
    pub(crate) fn keep_key(&self, state: &Path, name: &EngineName) -> anyhow::Result<()> {
        if !self.key {
            return Ok(());
        }
        let mut text = String::new();
        let input = std::io::stdin().lock();
        input.take(LONGEST_KEY).read_to_string(&mut text).context("the key could not be read")?;
        let key = SecretText::new(&text);
        if key.expose().is_empty() {
            bail!(
                "no key came on standard input; write it there, as in `polder site serve … --key < FILE`"
            );
        }
        Ok(Secrets::of(state).keep(Holder::Engine(name), &key)?)
    }

    /// The slot, served so.
    pub(crate) fn serving(&self, slot: EngineSlot) -> anyhow::Result<EngineSlot> {
        if let Some(server) = &self.server {
            let recipe = ServerRecipe::find(server)?;
            let model = slot.recipe.as_str();
            let mut container = recipe.container(model, self.digest.clone(), &self.arguments)?;
            container.environment.extend(self.environment()?);
            if let Some(login) = &recipe.login {
                say(login);
            }
            say(format!(
                "{} as a container: nobody has run that under Polder yet, with a graphics card least of all; if it does not start, `polder status` says why, and Polder's own engine is one command away.",
                recipe.title
            ));
            let container = Some(Box::new(container));
            return Ok(EngineSlot { kind: EngineKind::Container, container, served: None, ..slot });
        }
        if self.image.is_none() && !(self.arguments.is_empty() && self.env.is_empty()) {
            bail!(
                "--env and what comes after `--` are told to a container; name one with --image or --server"
            );
        }
        let called = self.called.clone();
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file)
                .with_context(|| format!("{} could not be read", file.display()))
        };
        let authority = self.authority.as_ref().map(read).transpose()?;
        if let Some(url) = self.url.clone() {
            let served = Some(Box::new(Served { url, authority, called }));
            return Ok(EngineSlot { kind: EngineKind::Url, served, container: None, ..slot });
        }
        let Some(image) = &self.image else {
            if authority.is_some() {
                bail!("an authority belongs to --url or to --image; name one of the two");
            }
            let kind = EngineKind::Polder;
            return Ok(EngineSlot { kind, served: None, container: None, ..slot });
        };
        let (image, digest) = image.split_once('@').context(
            "an image is named with its digest, as in docker.io/vllm/vllm-openai@sha256:…, because a name alone may be another image tomorrow; the registry's page of the version shows it, or `podman images --digests` where it was fetched before",
        )?;
        let container = Some(Box::new(Container {
            image: image.parse()?,
            digest: digest.parse()?,
            authority,
            port: self.port,
            arguments: self.arguments.clone(),
            called,
            health: self.health.clone(),
            environment: self.environment()?,
        }));
        Ok(EngineSlot { kind: EngineKind::Container, container, served: None, ..slot })
    }

    fn environment(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let variable = |text: &String| {
            let (name, value) =
                text.split_once('=').context("--env wants a variable as NAME=VALUE")?;
            Ok((name.to_owned(), value.to_owned()))
        };
        self.env.iter().map(variable).collect()
    }
}

/// What is done with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Image {
    /// Bring in an image from a file that `podman save --format oci-archive` made; prints its digest.
    #[command(
        after_help = "Examples:\n  polder engine image import vllm.tar\n  polder engine image import /run/media/STICK/vllm.tar --is sha256:DIGEST"
    )]
    Import {
        /// The file.
        file: PathBuf,
        /// Take it only if it is this image.
        #[arg(long, value_name = "DIGEST")]
        is: Option<ImageDigest>,
        #[command(flatten)]
        state: State,
    },
    /// Keep user and password for a registry that lets not everybody in; the password comes on standard input.
    #[command(
        after_help = "Examples:\n  polder engine image login registry.example.org --user house < FILE\n  polder engine image login registry.lan:5000 --forget"
    )]
    Login {
        /// The registry, as images name it: what is before the first slash.
        registry: String,
        /// Who.
        #[arg(long, required_unless_present = "forget")]
        user: Option<String>,
        /// Keep nothing for it any more.
        #[arg(long, conflicts_with = "user")]
        forget: bool,
        #[command(flatten)]
        state: State,
    },
}

impl Image {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Import { file, is, state } => {
                let folder = state.folder()?;
                let digest = match is {
                    Some(digest) => digest,
                    None => digest_of_archive(&file)?,
                };
                Images::of(&folder).import(&file, &digest)?;
                say(format!("The image {digest} is on the box."));
                Ok(())
            }
            Self::Login { registry, user, state, .. } => {
                let folder = state.folder()?;
                let named: polder_site::ImageName =
                    format!("{registry}/image").parse().with_context(|| {
                        format!("{registry} is no registry, as in registry.lan:5000")
                    })?;
                let kept = match user {
                    None => SecretText::new(""),
                    Some(user) => {
                        let mut text = String::new();
                        let input = std::io::stdin().lock().take(LONGEST_KEY);
                        { input }
                            .read_to_string(&mut text)
                            .context("the password could not be read")?;
                        let line = text.strip_suffix('\n').unwrap_or(&text);
                        polder_upstream::login(&user, &SecretText::new(line))?
                    }
                };
                let host = named.as_str().split('/').next().unwrap_or_default();
                Secrets::of(&folder).keep(Holder::Registry(host), &kept)?;
                say(match kept.expose().is_empty() {
                    true => format!("The box keeps nothing for {host} any more."),
                    false => format!(
                        "Images of {host} are fetched with this user and password from now on."
                    ),
                });
                Ok(())
            }
        }
    }
}

/// Passes what a slot is asked to a server that somebody else runs.
pub(crate) fn serve(
    name: EngineName,
    state: &Path,
    slot: EngineSlot,
    served: Served,
) -> anyhow::Result<()> {
    let key = Secrets::of(state).get(Holder::Engine(&name))?;
    let stand_in = StandIn { socket: socket(state, &name)?, called: slot.called().to_owned() };
    let runtime = part::runtime()?;
    part::run(runtime, Part::Engine(name), state, |told| async move {
        stand_in.serve(&served, key.as_ref(), told).await
    })
}

/// Runs a container, and passes to it what a slot is asked. Where that is not so yet, this process goes on in a network of its own first: it is what the container
/// has.
pub(crate) fn contain(
    name: EngineName,
    state: &Path,
    slot: EngineSlot,
    container: Container,
    model: PathBuf,
) -> anyhow::Result<()> {
    if !is_alone() {
        return go_alone();
    }
    let stand_in = StandIn { socket: socket(state, &name)?, called: slot.called().to_owned() };
    let image = Images::of(state).find(&container.digest);
    let image = image.ok_or_else(|| ContainerError::NoImage(container.digest.clone()))?;
    let podman = Podman::of(state, &name);
    let (runtime, part) = (part::runtime()?, Part::Engine(name));
    part::run(runtime, part, state, |told| async move {
        stand_in.contain(&podman, &container, &image, &model, told).await
    })
}

/// Set for a process that was given a network of its own.
const ALONE: &str = "POLDER_ALONE";

/// The same program with the same arguments, and the same number, where no way leads out of the network. On the image the unit has made it so.
fn go_alone() -> anyhow::Result<()> {
    if std::env::var_os(ALONE).is_some() {
        bail!("{}", ContainerError::Network);
    }
    let program = std::env::current_exe().context("this program could not be found")?;
    let error = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(ALONE, "1")
        .exec();
    Err(error).context(
        "a container needs `unshare` and `ip`, of Debian's packages util-linux and iproute2",
    )
}
