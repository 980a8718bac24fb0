//! A box in memory, for the wizard's tests and its example: everything that outlives a crash of
//! the gateway is behind one lock.

#![allow(dead_code, clippy::unwrap_used)] // Each test uses its part of it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use polder_control::{
    BoxStatus, CONFIRM, Disk, EngineStatus, Gpu, KitWords, Lock, Machine, PartState, PartStatus,
    Plan, PluggedDisk, Progress, RecoveryKey, Run, RunId, RunState, SecretText, Step, StepState,
    Unit,
};
use polder_firstboot::{ClaimRefusal, ClaimToken, Host, Newcomer, SetupError, Trust, Window};
use polder_power::around::{Around, Heard};
use polder_site::{BackupPlace, RecipeName, Site, SiteChange};

pub(crate) const CODE: &str = "ABCDE-FGHJK-23456";
pub(crate) const KEY: &str = "pk-shown-once";
pub(crate) const BACKUP_KEY: &str = "cbde-fghi";
pub(crate) const RECOVERY_KEY: &str =
    "eujukuik-ljvniheb-tchngetr-henfkdfn-hjcrhelj-lufhrbcg-ivivhfvr-ncueblhj";

/// What a crash leaves.
pub(crate) struct State {
    pub(crate) notes: Option<String>,
    pub(crate) steward: Option<String>,
    pub(crate) code: Option<String>,
    /// What the owner signs; here a text is its own signature.
    pub(crate) owner: Option<String>,
    pub(crate) claim: Option<String>,
    pub(crate) claims: u32,
    pub(crate) wrong_codes: u32,
    pub(crate) site: Site,
    pub(crate) runs: Vec<Run>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) machine: Machine,
    /// Nothing on a machine whose disk is its owner's affair.
    pub(crate) disk: Option<Disk>,
    pub(crate) applied: Vec<SiteChange>,
    /// UPSes of this machine's own.
    pub(crate) around: Around,
    /// And at 10.0.0.2.
    pub(crate) elsewhere: Vec<Heard>,
    pub(crate) ups_password: Option<String>,
    /// The machine runs from Polder's image.
    pub(crate) image: bool,
    /// The disk is full.
    pub(crate) cannot_save: bool,
    /// The supervisor does not answer.
    pub(crate) away: bool,
}

