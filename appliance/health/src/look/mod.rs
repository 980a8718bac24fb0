//! Looks at the box: a thin shell around tools, files and sockets. What they say is read by functions of their own; what it
//! means is for the checks.

mod clock;
mod door;
pub(crate) mod kernel;
pub(crate) mod nvidia;
pub(crate) mod smart;
mod told;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use polder_control::{
    BoxStatus, Check, Client, DoorReply, DoorRequest, PartState, Reply, Request, Sockets,
    StewardContact, Unseen, wan_status,
};
use polder_site::{EngineName, SpareRole};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;

use crate::memory::Remembered;
use crate::seen::{
    DamagedFile, Drive, HostMemory, PartSeen, Queue, Seen, Space, SwitchSeen, UpdateSeen,
};

/// What a tool may take. A driver in trouble makes its tool hang.
const TOOL: Duration = Duration::from_secs(20);
/// What another part of the box may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// No tool says more.
const LONGEST: u64 = 8 << 20;
/// What root looked at is good for so long.
const FRESH: Duration = Duration::from_secs(3 * 3600);

/// What was seen, and what could not be.
#[derive(Debug, Default)]
pub struct Look {
    /// What was seen.
    pub seen: Seen,
    /// What could not be looked at, and why.
    pub unseen: Vec<Unseen>,
    /// The box, where its supervisor answers.
    pub status: Option<Box<BoxStatus>>,
}

/// Looks again and again, and remembers what it takes two looks to see.
pub struct Eyes {
    state: PathBuf,
    sockets: Sockets,
    clock: clock::Watch,
    looks: u64,
    /// Engines whose queue was not empty, since when.
    queues: BTreeMap<EngineName, i64>,
    /// How often parts were started again, by name: when, and the number then.
    restarts: BTreeMap<String, Vec<(i64, u32)>>,
    drives: Option<Vec<Drive>>,
    damaged: Vec<DamagedFile>,
    /// What was seen with slow tools, kept between looks.
    slow: Slow,
}

#[derive(Default)]
struct Slow {
    cards: Option<Result<Vec<crate::seen::Card>, String>>,
    certificates: Option<Result<Vec<crate::seen::Certificate>, String>>,
    drives: Option<String>,
    update: Option<UpdateSeen>,
    weights: Option<String>,
    stewards: Option<usize>,
}

/// The change of model that members were told of.
fn announced(status: &BoxStatus) -> Option<SwitchSeen> {
    let under_way = status.site.succession.as_ref()?;
    let slot = status.site.engines.get(&under_way.to).or(under_way.parked.as_ref())?;
    Some(SwitchSeen {
        alias: under_way.alias.to_string(),
        model: slot.recipe.to_string(),
        at: under_way.at?.as_second(),
    })
}

