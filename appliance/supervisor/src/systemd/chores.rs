use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use polder_power::nut::Driver;
use tokio::time::sleep;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::image::{Chore, Helper};
use crate::systemd::bus::{Bus, MANAGER, Place, say};

/// How long the bus may be away before a chore counts as not done.
const PATIENCE: Duration = Duration::from_secs(30);
/// NUT's server.
const UPSD: &str = "polder-upsd.service";
/// Between two looks at a unit that works.
const LOOK: Duration = Duration::from_millis(300);

/// Work of the image, as units that run once: `polder-slots.service` looks, `polder-update@VERSION.service`
/// writes, `polder-rollback.service` goes back, `polder-clock@SECONDS.service` sets the clock, `polder-limit@PERCENT.service` limits
/// graphics cards, `polder-ports.service` gives ports their addresses,
/// `polder-disk@ID.service` lends a disk while it is active; and NUT: `polder-ups@DRIVER.service` beside `polder-upsd.service`, which go on.
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
        self.tell(&unit, "StartUnit").await?;
        let result = self.until_over(&unit).await?;
        match result.as_str() {
            "success" => Ok(()),
            other => Err(format!("{unit} failed ({other}); `journalctl -u {unit}` says why")),
        }
    }

    /// NUT's two programs, of which systemd takes care: a UPS that is not plugged in yet is waited for.
    async fn hear_ups(&self, driver: Option<Driver>) -> Result<(), String> {
        match driver {
            Some(driver) => {
                self.tell(&format!("polder-ups@{}.service", driver.name()), "StartUnit").await
            }
            None => {
                // Its drivers end with it.
                self.tell(UPSD, "StopUnit").await?;
                self.until_over(UPSD).await.map(drop)
            }
        }
    }

    /// Ends a unit that undoes then what it did, and waits for that.
    async fn end(&self, unit: String) -> Result<(), String> {
        self.tell(&unit, "StopUnit").await?;
        match self.until_over(&unit).await?.as_str() {
            "success" => Ok(()),
            other => Err(format!("{unit} failed ({other}); `journalctl -u {unit}` says why")),
        }
    }

    async fn tell(&self, unit: &str, what: &str) -> Result<(), String> {
        let told: zbus::Result<OwnedObjectPath> =
            self.bus.ask(&MANAGER, what, &(unit, "replace"), PATIENCE).await;
        told.map(drop).map_err(|error| format!("could not run {unit}: {}", say(&error)))
    }

    /// Waits until nothing more happens to it, and returns how it went.
    async fn until_over(&self, unit: &str) -> Result<String, String> {
        let fail = |error: zbus::Error| format!("could not run {unit}: {}", say(&error));
        let path: OwnedObjectPath =
            self.bus.ask(&MANAGER, "LoadUnit", &unit, PATIENCE).await.map_err(fail)?;
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
        property("org.freedesktop.systemd1.Service", "Result")
            .await
            .and_then(|value| value.try_into())
            .map_err(fail)
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
            Chore::GiveAddresses => "polder-ports.service".to_owned(),
            Chore::LimitCards(percent) => format!("polder-limit@{percent}.service"),
            Chore::LendDisk(id) => format!("polder-disk@{id}.service"),
            Chore::TakeDisk(id) => {
                return Box::pin(self.end(format!("polder-disk@{id}.service")));
            }
            Chore::HearUps(driver) => return Box::pin(self.hear_ups(driver)),
        };
        Box::pin(self.run(unit))
    }
}
