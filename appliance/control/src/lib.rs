//! What the parts say to each other: typed requests over Unix sockets in `STATE/run/`.
//!
//! - `control.sock`, served by the supervisor: [`Request`] → [`Reply`]. The gateway, the wizard
//!   and the command line use it to see and change the box.
//! - `health.sock`, served by the part that looks after the box's health: [`HealthRequest`] → [`HealthReply`].
//! - `gateway.sock`, served by the gateway: [`DoorRequest`] → [`DoorReply`]. The console uses it
//!   for the few things that only the owner of the machine may do (open a claim, mint the key of
//!   `polder up --yes`), the supervisor to see whether the door is as the site says.
//! - `spare.sock`, served by the part that looks after the spare, on either side: [`SpareRequest`] → [`SpareReply`].
//! - `wan.sock`, served by the part that looks after the uplinks: [`WanRequest`] → [`WanReply`].
//!
//! All carry one JSON document per line, one reply per request, except [`Request::Watch`], after
//! which the connection carries [`Event`]s until either side closes it. The sockets are 0600:
//! whoever can open them owns the state folder anyway.

mod backup;
mod certificate;
mod disk;
mod ending;
mod health;
mod messages;
mod plan;
mod spare;
mod supply;
mod takeover;
mod wan;
mod wire;

pub use backup::{BackupStatus, BackupWish, KitWords, LastBackup, PluggedDisk};
pub use certificate::{FailedTry, HeldCertificate, PublicStatus, SecretName, SecretText};
pub use disk::{Disk, Lock, RecoveryKey};
pub use ending::{END, ENDED, EndRecord, EndedBox};
pub use health::{
    AlertSecret, BackupSeen, BatterySeen, Channel, ChannelState, Check, Fix, HealthReply,
    HealthReport, HealthRequest, Issue, IssueId, Past, Severity, Standing, Told, Unseen,
};
pub use messages::{
    Actor, AuditEntry, AuditHead, BoxStatus, Claim, DoorReply, DoorRequest, Doorway, EngineStatus,
    Event, Gpu, ImageStatus, ImportSource, Machine, OfferStatus, OpenShell, OtherPart, OutsideLine,
    OutsideSeen, PartName, PartState, PartStatus, Port, Power, Reply, Request, StewardContact,
    UpdateStatus, UpdateWish,
};
pub use plan::{CONFIRM, Plan, Progress, Run, RunId, RunState, Step, StepState, Unit};
pub use spare::{SparePeer, SpareReply, SpareRequest, SpareStatus};
pub use supply::{PowerPhase, PowerReply, PowerRequest, Supply};
pub use takeover::{Closed, Stand, TakeoverStatus, TakeoverWish};
pub use wan::{
    Family, PortState, UplinkState, UplinkStatus, WanReply, WanRequest, WanStatus, wan_asked,
    wan_status,
};
pub use wire::{Client, ControlError, Handler, Outlet, serve};

use std::path::{Path, PathBuf};

/// Where the sockets of one state folder are.
#[derive(Debug, Clone)]
pub struct Sockets {
    folder: PathBuf,
}

impl Sockets {
    /// The sockets of this state folder.
    pub fn of(state: &Path) -> Self {
        Self { folder: state.join("run") }
    }
    /// `run/` itself: 0700.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The supervisor's socket.
    pub fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }
    /// The gateway's private socket.
    pub fn gateway(&self) -> PathBuf {
        self.folder.join("gateway.sock")
    }
    /// The private socket of the part that watches the UPS.
    pub fn power(&self) -> PathBuf {
        self.folder.join("power.sock")
    }
    /// The socket of whoever looks after the uplinks.
    pub fn wan(&self) -> PathBuf {
        self.folder.join("wan.sock")
    }
    /// The socket of the part that looks after the spare.
    pub fn spare(&self) -> PathBuf {
        self.folder.join("spare.sock")
    }
    /// The socket of the part that looks after the box's health.
    pub fn health(&self) -> PathBuf {
        self.folder.join("health.sock")
    }
    /// No socket: the certificate that members trust, which the gateway leaves for parts that see nothing of the box's keys.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }
    /// An engine's HTTP socket, in a folder that the engine makes: where parts are locked up, an
    /// engine sees its own folder and no other socket.
    pub fn engine(&self, name: &polder_site::EngineName) -> PathBuf {
        self.folder.join(format!("engine-{name}")).join("sock")
    }
}