impl Eyes {
    /// For the box in this state folder.
    pub fn of(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
            sockets: Sockets::of(state),
            clock: clock::Watch::default(),
            looks: 0,
            queues: BTreeMap::new(),
            restarts: BTreeMap::new(),
            drives: None,
            damaged: Vec::new(),
            slow: Slow::default(),
        }
    }

    /// Looks at everything; at what takes long only now and then, unless it is asked for.
    pub async fn look(&mut self, remembered: &mut Remembered, everything: bool) -> Look {
        let mut look = Look::default();
        let reading = clock::Reading::now();
        let now = reading.wall;
        look.seen.now = now;
        remembered.looks(now);
        let every = |looks: u64, period: u64| everything || looks.is_multiple_of(period);
        let looks = self.looks;
        self.looks += 1;
        look.status = self.ask_status().await;
        look.seen.parts = look.status.as_deref().map(|status| self.parts(status, now));
        if let Some(status) = &look.status {
            look.seen.switch = announced(status);
            look.seen.queues = self.queues(status, now).await;
        }
        let synchronised = self.synchronised(&mut look).await;
        look.seen.clock = self.clock.look(reading, synchronised);
        look.seen.memory =
            std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(memory);
        self.kernel(&mut look, &reading).await;
        if every(looks, 5) {
            self.slow.cards = cards().await;
        }
        match self.slow.cards.clone() {
            Some(Ok(cards)) => look.seen.cards = Some(cards),
            Some(Err(why)) => {
                look.cannot(&[Check::GpuMemory, Check::GpuHeat, Check::GpuSlow], &why)
            }
            None => {}
        }
        if every(looks, 30) {
            let looked = Self::look_at_drives().await;
            self.slow.drives = looked.as_ref().err().cloned();
            self.drives = looked.ok();
        }
        if let Some(why) = &self.slow.drives {
            look.cannot(&[Check::DiskHealth], why);
        }
        look.seen.drives.clone_from(&self.drives);
        look.seen.space = self.space(remembered, now);
        if look.seen.space.is_none() {
            look.cannot(&[Check::DiskSpace], "the system does not tell how much room there is");
        }
        if every(looks, 10) {
            self.look_at_door(look.status.as_deref()).await;
        }
        match self.slow.certificates.clone() {
            Some(Ok(certificates)) => look.seen.certificates = Some(certificates),
            Some(Err(why)) => look.cannot(&[Check::Certificate], &why),
            None => look.cannot(&[Check::Certificate], "the supervisor does not answer"),
        }
        if every(looks, 10) {
            self.slow.update = self.update().await;
        }
        look.seen.update.clone_from(&self.slow.update);
        if every(looks, 10) {
            self.slow.stewards = self.stewards().await.map(|stewards| stewards.len());
        }
        let trial = look.status.as_deref().is_none_or(|status| status.site.is_trial());
        look.seen.stewards = self.slow.stewards.filter(|_| !trial);
        self.look_at_weights(&mut look, remembered, now).await;
        self.look_at_uplinks(&mut look).await;
        self.look_outside(&mut look).await;
        self.told(&mut look, remembered);
        self.live(&mut look, remembered, now);
        look
    }

    /// For how long people live with the box, and for how long with backups that nobody tried.
    fn live(&self, look: &mut Look, remembered: &mut Remembered, now: i64) {
        let site = look.status.as_deref().map(|status| &status.site);
        let lived_in = site.and_then(|site| {
            let is_spare = site.spare.as_ref().is_some_and(|s| s.role == SpareRole::ForAnother);
            match site.is_trial() || is_spare {
                true => Some(false),
                false => self.slow.stewards.map(|stewards| stewards > 0),
            }
        });
        let backup = look.seen.backup.as_ref();
        let unproved = backup.map(|b| b.to.is_some() && b.last.is_some() && b.drill.is_none());
        look.seen.lived_in = Remembered::since(&mut remembered.lived_in, lived_in, now);
        look.seen.unproved = Remembered::since(&mut remembered.unproved, unproved, now);
    }

    async fn look_outside(&self, look: &mut Look) {
        match ask::<DoorRequest, DoorReply>(&self.sockets.gateway(), &DoorRequest::Outside).await {
            Ok(DoorReply::Outside(outside)) => look.seen.outside = Some(outside),
            Ok(_) | Err(_) => look.cannot(
                &[Check::Outside],
                "the door does not say whether members outside can come in",
            ),
        }
    }

    /// Whom to tell.
    pub async fn stewards(&self) -> Option<Vec<StewardContact>> {
        match ask::<DoorRequest, DoorReply>(&self.sockets.gateway(), &DoorRequest::Stewards).await {
            Ok(DoorReply::Stewards(stewards)) => Some(stewards),
            _ => None,
        }
    }

    async fn ask_status(&self) -> Option<Box<BoxStatus>> {
        match ask::<Request, Reply>(&self.sockets.control(), &Request::Status).await {
            Ok(Reply::Status(status)) => Some(status),
            _ => None,
        }
    }

    fn parts(&mut self, status: &BoxStatus, now: i64) -> Vec<PartSeen> {
        let mut parts = vec![("the door".to_owned(), None, None, &status.gateway)];
        for engine in &status.engines {
            let on = format!("the model {}", engine.name);
            parts.push((on, Some(engine.name.clone()), None, &engine.part));
        }
        for other in &status.others {
            let on = format!("the part that {}", other.name.does());
            parts.push((on, None, Some(other.name), &other.part));
        }
        let names: Vec<String> = parts.iter().map(|(on, ..)| on.clone()).collect();
        self.restarts.retain(|on, _| names.contains(on));
        let seen = parts.into_iter().map(|(on, engine, other, part)| {
            let before = self.restarts.entry(on.clone()).or_default();
            let restarts = restarts_within_an_hour(before, now, part.restarts);
            PartSeen { on, engine, other, state: part.state.clone(), restarts }
        });
        seen.collect()
    }

    async fn queues(&mut self, status: &BoxStatus, now: i64) -> Vec<Queue> {
        let mut queues = Vec::new();
        for engine in status.engines.iter().filter(|e| e.part.state == PartState::Ready) {
            let waiting = metrics(&engine.socket).await.map_or(0, |text| waiting(&text));
            match waiting {
                0 => drop(self.queues.remove(&engine.name)),
                waiting => {
                    let since = *self.queues.entry(engine.name.clone()).or_insert(now);
                    queues.push(Queue { engine: engine.name.clone(), waiting, since });
                }
            }
        }
        self.queues.retain(|name, _| queues.iter().any(|queue| queue.engine == *name));
        queues
    }

    async fn synchronised(&self, look: &mut Look) -> Option<bool> {
        if let Some(synchronised) = clock::timesyncd(Path::new(clock::TIMESYNCD)) {
            return Some(synchronised);
        }
        if let Ok(shown) = tool("timedatectl", &["show"]).await
            && let Some(synchronised) = clock::timedatectl(&shown)
        {
            return Some(synchronised);
        }
        let tracking = tool("chronyc", &["-c", "-n", "tracking"]).await;
        let synchronised = tracking.ok().as_deref().and_then(clock::chronyc);
        if synchronised.is_none() {
            let why = "neither systemd (timedatectl) nor chrony (chronyc) tells whether the clock is set from outside";
            look.cannot(&[Check::Clock], why);
        }
        synchronised
    }

    async fn kernel(&self, look: &mut Look, reading: &clock::Reading) {
        let reading = *reading;
        let read =
            tokio::task::spawn_blocking(move || kernel::read(reading.wall, reading.up)).await;
        match read {
            Ok(Ok(events)) => look.seen.kernel = Some(events),
            Ok(Err(error)) => {
                let why = format!(
                    "the kernel's log cannot be read ({error}): the box's user is not allowed to"
                );
                look.cannot(&[Check::GpuFault, Check::Memory], &why);
            }
            Err(error) => look.cannot(&[Check::GpuFault, Check::Memory], &error.to_string()),
        }
    }

    /// On the image root looks at the disks now and then and leaves what they say; elsewhere this process tries itself.
    async fn look_at_drives() -> Result<Vec<Drive>, String> {
        if Path::new(DRIVES).is_dir() {
            return drives_left_in(Path::new(DRIVES));
        }
        let scan = tool("smartctl", &["--json", "--scan"]).await.map_err(|why| {
            format!("disks cannot be asked how they are: {why} (Debian: smartmontools)")
        })?;
        let mut drives = Vec::new();
        let found = smart::scanned(&scan);
        for (device, kind) in &found {
            // Its exit status has bits for what is wrong with the disk; what counts is what it prints.
            let said = tool("smartctl", &["--json", "-a", "-d", kind, device]).await;
            drives.extend(said.ok().as_deref().and_then(smart::drive));
        }
        match (found.len(), drives.len()) {
            (1.., 0) => {
                Err("disks cannot be asked how they are: that takes root, or they do not tell"
                    .to_owned())
            }
            _ => Ok(drives),
        }
    }

    fn space(&self, remembered: &mut Remembered, now: i64) -> Option<Space> {
        // Of the box's folder the unit shows what this part needs; models lie on the disk that everything lies on.
        let about = rustix::fs::statvfs(self.state.join("weights"));
        let about = about.or_else(|_| rustix::fs::statvfs(&self.state)).ok()?;
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        let total = about.f_blocks.saturating_mul(about.f_frsize);
        remembered.note_space(now, free);
        Some(Space { free, total, before: remembered.space.clone() })
    }

    async fn look_at_door(&mut self, status: Option<&BoxStatus>) {
        let Some(status) = status else { return };
        let (site, state) = (status.site.clone(), self.state.clone());
        let looked = tokio::task::spawn_blocking(move || door::certificates(&site, &state)).await;
        self.slow.certificates = Some(looked.unwrap_or_else(|e| Err(e.to_string())));
    }

    async fn update(&self) -> Option<UpdateSeen> {
        match ask::<Request, Reply>(&self.sockets.control(), &Request::Updates).await {
            Ok(Reply::Updates(status)) => status.image.is_some().then(|| UpdateSeen {
                offer: status.offer.map(|offer| offer.version),
                trying: status.trying,
                unlooked: status.unlooked,
            }),
            _ => None,
        }
    }

    async fn look_at_weights(&mut self, look: &mut Look, remembered: &mut Remembered, now: i64) {
        let folder = self.state.join("weights");
        let due = remembered.spot_check_is_due(now);
        let last = remembered.spot.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let mark = if due { weights::spot_check(&folder, &last)? } else { None };
            Ok::<_, String>((mark, weights::missing(&folder)?))
        });
        match looked.await {
            Ok(Ok((mark, damaged))) => {
                if due {
                    remembered.spot_checked(now, mark);
                }
                self.damaged = damaged;
                self.slow.weights = None;
            }
            Ok(Err(why)) => self.slow.weights = Some(why),
            Err(error) => self.slow.weights = Some(error.to_string()),
        }
        if let Some(why) = &self.slow.weights {
            look.cannot(&[Check::Weights], why);
        }
        look.seen.damaged.clone_from(&self.damaged);
    }

    async fn look_at_uplinks(&self, look: &mut Look) {
        let named = look.status.as_ref().is_some_and(|status| !status.site.uplinks.is_empty());
        if !named {
            return;
        }
        match wan_status(&self.sockets).await {
            Some(wan) => look.seen.uplinks = wan.uplinks,
            None => {
                look.cannot(&[Check::Uplink], "whoever looks after the uplinks does not answer")
            }
        }
    }
}

