//! What takes more rights than the watch over the UPS has: NUT for a UPS of this machine's own, its password, and less power for
//! graphics cards.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use polder_control::{Actor, PowerPhase, SecretText};
use polder_power::cards::{NvidiaSmi, limit_all};
use polder_power::find::ups_below;
use polder_power::nut::{ConfigFile, Driver, OWN_PASSWORD, Passwords, files};
use polder_site::{Site, write_durably};

use super::{Refusal, Work, blocking};
use crate::image::Chore;
use crate::parts::{Part, Parts};

/// What a card draws that nobody limits, in percent of that.
const ALL: u8 = 100;
/// In the folder of sockets, which does not outlive the machine's run: cards draw less than they might, because we said so.
const LIMITED: &str = "cards-limited";
/// In the state folder.
const PASSWORD: &str = "power/password";
/// Where the machine is somebody else's affair.
pub(super) const NO_NUT: &str = "Polder is only a program on this machine, and listens to a UPS by itself only where its own image runs; set NUT up here (on Debian the package nut-server), and look again: the box then finds the UPS as NUT's";
/// Longer than any password that upsd takes.
const LONGEST: usize = 200;

impl<P: Parts> Work<P> {
    /// Has NUT hear the UPS that is plugged into this machine, or none.
    pub(super) async fn tend_nut(&self) -> Result<(), Refusal> {
        let site = self.board.site();
        let line = site.power.as_ref().and_then(|plan| plan.attached.clone());
        let Some(image) = &self.image else {
            return match line {
                None => Ok(()),
                Some(_) => Err(NO_NUT.to_owned()),
            };
        };
        let place = image.nut().to_owned();
        let Some(line) = line else {
            // What nobody set up need not be ended.
            return match place.join("ups.conf").exists() {
                true => {
                    image.helper().does(Chore::HearUps(None)).await?;
                    blocking(move || forget(&place).map_err(|e| not_told(&e))).await
                }
                false => Ok(()),
            };
        };
        let state = self.state.clone();
        let (driver, anew) = blocking(move || {
            let driver = Driver::of(&line, &ups_below(Path::new("/sys/bus/usb/devices")));
            let plan = site.power.as_ref().ok_or("the site names no UPS")?;
            let own = own_password(&place).map_err(|e| not_told(&e))?;
            let others = fs::read_to_string(state.join(PASSWORD)).unwrap_or_default();
            let others = others.lines().next().filter(|password| !password.is_empty());
            let wanted = files(plan, &line, driver, &Passwords { own: &own, others });
            Ok((driver, keep(&place, &wanted).map_err(|e| not_told(&e))?))
        })
        .await?;
        if anew {
            image.helper().does(Chore::HearUps(None)).await?;
        }
        image.helper().does(Chore::HearUps(Some(driver))).await
    }

    /// The same, where nobody waits for it.
    pub(super) fn hear_ups_again(self: &Arc<Self>) {
        let work = self.clone();
        self.tasks.spawn(async move {
            if let Err(why) = work.tend_nut().await {
                log::error!("the UPS of this machine is not heard: {why}");
            }
        });
    }

    /// Keeps the password for upsd, or with an empty text forgets it.
    pub(crate) async fn keep_ups_password(
        self: &Arc<Self>,
        text: SecretText,
        by: Actor,
    ) -> Result<(), Refusal> {
        let (path, gone) = (self.state.join(PASSWORD), text.expose().is_empty());
        if text.expose().len() > LONGEST || text.expose().chars().any(char::is_control) {
            return Err(format!(
                "the password is not kept: at most {LONGEST} characters in one line"
            ));
        }
        self.record(by, if gone { "forgot" } else { "entered" }, "the password for the UPS")
            .await?;
        blocking(move || {
            let fail = |error: io::Error| {
                format!("the password could not be written down ({error}); is the disk full?")
            };
            if gone {
                return match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
                    _ => Ok(()),
                };
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(fail)?;
                fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(fail)?;
            }
            write_durably(&path, format!("{}\n", text.expose()).as_bytes()).map_err(fail)
        })
        .await?;
        if self.board.site().power.is_some() {
            self.tend_nut().await?;
            // It signs in when it connects.
            self.keeper(&Part::Power).start();
        }
        Ok(())
    }

    /// Has graphics cards draw what this phase leaves them.
    pub(super) fn power_of_cards(&self, phase: PowerPhase) {
        let percent = percent_for(&self.board.site(), phase);
        self.card_power.send_if_modified(|now| std::mem::replace(now, percent) != percent);
    }

    /// Limits cards while the box saves and gives them back what they had, also what an earlier supervisor took. One at a time, and
    /// nobody waits for it: a driver in trouble hangs its tool.
    pub(super) fn tend_cards(self: &Arc<Self>) {
        let work = self.clone();
        self.tasks.spawn(async move {
            let mark = work.sockets.folder().join(LIMITED);
            let mut wanted = work.card_power.subscribe();
            let mut drawn = (!mark.exists()).then_some(ALL);
            loop {
                let percent = match work.ending.is_cancelled() {
                    true => ALL,
                    false => *wanted.borrow_and_update(),
                };
                if drawn != Some(percent) {
                    if percent < ALL
                        && let Err(error) = fs::write(&mark, [])
                    {
                        log::warn!("nobody would give cards their power back later: {error}");
                    }
                    match work.limit_cards(percent).await {
                        Ok(()) if percent < ALL => log::info!("graphics cards draw {percent} %"),
                        Ok(()) => log::info!("graphics cards may draw all of their power again"),
                        Err(why) => log::warn!("graphics cards draw what they drew: {why}"),
                    }
                    if percent == ALL {
                        let _ = fs::remove_file(&mark);
                    }
                    drawn = Some(percent);
                }
                if work.ending.is_cancelled() {
                    return;
                }
                tokio::select! {
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = work.ending.cancelled() => {}
                }
            }
        });
    }

    /// Root does it where the machine runs from the image; elsewhere it is tried.
    async fn limit_cards(&self, percent: u8) -> Result<(), String> {
        if let Some(image) = &self.image {
            return image.helper().does(Chore::LimitCards(percent)).await;
        }
        let percent = (percent < ALL).then_some(percent);
        blocking(move || limit_all(&mut NvidiaSmi::default(), percent)).await
    }
}