impl State {
    /// What a box that is only a program refuses.
    fn can(&self, change: &SiteChange) -> Result<(), SetupError> {
        match change {
            SiteChange::Power(power) if power.attached.is_some() && !self.image => {
                Err(SetupError::Refused("set NUT up on this machine".into()))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub(crate) fn new() -> Self {
        let gib = 1 << 30;
        Self(Arc::new(Mutex::new(State {
            notes: None,
            steward: None,
            code: Some(CODE.into()),
            owner: None,
            claim: None,
            claims: 0,
            wrong_codes: 0,
            site: Site::unclaimed(8443),
            runs: Vec::new(),
            addresses: ["192.168.1.20", "10.0.0.7"].map(|a| a.parse().unwrap()).to_vec(),
            machine: Machine {
                cpu: "AMD Ryzen 7 7840U".into(),
                threads: 16,
                memory: 32 * gib,
                disk_free: 410 * gib,
                disk_total: 931 * gib,
                gpus: Vec::new(),
                driver: None,
                idle_cards: 0,
                ports: Vec::new(),
            },
            disk: None,
            applied: Vec::new(),
            around: Around::default(),
            elsewhere: Vec::new(),
            ups_password: None,
            image: true,
            cannot_save: false,
            away: false,
        })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// As if `polder claim reopen` was typed at the machine.
    pub(crate) fn open_claim(&self, code: &str) {
        self.state().code = Some(code.into());
    }

    pub(crate) fn with_gpu(self) -> Self {
        self.state().machine.gpus =
            vec![Gpu { name: "NVIDIA GeForce RTX 4090".into(), memory: Some(24 << 30) }];
        self
    }

    /// The newest run is this far now.
    pub(crate) fn run_is(&self, state: RunState, steps: Vec<StepState>) {
        let mut all = self.state();
        let run = all.runs.first_mut().expect("a run was begun");
        (run.state, run.steps) = (state, steps);
    }

    fn there(&self) -> Result<MutexGuard<'_, State>, SetupError> {
        let state = self.state();
        if state.away {
            return Err(SetupError::Refused("the supervisor does not answer just now".into()));
        }
        Ok(state)
    }
}

/// Bytes coming in.
pub(crate) fn fetching(done: u64, total: u64) -> StepState {
    StepState::Running(Some(Progress {
        phase: "fetching".into(),
        done,
        total: Some(total),
        unit: Unit::Bytes,
        rate: Some(3.1e6),
        eta_seconds: Some((total - done) / 3_100_000),
    }))
}

pub(crate) fn plan_for(change: &SiteChange) -> Plan {
    let step = |id: &str, title: String| Step { id: id.into(), title };
    match change {
        SiteChange::Engine { slot, .. } => Plan {
            title: format!("Serve {}", slot.recipe),
            steps: vec![
                step("import-model", format!("Import {} (98.4 MB)", slot.recipe)),
                step("start-engine", "Start the engine fast".into()),
                step("write-site", "Note it in site.toml".into()),
            ],
        },
        SiteChange::Power(power) => Plan {
            title: format!("Live off the UPS {} when the mains is away", power.ups),
            steps: vec![
                step("write-site", "Note it".into()),
                step("watch-ups", "Listen to the UPS".into()),
            ],
        },
        SiteChange::Uplinks(_) => Plan {
            title: "Go out by main, else by second".into(),
            steps: vec![step("write-site", "Note it".into()), step(CONFIRM, "Wait".into())],
        },
        _ => Plan {
            title: "Change the site".into(),
            steps: vec![step("write-site", "Note it".into())],
        },
    }
}

impl Host for Fake {
    async fn load(&self) -> Result<Option<String>, SetupError> {
        Ok(self.state().notes.clone())
    }
    async fn save(&self, notes: String) -> Result<(), SetupError> {
        let mut state = self.state();
        if state.cannot_save {
            return Err(SetupError::Notes("no space left on device".into()));
        }
        state.notes = Some(notes);
        Ok(())
    }
    async fn steward(&self) -> Result<Option<String>, SetupError> {
        Ok(self.state().steward.clone())
    }
    async fn window(&self) -> Result<Window, SetupError> {
        Ok(match self.state().code {
            Some(_) => Window::Open(Duration::from_secs(1700)),
            None => Window::Closed,
        })
    }
    async fn claim(&self, code: String, _from: IpAddr) -> Result<ClaimToken, SetupError> {
        let mut state = self.state();
        if state.wrong_codes >= 3 {
            return Err(ClaimRefusal::TooMany(Duration::from_secs(40)).into());
        }
        if state.code.as_ref() != Some(&code) {
            state.wrong_codes += 1;
            return Err(ClaimRefusal::Wrong.into());
        }
        state.code = None;
        state.claims += 1;
        let token = format!("claim{}", state.claims);
        state.claim = Some(token.clone());
        Ok(ClaimToken(token))
    }
    async fn owner_text(&self) -> Result<Option<String>, SetupError> {
        let state = self.state();
        Ok(state.owner.clone().filter(|_| state.steward.is_none()))
    }

    async fn claim_as_owner(&self, signature: String, _: IpAddr) -> Result<ClaimToken, SetupError> {
        if self.state().owner.as_ref() != Some(&signature) {
            return Err(ClaimRefusal::NotTheOwner.into());
        }
        let code = self.state().code.clone().unwrap();
        self.claim(code, IpAddr::from([127, 0, 0, 1])).await
    }

    async fn holds_claim(&self, token: ClaimToken) -> Result<bool, SetupError> {
        Ok(self.state().claim.as_ref() == Some(&token.0))
    }
    async fn make_steward(
        &self,
        by: ClaimToken,
        name: String,
        password: String,
        secure: bool,
    ) -> Result<Newcomer, SetupError> {
        let mut state = self.state();
        if state.claim.as_ref() != Some(&by.0) || state.steward.is_some() {
            return Err(SetupError::Refused("this box has a steward already".into()));
        }
        if password.chars().count() < 10 {
            return Err(SetupError::Refused("the password is too short".into()));
        }
        state.steward = Some(name);
        let cookie = if secure { "session=s; Secure" } else { "session=s" };
        Ok(Newcomer { cookies: vec![cookie.parse().unwrap()], api_key: KEY.into() })
    }
    async fn end(&self) -> Result<(), SetupError> {
        let mut state = self.state();
        (state.claim, state.code) = (None, None);
        Ok(())
    }
    async fn machine(&self) -> Result<Machine, SetupError> {
        Ok(self.there()?.machine.clone())
    }
    async fn disk(&self) -> Result<Option<Disk>, SetupError> {
        Ok(self.there()?.disk)
    }
    async fn seal(&self) -> Result<RecoveryKey, SetupError> {
        drop(self.there()?);
        Ok(RecoveryKey::typed(RECOVERY_KEY).unwrap())
    }
    async fn confirm_seal(&self, key: RecoveryKey) -> Result<(), SetupError> {
        if key.expose() != RECOVERY_KEY {
            return Err(SetupError::Refused("the disk does not open with that key".into()));
        }
        self.there()?.disk.as_mut().unwrap().lock = Lock::Sealed;
        Ok(())
    }
    async fn plugged(&self) -> Result<Vec<PluggedDisk>, SetupError> {
        let safe = PluggedDisk {
            place: Some("disk:SAFE@1C2E-44AF".into()),
            label: "SAFE".into(),
            name: "Cruzer Blade".into(),
            kind: "exfat".into(),
            bytes: 64 << 30,
            ..PluggedDisk::default()
        };
        let empty = PluggedDisk { name: "Empty one".into(), ..PluggedDisk::default() };
        Ok(vec![safe, empty])
    }
    async fn restore(&self, from: BackupPlace, key: KitWords) -> Result<RunId, SetupError> {
        if key.0 != BACKUP_KEY {
            return Err(SetupError::Refused("the key does not open the backups there".into()));
        }
        let mut state = self.there()?;
        let id = RunId(state.runs.len() as u64 + 1);
        let step = |id: &str| Step { id: id.into(), title: format!("{id} from {from}") };
        let steps = vec![step("fetch-backup"), step("put-in-place")];
        let plan = Plan { title: "Become the box".into(), steps };
        let steps = vec![fetching(1 << 20, 4 << 20), StepState::Waiting];
        state.runs.insert(0, Run { id, plan, steps, state: RunState::Running });
        Ok(id)
    }
    async fn leave_disk_open(&self) -> Result<(), SetupError> {
        self.there().map(drop)
    }
    async fn status(&self) -> Result<BoxStatus, SetupError> {
        let site = self.there()?.site.clone();
        let part = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
        let engines = site
            .engines
            .iter()
            .map(|(name, slot)| EngineStatus {
                name: name.clone(),
                recipe: slot.recipe.clone(),
                socket: "engine.sock".into(),
                part: part.clone(),
                note: None,
            })
            .collect();
        Ok(BoxStatus {
            safe: false,
            site,
            gateway: part,
            engines,
            supply: None,
            closed: None,
            others: Vec::new(),
        })
    }
    async fn imported(&self) -> Result<Vec<RecipeName>, SetupError> {
        Ok(self.there()?.site.engines.values().map(|slot| slot.recipe.clone()).collect())
    }
    async fn preview(&self, change: SiteChange) -> Result<Plan, SetupError> {
        self.there()?.can(&change)?;
        Ok(plan_for(&change))
    }
    async fn apply(&self, change: SiteChange) -> Result<RunId, SetupError> {
        let mut state = self.there()?;
        let id = RunId(state.runs.len() as u64 + 1);
        let plan = plan_for(&change);
        state.can(&change)?;
        let imports = matches!(change, SiteChange::Engine { .. });
        let waits = matches!(change, SiteChange::Uplinks(_));
        let (steps, run_state) = if imports {
            let waiting = plan.steps.iter().skip(1).map(|_| StepState::Waiting);
            let first = fetching(45_200_000, 98_362_432);
            (std::iter::once(first).chain(waiting).collect(), RunState::Running)
        } else {
            state.site = change.applied_to(&state.site);
            match waits {
                true => (vec![StepState::Done, StepState::Running(None)], RunState::Running),
                false => (plan.steps.iter().map(|_| StepState::Done).collect(), RunState::Done),
            }
        };
        state.runs.insert(0, Run { id, plan, steps, state: run_state });
        state.applied.push(change);
        Ok(id)
    }
    async fn runs(&self) -> Result<Vec<Run>, SetupError> {
        Ok(self.there()?.runs.clone())
    }
    async fn confirm(&self, run: RunId) -> Result<(), SetupError> {
        let mut state = self.there()?;
        let run = state.runs.iter_mut().find(|r| r.id == run).unwrap();
        (run.state, run.steps) = (RunState::Done, vec![StepState::Done; run.steps.len()]);
        Ok(())
    }
    async fn cancel(&self, run: RunId) -> Result<(), SetupError> {
        let mut state = self.there()?;
        if let Some(run) = state.runs.iter_mut().find(|r| r.id == run) {
            run.state = RunState::Cancelled;
        }
        Ok(())
    }
    async fn batteries(&self) -> Around {
        self.state().around.clone()
    }
    async fn batteries_at(&self, place: String) -> Result<Vec<Heard>, String> {
        match place.as_str() {
            "10.0.0.2" => Ok(self.state().elsewhere.clone()),
            other => Err(format!("no machine at {other} listens to a UPS")),
        }
    }
    async fn ups_password(&self, password: SecretText) -> Result<(), SetupError> {
        self.there()?.ups_password = Some(password.expose().to_owned());
        Ok(())
    }
    async fn addresses(&self) -> Result<Vec<IpAddr>, SetupError> {
        Ok(self.state().addresses.clone())
    }
    async fn trust(&self) -> Result<Trust, SetupError> {
        Ok(Trust {
            ca_file: "/var/lib/polder/pki/ca.pem".into(),
            fingerprint: "9F:86:D0:81:88:4C:7D:65:9A:2F:EA:A0:C5:5A:D0:15:A3:BF:4F:1B:2B:0B:82:2C:D1:5D:6C:15:B0:F0:0A:08".into(),
            page: "/trust",
        })
    }
}