/// Where root leaves what disks say about themselves, on the image.
pub const DRIVES: &str = "/run/polder-drives";

impl Look {
    fn cannot(&mut self, checks: &[Check], why: &str) {
        let why: String = why.chars().filter(|c| !c.is_control()).take(300).collect();
        self.unseen.extend(checks.iter().map(|check| Unseen { check: *check, why: why.clone() }));
    }
}

/// Asks every disk that the tool finds, and leaves what each says in `into`: for root, who may do that.
pub fn leave_drives(into: &Path) -> std::io::Result<usize> {
    let run = |args: &[&str]| -> std::io::Result<String> {
        let out =
            std::process::Command::new("smartctl").args(args).stdin(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    std::fs::create_dir_all(into)?;
    let found = smart::scanned(&run(&["--json", "--scan"])?);
    for (number, (device, kind)) in found.iter().enumerate() {
        let said = run(&["--json", "-a", "-d", kind, device])?;
        let (at, beside) =
            (into.join(format!("{number}.json")), into.join(format!("{number}.new")));
        std::fs::write(&beside, said)?;
        std::fs::rename(&beside, &at)?;
    }
    // A disk that was taken out.
    for number in found.len()..64 {
        let _ = std::fs::remove_file(into.join(format!("{number}.json")));
    }
    Ok(found.len())
}

fn drives_left_in(folder: &Path) -> Result<Vec<Drive>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let json = |path: &PathBuf| path.extension().is_some_and(|e| e == "json");
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(json).collect();
    paths.sort();
    let fresh = |path: &PathBuf| {
        let age = std::fs::metadata(path).ok()?.modified().ok()?.elapsed().unwrap_or_default();
        (age < FRESH).then(|| std::fs::read_to_string(path).ok())?
    };
    let said: Vec<String> = paths.iter().filter_map(fresh).collect();
    match said.is_empty() {
        true => Err("nobody has asked the disks lately how they are".to_owned()),
        false => Ok(said.iter().filter_map(|said| smart::drive(said)).collect()),
    }
}

/// The cards; nothing where no driver is loaded.
async fn cards() -> Option<Result<Vec<crate::seen::Card>, String>> {
    if !Path::new("/proc/driver/nvidia").exists() && !Path::new("/dev/nvidiactl").exists() {
        return None;
    }
    let said = tool("nvidia-smi", &["-q", "-x"]).await;
    let why = |why| format!("graphics cards cannot be asked how they are: {why}");
    Some(said.and_then(|xml| nvidia::cards(&xml)).map_err(why))
}

/// Runs a tool, and gives what it prints, whatever its exit status says.
async fn tool(program: &str, arguments: &[&str]) -> Result<String, String> {
    let asked = async {
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => format!("{program} is not here"),
                _ => format!("{program}: {e}"),
            })?;
        let mut said = Vec::new();
        let out = child.stdout.take().expect("stdout was asked to be a pipe");
        out.take(LONGEST).read_to_end(&mut said).await.map_err(|e| format!("{program}: {e}"))?;
        // What would follow is not read, and it may wait for somebody to do so.
        let _ = child.start_kill();
        let _ = child.wait().await;
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    match tokio::time::timeout(TOOL, asked).await {
        Ok(said) => said,
        Err(_) => Err(format!("{program} did not answer within {} s", TOOL.as_secs())),
    }
}

