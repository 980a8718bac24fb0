//! Slots that another server than our own engine serves: what people are told of them, and bringing in a container's image.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use polder_control::Progress;
use polder_recipes::Digest;
use polder_site::{Container, EngineKind, EngineSlot, ImageDigest, Site};
use polder_upstream::container::ContainerError;
use polder_upstream::images::Images;
use polder_upstream::{Holder, Secrets};
use polder_weights::{CancelFlag, Options, Store, WeightsError};

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
pub(crate) fn has_image(state: &Path, container: &Container) -> bool {
    Images::of(state).find(&container.digest).is_some()
}

/// Fetches the image of this digest from the registry in its name, as an import: it blocks, goes on where it was cut, and is told how far it is.
pub(crate) fn fetch_image(
    state: &Path,
    container: &Container,
    progress: &(dyn Fn(Progress) + Sync),
    stop: &CancelFlag,
) -> Result<(), ImportEnd> {
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
        // It stays as it was fetched: the slot unpacks its own of it, and can do so again.
        Ok(fetched) => {
            let kept = fetched.list.map_or(Ok(()), |list| Images::of(state).keep_list(&list));
            kept.map_err(|error| failed(error.to_string()))
        }
        Err(WeightsError::Cancelled) => Err(ImportEnd::Stopped),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Forgets images that no slot of the site names any more, and did before.
pub(crate) fn forget_images(state: &Path, before: &Site, now: &Site) {
    let named = |site: &Site| -> Vec<Container> {
        let containers = site.engines.values().filter_map(|slot| slot.container.as_deref());
        containers.cloned().collect()
    };
    let images = Images::of(state);
    let kept: Vec<ImageDigest> = named(now).into_iter().map(|one| one.digest).collect();
    for container in named(before).into_iter().filter(|one| !kept.contains(&one.digest)) {
        let Some(image) = images.find(&container.digest) else { continue };
        // Two names may lead to one image: that of a list, and its own.
        if kept.iter().any(|digest| images.find(digest).as_ref() == Some(&image)) {
            continue;
        }
        let forgotten = || -> Result<(), String> {
            let hex = image.manifest.as_str().trim_start_matches("sha256:");
            let manifest: Digest =
                hex.parse().map_err(|error: polder_recipes::DigestError| error.to_string())?;
            let store = store(state, &container)?;
            store.forget_image(&manifest).map_err(|error| error.to_string())
        };
        match forgotten() {
            Ok(()) => {
                log::info!("the container image {} is not on this box any more", container.digest)
            }
            Err(why) => log::warn!("a container image that nobody uses takes room still: {why}"),
        }
    }
}

/// Where images are fetched into.
fn store(state: &Path, container: &Container) -> Result<Store, String> {
    let folder = Images::of(state).fetched();
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
