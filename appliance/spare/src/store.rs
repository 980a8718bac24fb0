//! Where backups are put, in restic's REST protocol, version 2: <https://restic.readthedocs.io/en/stable/100_references.html#rest-backend>.
//! Whoever sends may add, and may remove nothing but locks: a main box that somebody took over cannot take its own past away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path as In, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::StreamExt;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::{Room, SpareError};

const KINDS: [&str; 5] = ["data", "index", "keys", "locks", "snapshots"];
/// What lists are asked for in and answered with.
const V2: &str = "application/vnd.x.restic.rest.v2";
const V1: &str = "application/vnd.x.restic.rest.v1";
/// Bytes of one file: restic's packs have 16 MiB, and 128 MiB at most; everything else is small.
const LARGEST_PACK: u64 = 160 << 20;
const LARGEST_INDEX: u64 = 64 << 20;
const LARGEST_OTHER: u64 = 1 << 20;
/// Files of one kind: a list is held in memory.
const MOST_PACKS: usize = 500_000;
const MOST_OTHERS: usize = 50_000;
const MOST_LOCKS: usize = 1000;
/// Bytes of the disk that stay free for the spare itself.
const SPARED: u64 = 1 << 30;
/// Files being written at once get names of their own.
static PART: AtomicU64 = AtomicU64::new(0);

/// A store in a folder, laid out as restic lays out one of its own.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Of this main box.
    folder: PathBuf,
    /// Of all main boxes that ever were; what is in it counts.
    all: PathBuf,
    /// Most percent of the disk.
    percent: u8,
    /// Bytes of being written now, so that two at once do not both take the last room.
    coming: AtomicU64,
    /// Bytes in `all`, as last counted plus what came since.
    used: AtomicU64,
    /// When the last backup came in, Unix seconds; 0 before the first. Asked for every second.
    last: AtomicI64,
}

/// Why something is not done: a status for restic, and a sentence for whoever reads its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub StatusCode, pub String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

fn refused(status: StatusCode, why: impl Into<String>) -> Refused {
    Refused(status, why.into())
}

