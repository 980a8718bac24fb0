//! Slots that another server than our own engine serves: what people are told of them, and bringing in a container's image.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use polder_control::Progress;
use polder_recipes::Digest;
use polder_site::{Container, EngineKind, EngineName, EngineSlot, ImageDigest};
use polder_upstream::container::{ContainerError, Podman};
use polder_upstream::{Holder, Secrets};
use polder_weights::{CancelFlag, FetchedImage, Options, Store, WeightsError};

use crate::shelf::ImportEnd;
use crate::weights::{nothing_yet, shown};

/// What it is to serve a slot so, after "Serve MODEL as NAME"; nothing for our own engine.
pub(crate) fn title(slot: &EngineSlot) -> String {
    match (&slot.container, &slot.served) {
        (Some(container), _) => {
            format!(", from the container image {} at {}", container.image, container.digest)
        }
        (None, Some(served)) => format!(", by the server at {}", served.url),
        (None, None) => String::new(),
    }
}

/// Does the box itself need the model's files for it?
pub(crate) fn needs_weights(slot: &EngineSlot) -> bool {
    slot.kind != EngineKind::Url
}

/// The step that brings an image in.
pub(crate) fn image_step(container: &Container, login: bool) -> String {
    let registry = container.image.registry();
    let how = match login {
        true => format!("with the user and password kept for {registry}"),
        false => format!("without a password: none is kept for {registry}"),
    };
    format!(
        "Fetch the container image {} unless it is here ({how}), and see that it is {}",
        container.image, container.digest
    )
}

/// The registries that the box has a user and a password for. Where that cannot be read it has none: fetching says why.
pub(crate) fn logins(state: &Path) -> BTreeSet<String> {
    Secrets::of(state).registries().unwrap_or_default()
}

/// Whether the image of this digest is on the box already.
pub(crate) async fn has_image(state: &Path, container: &Container) -> Result<bool, String> {
    let found = Podman::of(state).find(&container.digest).await;
    found.map(|found| found.is_some()).map_err(|error| error.to_string())
}

/// Fetches the image of this digest from the registry in its name, as an import: it blocks, goes on where it was cut, and is told how far it is.
pub(crate) fn fetch_image(
    state: &Path,
    container: &Container,
    progress: &(dyn Fn(Progress) + Sync),
    stop: &CancelFlag,
) -> Result<FetchedImage, ImportEnd> {
    let failed = |why: String| {
        let missing = ContainerError::NoImage(container.digest.clone());
        ImportEnd::Failed(format!("{missing}. Fetching it did not work: {why}"))
    };
    let digest = container.digest.as_str().trim_start_matches("sha256:");
    let digest: Digest =
        digest.parse().map_err(|e: polder_recipes::DigestError| failed(e.to_string()))?;
    let store = store(state, container).map_err(failed)?;
    let last = Mutex::new(nothing_yet());
    let mut observer = |event| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = shown(event, &last);
        progress(last.clone());
    };
    match store.fetch_image(container.image.as_str(), &digest, &mut observer, stop) {
        Ok(fetched) => Ok(fetched),
        Err(WeightsError::Cancelled) => Err(ImportEnd::Stopped),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Gives what was fetched to podman, and forgets it: podman has it then.
pub(crate) async fn take_in(
    state: &Path,
    container: &Container,
    fetched: FetchedImage,
) -> Result<(), String> {
    let own: ImageDigest = format!("sha256:{}", fetched.manifest)
        .parse()
        .map_err(|error: polder_site::ForeignFault| error.to_string())?;
    let podman = Podman::of(state);
    let taken = podman.take_in(&fetched.folder, &own, fetched.list.as_deref()).await;
    taken.map_err(|error| error.to_string())?;
    let (state, container) = (state.to_owned(), container.clone());
    let forgotten = tokio::task::spawn_blocking(move || {
        let store = store(&state, &container)?;
        store.forget_image(&fetched.manifest).map_err(|error| error.to_string())
    });
    if let Ok(Err(why)) = forgotten.await {
        log::warn!("what was fetched of a container image takes room still: {why}");
    }
    Ok(())
}

/// What is fetched of images until podman has them.
fn store(state: &Path, container: &Container) -> Result<Store, String> {
    let folder = state.join("containers/fetched");
    let mut options = Options::from_env();
    if let Some(authority) = &container.authority {
        let file = folder.join("authority.pem");
        let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, authority));
        kept.map_err(|error| format!("the registry's authority could not be kept: {error}"))?;
        options.ca_file = Some(file);
    } else if is_near(container) {
        // Whom this machine trusts is for registries out there; one on the machine itself that has no authority is asked in the clear.
        options.ca_file = None;
    }
    let host = container.image.registry();
    let kept = Secrets::of(state).get(Holder::Registry(host)).map_err(|e| e.to_string())?;
    options.login = kept.map(|login| login.expose().to_owned());
    Store::open_with(folder, options).map_err(|error| error.to_string())
}

/// A registry on this machine costs no uplink anything.
pub(crate) fn is_near(container: &Container) -> bool {
    let host = container.image.as_str().split(['/', ':']).next().unwrap_or_default();
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Why the parts of this machine cannot serve a slot so, if they cannot. Where they are units of systemd, none of them is root, which alone could
/// enter a container's network, and none may start a program of somebody else's.
pub(crate) fn refusal(name: &EngineName, slot: &EngineSlot, units: bool) -> Option<String> {
    (units && slot.kind == EngineKind::Container).then(|| {
        format!(
            "on a machine whose parts are units of systemd, such as one with the box's own image, no container serves a slot in this version: no part of the box may start one there, and to reach it takes rights that none of them has; let {name} be served by Polder's own engine, or run the server on another machine and name it with --url"
        )
    })
}