pub(crate) async fn ask<Q, A>(path: &Path, question: &Q) -> Result<A, String>
where
    Q: Serialize,
    A: DeserializeOwned,
{
    let asked = async {
        let mut client: Client<Q, A> = Client::connect(path).await?;
        client.ask_within(ANSWER, question).await
    };
    asked.await.map_err(|error| error.to_string())
}

async fn metrics(socket: &Path) -> Option<String> {
    let asked = async {
        let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let exchange = async move {
            let request = hyper::Request::get("/metrics")
                .header("host", "localhost")
                .body(Empty::<Bytes>::new())
                .expect("the literals are a valid request");
            let answer = sender.send_request(request).await.ok()?;
            let body = Limited::new(answer.into_body(), 1 << 20).collect().await.ok()?;
            Some(String::from_utf8_lossy(&body.to_bytes()).into_owned())
        };
        tokio::join!(exchange, connection).0
    };
    tokio::time::timeout(ANSWER, asked).await.ok().flatten()
}

/// Questions that wait, as an engine's metrics tell.
fn waiting(metrics: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("vllm:num_requests_waiting"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.filter(|n| n.is_finite() && *n > 0.0).sum::<f64>() as u64
}

fn memory(meminfo: &str) -> Option<HostMemory> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(HostMemory { total: field("MemTotal")?, available: field("MemAvailable")? })
}