impl Store {
    /// The store in `folder`, which together with everything else in `all` takes at most `percent` of the disk.
    pub fn open(folder: &Path, all: &Path, percent: u8) -> Result<Self, SpareError> {
        for kind in KINDS {
            make(&folder.join(kind))?;
        }
        let parts = folder.join("parts");
        let _ = fs::remove_dir_all(&parts);
        make(&parts)?;
        let inner = Inner {
            folder: folder.to_owned(),
            all: all.to_owned(),
            percent,
            coming: AtomicU64::new(0),
            used: AtomicU64::new(bytes_in(all)),
            last: AtomicI64::new(newest(&folder.join("snapshots")).unwrap_or(0)),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Looks anew how much there is: a trial restore thins what is old out.
    pub fn count(&self) {
        self.0.used.store(bytes_in(&self.0.all), Ordering::Relaxed);
    }

    /// Its room.
    pub fn room(&self) -> Result<Room, SpareError> {
        let stat = rustix::fs::statvfs(&self.0.folder).map_err(|error| SpareError::File {
            path: self.0.folder.clone(),
            source: error.into(),
        })?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(SPARED);
        let most = total / 100 * u64::from(self.0.percent);
        Ok(Room { used: self.0.used.load(Ordering::Relaxed), most, free })
    }

    /// When the last backup came in, Unix seconds.
    pub fn last(&self) -> Option<i64> {
        Some(self.0.last.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// The protocol's routes, below whatever they are nested in.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/", post(create).delete(never))
            .route("/config", get(read_config).post(write_config).delete(never))
            .route("/{kind}", get(list))
            .route("/{kind}/", get(list))
            .route("/{kind}/{name}", get(read).post(write).delete(remove))
            .fallback(any(async || StatusCode::NOT_FOUND))
            .with_state(self.clone())
    }

    fn path(&self, kind: &str, name: &str) -> Result<PathBuf, Refused> {
        let hex = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !KINDS.contains(&kind) || !hex {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "files of a store are named by 64 hex digits",
            ));
        }
        let folder = self.0.folder.join(kind);
        Ok(match kind {
            "data" => folder.join(&name[..2]).join(name),
            _ => folder.join(name),
        })
    }

    /// Takes room for a file, if there is some; it is given back when the value is dropped.
    fn claim(&self, bytes: u64) -> Result<Claim, Refused> {
        let coming = self.0.coming.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let claim = Claim(self.0.clone(), bytes);
        let broken = |error: SpareError| {
            log::error!("{error}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "the spare's disk cannot be looked at")
        };
        let room = self.room().map_err(broken)?;
        if room.left() < coming {
            let why = format!(
                "Insufficient Storage: the spare has {} MiB left for backups; give it more on its page Spare, or free some of its disk",
                room.left() >> 20
            );
            return Err(refused(StatusCode::INSUFFICIENT_STORAGE, why));
        }
        Ok(claim)
    }

    /// Writes a body beside, and puts it in its place when it is whole and is what its name says.
    async fn take(
        &self,
        to: &Path,
        name: Option<&str>,
        headers: &HeaderMap,
        largest: u64,
        body: Body,
    ) -> Result<(), Refused> {
        if to.exists() {
            return Err(refused(
                StatusCode::FORBIDDEN,
                "it is there already, and nothing is written twice",
            ));
        }
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let length = length.ok_or_else(|| {
            refused(StatusCode::LENGTH_REQUIRED, "a file must say how long it is")
        })?;
        if length > largest {
            return Err(refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("that is more than {} MiB", largest >> 20),
            ));
        }
        let claim = self.claim(length)?;
        let number = PART.fetch_add(1, Ordering::Relaxed);
        let part = Part(self.0.folder.join("parts").join(number.to_string()));
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => refused(
                StatusCode::INSUFFICIENT_STORAGE,
                "Insufficient Storage: the spare's disk is full",
            ),
            _ => {
                log::error!("a backup's file could not be written: {error}");
                refused(StatusCode::INTERNAL_SERVER_ERROR, "the spare could not write it down")
            }
        };
        let digest = fill(&part.0, body.into_data_stream(), length, io).await?;
        if name.is_some_and(|name| name != digest) {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "what came is not what its name says; send it again",
            ));
        }
        let (from, to) = (part.0.clone(), to.to_owned());
        let placed = tokio::task::spawn_blocking(move || put(&from, &to)).await;
        placed.map_err(|error| io(io::Error::other(error)))?.map_err(io)?;
        self.0.used.fetch_add(length, Ordering::Relaxed);
        drop(claim);
        Ok(())
    }
}

struct Claim(Arc<Inner>, u64);
impl Drop for Claim {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// What is not whole yet, gone with whoever writes it.
struct Part(PathBuf);
impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// SHA-256 of what was written, on disk when this returns.
async fn fill(
    path: &Path,
    mut body: BodyDataStream,
    length: u64,
    io: impl Fn(io::Error) -> Refused,
) -> Result<String, Refused> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path).map_err(&io)?;
    let mut file = tokio::fs::File::from_std(file);
    let (mut context, mut came) = (Context::new(&SHA256), 0);
    while let Some(bytes) = body.next().await {
        let bytes = bytes
            .map_err(|_| refused(StatusCode::BAD_REQUEST, "the connection broke on the way"))?;
        came += bytes.len() as u64;
        if came > length {
            return Err(refused(StatusCode::BAD_REQUEST, "more came than was announced"));
        }
        context.update(&bytes);
        file.write_all(&bytes).await.map_err(&io)?;
    }
    if came != length {
        return Err(refused(
            StatusCode::BAD_REQUEST,
            "less came than was announced; send it again",
        ));
    }
    file.sync_all().await.map_err(&io)?;
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// To its place, never over what is there.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().expect("a file of a store is in a folder");
    if !folder.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match fs::hard_link(from, to) {
        // Two sent the same at once; both are right, since the name is the digest.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            fs::rename(from, to)?;
        }
        other => other?,
    }
    File::open(folder)?.sync_all()
}

