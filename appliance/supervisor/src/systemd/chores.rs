use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::sleep;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::image::{Chore, Helper};
use crate::systemd::bus::{Bus, MANAGER, Place, say};

/// How long the bus may be away before a chore counts as not done.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a unit that works.
const LOOK: Duration = Duration::from_millis(300);

/// Work of the image, as units that run once: `polder-slots.service` looks, `polder-update@VERSION.service`
/// writes, `polder-rollback.service` goes back, `polder-clock@SECONDS.service` sets the clock.
#[derive(Clone)]
pub struct Chores {
    bus: Bus,
}

impl Chores {
    /// Units of the systemd that answers on this bus.
    pub fn on(bus: Bus) -> Self {
        Self { bus }
    }

    async fn run(&self, unit: String) -> Result<(), String> {
        let fail = |error: zbus::Error| format!("could not run {unit}: {}", say(&error));
        let started: zbus::Result<OwnedObjectPath> =
            self.bus.ask(&MANAGER, "StartUnit", &(unit.as_str(), "replace"), PATIENCE).await;
        started.map_err(fail)?;
        let path: OwnedObjectPath =
            self.bus.ask(&MANAGER, "LoadUnit", &unit.as_str(), PATIENCE).await.map_err(fail)?;
        let property = |interface: &'static str, name: &'static str| {
            let place = Place {
                service: MANAGER.service,
                path: path.as_str(),
                interface: "org.freedesktop.DBus.Properties",
            };
            async move {
                let value: zbus::Result<OwnedVariant> =
                    self.bus.ask(&place, "Get", &(interface, name), PATIENCE).await;
                value
            }
        };
        loop {
            let (job, _): (u32, OwnedObjectPath) = property("org.freedesktop.systemd1.Unit", "Job")
                .await
                .and_then(|value| value.try_into())
                .map_err(fail)?;
            let state: String = property("org.freedesktop.systemd1.Unit", "ActiveState")
                .await
                .and_then(|value| value.try_into())
                .map_err(fail)?;
            let over = matches!(state.as_str(), "active" | "inactive" | "failed");
            if job == 0 && over {
                break;
            }
            sleep(LOOK).await;
        }
        let result: String = property("org.freedesktop.systemd1.Service", "Result")
            .await
            .and_then(|value| value.try_into())
            .map_err(fail)?;
        match result.as_str() {
            "success" => Ok(()),
            other => Err(format!("{unit} failed ({other}); `journalctl -u {unit}` says why")),
        }
    }
}

impl Helper for Chores {
    fn does(&self, chore: Chore) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        // Versions are digits and dots, which may stand in a unit's name as they are.
        let unit = match chore {
            Chore::Look => "polder-slots.service".to_owned(),
            Chore::Write(version) => format!("polder-update@{version}.service"),
            Chore::OpenShell => "polder-shell.service".to_owned(),
            Chore::SetClock(to) => format!("polder-clock@{to}.service"),
            Chore::GoBack => "polder-rollback.service".to_owned(),
        };
        Box::pin(self.run(unit))
    }
}
