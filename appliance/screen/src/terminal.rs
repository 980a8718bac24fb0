//! One terminal: the machine's screen with its keyboard, or its serial line.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::mpsc;

/// Where nothing is known of a terminal's width; a serial line does not tell.
const USUAL_WIDTH: usize = 80;

/// A terminal that is painted, and whose keys are heard.
#[derive(Debug)]
pub struct Terminal {
    file: Arc<File>,
    shown: Option<String>,
}

impl Terminal {
    /// Takes a terminal over. Each key is sent to `keys` with `number`; a thread waits for them,
    /// because a terminal cannot be waited for like a socket.
    pub fn open(terminal: OwnedFd, number: usize, keys: mpsc::Sender<(usize, u8)>) -> Self {
        let file = Arc::new(File::from(terminal));
        if let Err(error) = key_by_key(&file) {
            log::warn!("terminal {number} is no terminal ({error}); it is only written to");
        }
        let read = file.clone();
        let listen = move || {
            let mut key = [0];
            // A serial line that hangs up ends this; the others go on.
            while let Ok(1) = (&*read).read(&mut key) {
                if keys.blocking_send((number, key[0])).is_err() {
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name("keys".to_owned()).spawn(listen);
        if let Err(error) = spawned {
            log::warn!("the keys of terminal {number} cannot be heard: {error}");
        }
        Self { file, shown: None }
    }

    /// Columns, as far as is known.
    pub fn width(&self) -> usize {
        match tcgetwinsize(&self.file) {
            Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
            _ => USUAL_WIDTH,
        }
    }

    /// Shows this text, if it is not there already. A terminal that cannot be written to is left alone.
    pub fn show(&mut self, text: &str) {
        if self.shown.as_deref() == Some(text) {
            return;
        }
        // Clear all, begin at the top; a terminal in raw mode needs both parts of a line's end.
        let page = format!("\x1b[2J\x1b[H{}\r\n", text.replace('\n', "\r\n"));
        if let Err(error) = (&*self.file).write_all(page.as_bytes()) {
            log::debug!("a terminal could not be written to: {error}");
        }
        self.shown = Some(text.to_owned());
    }
}

/// Keys come one by one and are not echoed.
fn key_by_key(file: &File) -> rustix::io::Result<()> {
    let mut mode = tcgetattr(file)?;
    mode.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
    mode.special_codes[SpecialCodeIndex::VMIN] = 1;
    mode.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(file, OptionalActions::Now, &mode)
}