fn make(folder: &Path) -> Result<(), SpareError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(SpareError::file(folder))
}

/// When the newest file of a folder was written, Unix seconds.
fn newest(folder: &Path) -> Option<i64> {
    let entries = fs::read_dir(folder).ok()?;
    let times = entries.flatten().filter_map(|entry| entry.metadata().ok()?.modified().ok());
    let since = times.max()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Bytes of all files below.
pub(crate) fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => bytes_in(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

#[derive(Deserialize)]
struct Create {
    #[serde(default)]
    create: bool,
}

/// The folders are there already.
async fn create(Query(asked): Query<Create>) -> StatusCode {
    if asked.create { StatusCode::OK } else { StatusCode::BAD_REQUEST }
}

async fn never() -> Refused {
    refused(StatusCode::FORBIDDEN, "nothing can be removed from a spare's store from outside")
}

async fn read_config(State(store): State<Store>, headers: HeaderMap) -> Result<Response, Refused> {
    answer(&store.0.folder.join("config"), &headers).await
}

async fn write_config(
    State(store): State<Store>,
    headers: HeaderMap,
    body: Body,
) -> Result<(), Refused> {
    store.take(&store.0.folder.join("config"), None, &headers, LARGEST_OTHER, body).await
}

async fn read(
    State(store): State<Store>,
    In((kind, name)): In<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    answer(&store.path(&kind, &name)?, &headers).await
}

async fn write(
    State(store): State<Store>,
    In((kind, name)): In<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<(), Refused> {
    let path = store.path(&kind, &name)?;
    let (largest, most) = match kind.as_str() {
        "data" => (LARGEST_PACK, MOST_PACKS / 256),
        "index" => (LARGEST_INDEX, MOST_OTHERS),
        "locks" => (LARGEST_OTHER, MOST_LOCKS),
        _ => (LARGEST_OTHER, MOST_OTHERS),
    };
    let there = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    if there.is_some_and(|entries| entries.count() >= most) {
        return Err(refused(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("Insufficient Storage: there are too many files in {kind}"),
        ));
    }
    store.take(&path, Some(&name), &headers, largest, body).await?;
    if kind == "snapshots" {
        store.0.last.store(jiff::Timestamp::now().as_second(), Ordering::Relaxed);
    }
    Ok(())
}

async fn remove(
    State(store): State<Store>,
    In((kind, name)): In<(String, String)>,
) -> Result<(), Refused> {
    let path = store.path(&kind, &name)?;
    if kind != "locks" {
        return Err(never().await);
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(refused(StatusCode::NOT_FOUND, "there is no such lock"))
        }
        Err(error) => {
            log::error!("a lock could not be removed: {error}");
            Err(refused(StatusCode::INTERNAL_SERVER_ERROR, "the lock could not be removed"))
        }
    }
}

#[derive(Serialize)]
struct Listed {
    name: String,
    size: u64,
}

async fn list(
    State(store): State<Store>,
    In(kind): In<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    if !KINDS.contains(&kind.as_str()) {
        return Err(refused(StatusCode::NOT_FOUND, "a store has no such files"));
    }
    let folder = store.0.folder.join(&kind);
    let found = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        files(&folder, &mut found);
        found
    });
    let found = found.await.unwrap_or_default();
    let sized = headers.get(header::ACCEPT).is_some_and(|accept| accept == V2);
    Ok(match sized {
        true => ([(header::CONTENT_TYPE, V2)], json(&found)).into_response(),
        false => {
            let names: Vec<&str> = found.iter().map(|listed| listed.name.as_str()).collect();
            ([(header::CONTENT_TYPE, V1)], json(&names)).into_response()
        }
    })
}

