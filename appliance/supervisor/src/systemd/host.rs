use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::systemd::bus::{Bus, Place, say};

const LOGIND: Place<'static> = Place {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
/// How long the bus may be away before the machine counts as unable to do what was asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// While a machine starts, its bus and logind may take longer.
const AT_THE_START: Duration = Duration::from_secs(60);
/// Whether the machine is going down is asked this often even if nobody says so. Well under the
/// time that logind gives those who delay it.
const LOOK: Duration = Duration::from_secs(5);

/// The machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("could not {act} this machine: {why}")]
pub struct HostError {
    act: &'static str,
    why: String,
}

/// The machine that the box runs on, through logind.
#[derive(Clone)]
pub struct Host {
    bus: Bus,
}

/// While this exists, the machine does not go down before the time is up that logind gives.
#[derive(Debug)]
#[must_use]
pub struct Hold {
    _lock: OwnedFd,
}

impl Host {
    /// The machine whose logind answers on this bus.
    pub fn on(bus: Bus) -> Self {
        Self { bus }
    }

    /// Turns it off, in order: everybody who delays it is waited for.
    pub async fn power_off(&self) -> Result<(), HostError> {
        self.go_down("PowerOff", "turn off").await
    }

    /// Starts it again, in order.
    pub async fn restart(&self) -> Result<(), HostError> {
        self.go_down("Reboot", "restart").await
    }

    async fn go_down(&self, method: &str, act: &'static str) -> Result<(), HostError> {
        // `false`: nobody is there to be asked for a password.
        let told = self.bus.call(&LOGIND, method, &false, PATIENCE).await;
        told.map(drop).map_err(|error| HostError { act, why: say(&error) })
    }

    /// Asks for time to end in order before the machine goes down, and says what for.
    pub async fn hold(&self, why: &str) -> Result<Hold, HostError> {
        // Not "sleep": a machine that sleeps takes its parts along and brings them back.
        let lock = ("shutdown", "Polder", why, "delay");
        let lock: zbus::OwnedFd = self
            .bus
            .ask(&LOGIND, "Inhibit", &lock, AT_THE_START)
            .await
            .map_err(|error| HostError { act: "delay the end of", why: say(&error) })?;
        Ok(Hold { _lock: lock.into() })
    }

    /// Comes back when the machine is about to go down.
    pub async fn goes_down(&self) {
        let mut bell = self.bus.bell();
        let place = Place { interface: "org.freedesktop.DBus.Properties", ..LOGIND };
        let asked = (LOGIND.interface, "PreparingForShutdown");
        loop {
            let answer: zbus::Result<zbus::OwnedVariant> =
                self.bus.ask(&place, "Get", &asked, PATIENCE).await;
            match answer.and_then(bool::try_from) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => log::debug!("logind does not say whether it ends: {error}"),
            }
            let _ = tokio::time::timeout(LOOK, bell.changed()).await;
        }
    }
}