/// Of their usual power.
fn percent_for(site: &Site, phase: PowerPhase) -> u8 {
    let saving = site.power.as_ref().filter(|_| phase.refuses_long_work());
    saving.and_then(|plan| plan.card_percent).unwrap_or(ALL)
}

fn not_told(error: &io::Error) -> String {
    format!("NUT could not be told of the UPS ({error})")
}

/// The one there is, or a new one: it proves to upsd that who asks is this box.
fn own_password(place: &Path) -> io::Result<String> {
    let kept = fs::read_to_string(place.join(OWN_PASSWORD)).unwrap_or_default();
    let kept = kept.lines().next().unwrap_or_default();
    if kept.len() == 32 && kept.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(kept.to_owned());
    }
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes what is not there as it should be; whether anything was not. The folder's group is NUT's, which reads all but what is the box's own.
fn keep(place: &Path, wanted: &[ConfigFile]) -> io::Result<bool> {
    let mut anew = false;
    for ConfigFile { name, text } in wanted {
        let path = place.join(name);
        if fs::read(&path).is_ok_and(|is| is == text.as_bytes()) {
            continue;
        }
        let beside = place.join(format!(".{name}"));
        let _ = fs::remove_file(&beside);
        let mut file =
            fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        if *name != OWN_PASSWORD {
            file.set_permissions(fs::Permissions::from_mode(0o640))?;
        }
        file.write_all(text.as_bytes())?;
        fs::rename(&beside, &path)?;
        anew = true;
    }
    Ok(anew)
}

fn forget(place: &Path) -> io::Result<()> {
    for name in ["ups.conf", "upsd.conf", "upsd.users", OWN_PASSWORD] {
        match fs::remove_file(place.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use polder_site::PowerPlan;

    #[test]
    fn cards_draw_less_while_the_box_saves_and_only_where_the_site_says_so() {
        let mut site = Site::unclaimed(8443);
        assert_eq!(percent_for(&site, PowerPhase::Saving), 100);
        let mut plan = PowerPlan::of("ups@localhost".parse().unwrap());
        plan.card_percent = Some(60);
        site.power = Some(plan);
        assert_eq!(percent_for(&site, PowerPhase::OnBattery), 100);
        assert_eq!(percent_for(&site, PowerPhase::Saving), 60);
        assert_eq!(percent_for(&site, PowerPhase::Draining), 60);
        assert_eq!(percent_for(&site, PowerPhase::Mains), 100);
    }

    #[test]
    fn files_for_nut_are_for_its_group_and_the_boxs_own_password_for_nobody_else() {
        let place = tempfile::tempdir().unwrap();
        let own = own_password(place.path()).unwrap();
        let line = "usb".parse().unwrap();
        let plan = PowerPlan::attached("usb".parse().unwrap());
        let passwords = Passwords { own: &own, others: None };
        let wanted = files(&plan, &line, Driver::UsbHid, &passwords);
        assert!(keep(place.path(), &wanted).unwrap());
        assert!(!keep(place.path(), &wanted).unwrap(), "nothing changed");
        assert_eq!(own_password(place.path()).unwrap(), own, "it is kept while the machine runs");
        let mode = |name: &str| {
            fs::metadata(place.path().join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("ups.conf"), mode("upsd.users"), mode("password")), (0o640, 0o640, 0o600));
        forget(place.path()).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        assert_ne!(own_password(place.path()).unwrap(), own);
    }
}
