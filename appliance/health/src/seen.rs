//! What was seen of a box, as plain data: everything that checks look at.

use polder_control::{
    BackupSeen, BatterySeen, OutsideSeen, PartName, PartState, SpareStatus, UplinkStatus,
};
use polder_site::{EngineName, RecipeName};

/// A box at one moment. What could not be looked at is `None`, and is named in [`crate::look::Look::unseen`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Unix seconds.
    pub now: i64,
    /// Graphics cards.
    pub cards: Option<Vec<Card>>,
    /// What the kernel said of graphics cards and of memory since the machine started.
    pub kernel: Option<Vec<KernelEvent>>,
    /// Disks that tell how they are.
    pub drives: Option<Vec<Drive>>,
    /// Room where the box's state is.
    pub space: Option<Space>,
    /// Memory of the machine.
    pub memory: Option<HostMemory>,
    /// The clock.
    pub clock: Clock,
    /// Certificates that the door shows, and the box's own authority's.
    pub certificates: Option<Vec<Certificate>>,
    /// The box's parts; `None` where the supervisor does not answer.
    pub parts: Option<Vec<PartSeen>>,
    /// Questions that wait, by engine.
    pub queues: Vec<Queue>,
    /// Versions of the image, where the box is one.
    pub update: Option<UpdateSeen>,
    /// Files of models that are not what was imported.
    pub damaged: Vec<DamagedFile>,
    /// The ways out of the box; empty where nobody looks after them.
    pub uplinks: Vec<UplinkStatus>,
    /// The lines by which members outside come in, where the door tells of them.
    pub outside: Option<OutsideSeen>,
    /// Since when a collective lives with the box, Unix seconds: it is claimed, more than a trial, and not another's spare.
    pub lived_in: Option<i64>,
    /// Since when there are backups of which none was ever restored for a trial, Unix seconds.
    pub unproved: Option<i64>,
    /// The UPS, where there is one.
    pub battery: Option<BatterySeen>,
    /// When the mains was heard to be away, Unix seconds, where nothing else was heard since.
    pub mains_away: Option<i64>,
    /// The backups, where somebody makes them.
    pub backup: Option<BackupSeen>,
    /// How many look after the box, where it is more than a trial and its door tells.
    pub stewards: Option<usize>,
    /// The other box, where one of the two is the other's spare.
    pub spare: Option<SpareStatus>,
    /// Ways to tell stewards that did not work for some time: which, since when, and why.
    pub mute: Vec<Mute>,
    /// A change of model that was announced.
    pub switch: Option<SwitchSeen>,
}

/// A name of a model leads to another one from some moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchSeen {
    /// What members' programs call it.
    pub alias: String,
    /// The model that comes.
    pub model: String,
    /// Unix seconds.
    pub at: i64,
}

/// A graphics card, as `nvidia-smi -q -x` tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Card {
    /// Counted from 0, in the order of the tool.
    pub index: u32,
    /// Its place on the bus, as in `0000:01:00`.
    pub bus: String,
    /// Its own name.
    pub name: String,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Degrees at which it begins to slow itself down.
    pub slows_at: Option<f64>,
    /// Degrees of its memory, and the most that is good for it.
    pub memory_temperature: Option<(f64, f64)>,
    /// It slows itself down because it is too hot.
    pub too_hot: bool,
    /// The power supply tells it to slow down.
    pub power_brake: bool,
    /// Errors in its memory since its driver was loaded that could not be put right.
    pub uncorrected: Option<u64>,
    /// The same that were put right.
    pub corrected: Option<u64>,
    /// A row of its memory waits for a restart of the card to be replaced.
    pub remap_pending: bool,
    /// A row could not be replaced.
    pub remap_failed: bool,
    /// What the driver says has to be done with the card, as in `Reset`; nothing where it says `None`.
    pub recovery: Option<String>,
    /// Bytes of its memory that programs use which are not ours, with the largest of them.
    pub others: u64,
    /// That program.
    pub largest_other: Option<String>,
}

/// Something that the kernel said.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelEvent {
    /// Unix seconds.
    pub at: i64,
    /// What.
    pub what: KernelWord,
}

/// What the kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelWord {
    /// The driver of a graphics card reports an error by its number.
    Xid {
        /// The card's place on the bus, as in `0000:01:00`.
        bus: String,
        /// The number.
        code: u32,
    },
    /// Memory ran out and a process was ended.
    OutOfMemory {
        /// Which.
        process: String,
    },
}

/// A disk, as `smartctl --json -a` tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Drive {
    /// As in `/dev/nvme0`.
    pub device: String,
    /// Its maker's name for it.
    pub model: String,
    /// It calls itself healthy.
    pub passed: Option<bool>,
    /// Places that could not be read.
    pub bad_places: u64,
    /// Places that were replaced by spare ones (a few are no harm on disks that turn).
    pub replaced: u64,
    /// Percent of its life that is used up, by its own count.
    pub worn: Option<u64>,
    /// Percent of spare room that is left, and at how little it warns.
    pub spare: Option<(u64, u64)>,
    /// It says that something is critical, in NVMe's bits.
    pub critical: u64,
    /// Degrees Celsius.
    pub temperature: Option<i64>,
    /// Its last test of itself failed.
    pub test_failed: bool,
}

/// Room on a disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Space {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// How much was free before, oldest first: Unix seconds and bytes.
    pub before: Vec<(i64, u64)>,
}

/// Memory of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that programs can still have.
    pub available: u64,
}

/// The machine's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clock {
    /// Somebody out there is asked for the time and answers; `None` where nobody can tell.
    pub synchronised: Option<bool>,
    /// Since when it is not, Unix seconds.
    pub unsynchronised_since: Option<i64>,
    /// Seconds that it jumped since the last look, other than time passing; nothing where it did not.
    pub jumped: Option<i64>,
    /// When that was, Unix seconds.
    pub jumped_at: Option<i64>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose, for people: `oak.local`, `the box's own authority`.
    pub on: String,
    /// It is the authority that members installed.
    pub authority: bool,
    /// Unix seconds.
    pub from: i64,
    /// Unix seconds.
    pub until: i64,
}

/// A part of the box.
#[derive(Debug, Clone, PartialEq)]
pub struct PartSeen {
    /// For people: `the door`, `fast`.
    pub on: String,
    /// Which engine, where it is one.
    pub engine: Option<EngineName>,
    /// Which other part, where it is one beside the door and the engines.
    pub other: Option<PartName>,
    /// How it is.
    pub state: PartState,
    /// How often it was started again within the last hour.
    pub restarts: u32,
}

/// An engine's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Which engine.
    pub engine: EngineName,
    /// Questions that wait now.
    pub waiting: u64,
    /// Since when there was no moment without one, Unix seconds.
    pub since: i64,
}

/// What is known of updates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpdateSeen {
    /// The newer version that was found.
    pub offer: Option<String>,
    /// The version that is being tried.
    pub trying: Option<String>,
    /// For how many seconds nobody could look for one where the site says, and why not.
    pub unlooked: Option<(i64, String)>,
}

/// A file of a model that is not what was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    /// Of which model.
    pub recipe: RecipeName,
    /// Its name.
    pub file: String,
    /// It is not there at all.
    pub gone: bool,
}

/// A way to tell stewards that does not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mute {
    /// Which, in words: `mail`.
    pub channel: String,
    /// Unix seconds.
    pub since: i64,
    /// Why.
    pub why: String,
}