/// How much a counter grew within the last hour. It begins anew with every supervisor.
fn restarts_within_an_hour(before: &mut Vec<(i64, u32)>, now: i64, count: u32) -> u32 {
    let fell = before.last().is_some_and(|(_, last)| count < *last);
    before.retain(|(at, _)| !fell && (0..3600).contains(&now.saturating_sub(*at)));
    before.push((now, count));
    count - before[0].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_begins_anew_is_not_taken_for_restarts() {
        let mut before = Vec::new();
        let mut at = |now, count| restarts_within_an_hour(&mut before, now, count);
        assert_eq!((at(0, 7), at(60, 9), at(120, 12)), (0, 2, 5));
        assert_eq!(at(3700, 12), 0);
        assert_eq!((at(3760, 0), at(3820, 1)), (0, 1));
    }

    #[test]
    fn questions_that_wait_and_free_memory_are_read() {
        let text = "# HELP vllm:num_requests_waiting x\nvllm:num_requests_waiting{model_name=\"a b\"} 3.0\nvllm:num_requests_waiting 2\nvllm:num_requests_running 9\n";
        assert_eq!(waiting(text), 5);
        assert_eq!(waiting("vllm:num_requests_waiting NaN"), 0);
        let meminfo = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n";
        let memory = memory(meminfo).unwrap();
        assert_eq!((memory.total >> 20, memory.available >> 20), (23437, 11718));
    }

    #[tokio::test]
    async fn a_tool_that_is_not_here_and_one_that_talks_without_end_do_no_harm() {
        assert_eq!(tool("no-such-tool", &[]).await, Err("no-such-tool is not here".to_owned()));
        let endless = tool("yes", &[]).await.unwrap();
        assert_eq!(endless.len() as u64, LONGEST);
    }

    #[test]
    fn what_root_left_of_disks_is_read_while_it_is_fresh() {
        let folder = tempfile::tempdir().unwrap();
        assert!(drives_left_in(folder.path()).unwrap_err().contains("nobody has asked"));
        let good = include_str!("../../fixtures/smartctl-nvme-good.json");
        std::fs::write(folder.path().join("0.json"), good).unwrap();
        assert_eq!(drives_left_in(folder.path()).unwrap().len(), 1);
        let old = std::fs::File::options().write(true).open(folder.path().join("0.json")).unwrap();
        old.set_modified(std::time::SystemTime::now() - 2 * FRESH).unwrap();
        assert!(drives_left_in(folder.path()).is_err());
    }

    #[tokio::test]
    async fn a_folder_without_a_box_is_looked_at_without_harm_and_says_what_cannot_be_seen() {
        let state = tempfile::tempdir().unwrap();
        let mut remembered = Remembered::default();
        let look = Eyes::of(state.path()).look(&mut remembered, true).await;
        assert!(look.status.is_none() && look.seen.parts.is_none());
        assert!(look.seen.space.is_some() && look.seen.memory.is_some());
        assert!(look.unseen.iter().any(|unseen| unseen.check == Check::Certificate));
    }
}
