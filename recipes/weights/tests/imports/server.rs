//! A small real web server on loopback, with the faults that servers have.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) is: Arc<State>,
}

/// What the server has and how it behaves; may change while it runs.
pub(crate) struct State {
    pub(crate) files: Mutex<HashMap<String, Vec<u8>>>,
    pub(crate) redirects: Mutex<HashMap<String, String>>,
    pub(crate) gives_parts: AtomicBool,
    pub(crate) gives_length: AtomicBool,
    pub(crate) mark: Mutex<Option<String>>,
    /// After this many requests the mark and the bytes change.
    pub(crate) changes_at: AtomicU64,
    /// A body is cut after this many bytes; 0 is never.
    pub(crate) cut_after: AtomicU64,
    /// Answers of the next requests, before it behaves again.
    pub(crate) failures: Mutex<VecDeque<u16>>,
    pub(crate) slow: Mutex<Duration>,
    /// The next body stops half-way without an end.
    pub(crate) hangs: AtomicBool,
    /// Requests that came as to a proxy.
    pub(crate) tunnels: AtomicU64,
    /// Bytes of bodies that went out.
    pub(crate) sent: AtomicU64,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Server {
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Self {
        Self::serve(files, "http", |stream| Some(Box::new(stream)))
    }
    pub(crate) fn start_tls(files: &[(&str, &[u8])], config: Arc<rustls::ServerConfig>) -> Self {
        Self::serve(files, "https", move |stream| {
            let connection = rustls::ServerConnection::new(config.clone()).ok()?;
            Some(Box::new(rustls::StreamOwned::new(connection, stream)))
        })
    }
    fn serve(
        files: &[(&str, &[u8])],
        scheme: &str,
        wrap: impl Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
        let is = Arc::new(State {
            files: Mutex::new(files.collect()),
            redirects: Mutex::default(),
            gives_parts: true.into(),
            gives_length: true.into(),
            mark: Mutex::new(Some("\"v1\"".to_owned())),
            changes_at: u64::MAX.into(),
            cut_after: 0.into(),
            failures: Mutex::default(),
            slow: Mutex::default(),
            hangs: false.into(),
            tunnels: 0.into(),
            sent: 0.into(),
            asked: Mutex::default(),
        });
        let state = is.clone();
        let wrap = Arc::new(wrap);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, wrap) = (state.clone(), wrap.clone());
                std::thread::spawn(move || {
                    if let Some(stream) = wrap(stream) {
                        let _ = state.answer(stream);
                    }
                });
            }
        });
        Self { url, is }
    }
    pub(crate) fn sent(&self) -> u64 {
        self.is.sent.load(SeqCst)
    }
    pub(crate) fn requests(&self) -> usize {
        self.is.asked.lock().unwrap().len()
    }
}

pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn head(stream: &mut impl BufRead) -> std::io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? <= 2 {
            return Ok(lines);
        }
        lines.push(line.trim_end().to_owned());
    }
}

impl State {
    fn answer(&self, stream: Box<dyn Stream>) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut lines = head(&mut stream)?;
        if lines.first().is_some_and(|line| line.starts_with("CONNECT files.lan:80 ")) {
            // As a proxy it leads everyone to itself.
            stream.get_mut().write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            self.tunnels.fetch_add(1, SeqCst);
            lines = head(&mut stream)?;
        }
        let header = |name: &str| {
            lines.iter().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").to_owned();
        let count = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(format!("{path} {}", header("range").unwrap_or_default()));
            asked.len() as u64
        };
        if count == self.changes_at.load(SeqCst) {
            *self.mark.lock().unwrap() = Some("\"v2\"".to_owned());
            for bytes in self.files.lock().unwrap().values_mut() {
                bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
            }
        }
        let out = stream.get_mut();
        if let Some(status) = self.failures.lock().unwrap().pop_front() {
            return write!(
                out,
                "HTTP/1.1 {status} No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
        }
        if let Some(to) = self.redirects.lock().unwrap().get(&path) {
            return write!(
                out,
                "HTTP/1.1 302 Found\r\nlocation: {to}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
        }
        let Some(bytes) = self.files.lock().unwrap().get(&path).cloned() else {
            return write!(
                out,
                "HTTP/1.1 404 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
        };
        let mark = self.mark.lock().unwrap().clone();
        let current = header("if-range").is_none() || header("if-range") == mark;
        let range = header("range").filter(|_| current && self.gives_parts.load(SeqCst));
        let range = range.and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            Some(first..(last + 1).min(bytes.len()))
        });
        let total = bytes.len();
        let (mut head, body) = match range {
            Some(range) if range.start >= total => {
                return write!(
                    out,
                    "HTTP/1.1 416 No\r\ncontent-range: bytes */{total}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                );
            }
            Some(range) => (
                format!(
                    "HTTP/1.1 206 Part\r\ncontent-range: bytes {}-{}/{total}\r\n",
                    range.start,
                    range.end - 1
                ),
                &bytes[range],
            ),
            None => ("HTTP/1.1 200 OK\r\n".to_owned(), &bytes[..]),
        };
        if let Some(mark) = mark {
            head += &format!("etag: {mark}\r\n");
        }
        if self.gives_length.load(SeqCst) {
            head += &format!("content-length: {}\r\n", body.len());
        }
        write!(out, "{head}connection: close\r\n\r\n")?;
        let cut = match self.cut_after.load(SeqCst) {
            0 => body.len(),
            cut => body.len().min(cut as usize),
        };
        if body.len() > 1 && self.hangs.swap(false, SeqCst) {
            out.write_all(&body[..body.len() / 2])?;
            out.flush()?;
            std::thread::sleep(Duration::from_secs(60));
        }
        let slow = *self.slow.lock().unwrap();
        for block in body[..cut].chunks(4096) {
            std::thread::sleep(slow);
            out.write_all(block)?;
            self.sent.fetch_add(block.len() as u64, SeqCst);
        }
        out.flush()
    }
}