fn json<T: Serialize>(list: &[T]) -> Vec<u8> {
    serde_json::to_vec(list).expect("names and sizes are JSON")
}

fn files(folder: &Path, found: &mut Vec<Listed>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(data) if data.is_dir() => files(&entry.path(), found),
            Ok(data) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.push(Listed { name, size: data.len() });
            }
            Err(_) => {}
        }
    }
}

/// A file, or the part of it that is asked for; a `HEAD` gets no body from the layers above.
async fn answer(path: &Path, headers: &HeaderMap) -> Result<Response, Refused> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => refused(StatusCode::NOT_FOUND, "there is no such file"),
        _ => {
            log::error!("a backup's file could not be read: {error}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "the spare could not read it")
        }
    };
    let mut file = tokio::fs::File::open(path).await.map_err(missing)?;
    let length = file.metadata().await.map_err(missing)?.len();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some(asked) = asked else {
        let body = Body::from_stream(tokio_util::io::ReaderStream::new(file));
        return Ok(([(header::CONTENT_LENGTH, length)], body).into_response());
    };
    let (from, to) = range(asked, length).ok_or_else(|| {
        refused(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {length} bytes"))
    })?;
    file.seek(io::SeekFrom::Start(from)).await.map_err(missing)?;
    let many = to - from + 1;
    let body = Body::from_stream(tokio_util::io::ReaderStream::new(file.take(many)));
    let told = [
        (header::CONTENT_RANGE, format!("bytes {from}-{to}/{length}")),
        (header::CONTENT_LENGTH, many.to_string()),
    ];
    Ok((StatusCode::PARTIAL_CONTENT, told, body).into_response())
}

/// The first and the last byte of `bytes=A-B`, `bytes=A-` or `bytes=-N`.
fn range(asked: &str, length: u64) -> Option<(u64, u64)> {
    let (from, to) = asked.strip_prefix("bytes=")?.split_once('-')?;
    let last = length.checked_sub(1)?;
    let (from, to) = match (from, to) {
        ("", many) => (length.saturating_sub(many.parse::<u64>().ok().filter(|n| *n > 0)?), last),
        (from, "") => (from.parse().ok()?, last),
        (from, to) => (from.parse().ok()?, to.parse::<u64>().ok()?.min(last)),
    };
    (from <= to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_within_the_file_or_none() {
        assert_eq!(range("bytes=0-9", 100), Some((0, 9)));
        assert_eq!(range("bytes=90-", 100), Some((90, 99)));
        assert_eq!(range("bytes=-10", 100), Some((90, 99)));
        assert_eq!(range("bytes=-1000", 100), Some((0, 99)));
        assert_eq!(range("bytes=5-1000", 100), Some((5, 99)));
        for none in
            ["bytes=100-", "bytes=9-5", "bytes=-0", "bytes=a-b", "0-9", "bytes=0-9,20-29", ""]
        {
            assert_eq!(range(none, 100), None, "{none}");
        }
        assert_eq!(range("bytes=0-", 0), None);
    }

    proptest::proptest! {
        #[test]
        fn no_name_leads_out_of_the_store(kind in ".{0,20}", name in ".{0,80}") {
            static STORE: std::sync::OnceLock<(tempfile::TempDir, Store)> = std::sync::OnceLock::new();
            let (folder, store) = STORE.get_or_init(|| {
                let folder = tempfile::tempdir().unwrap();
                let store = Store::open(folder.path(), folder.path(), 50).unwrap();
                (folder, store)
            });
            if let Ok(path) = store.path(&kind, &name) {
                proptest::prop_assert!(path.starts_with(folder.path()));
                proptest::prop_assert!(!path.to_string_lossy().contains(".."));
            }
        }
    }
}
