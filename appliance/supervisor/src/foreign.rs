//! Slots that another server than our own engine serves: what people are told of them, and bringing in a container's image.

use std::path::Path;

use polder_site::{Container, EngineKind, EngineName, EngineSlot};
use polder_upstream::container::{ContainerError, Podman};

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

/// The step of [`bring_image`].
pub(crate) fn image_step(container: &Container) -> String {
    format!(
        "Bring in the container image {} unless it is here, and see that it is {}",
        container.image, container.digest
    )
}

/// Makes sure that the image of this digest, and no other, is on the box.
pub(crate) async fn bring_image(state: &Path, container: &Container) -> Result<(), String> {
    let podman = Podman::of(state);
    let missing = match podman.find(&container.digest).await {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => ContainerError::NoImage(container.digest.clone()),
        Err(error) => return Err(error.to_string()),
    };
    log::info!("{missing}; fetching it");
    podman
        .pull(container)
        .await
        .map_err(|error| format!("{missing}. (Fetching it did not work either: {error})"))
}

/// Why the parts of this machine cannot serve a slot so, if they cannot. On the image an engine's unit has no network and may
/// start nothing.
pub(crate) fn refusal(name: &EngineName, slot: &EngineSlot, units: bool) -> Option<String> {
    (units && slot.kind != EngineKind::Polder).then(|| {
        format!(
            "on a machine whose parts are units of systemd, Polder's own engine alone serves a slot in this version, because an engine's unit has no network and may start no container; let {name} be served by that, or name the other server on the page Elsewhere"
        )
    })
}
