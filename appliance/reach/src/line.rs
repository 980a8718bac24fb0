//! What a box and a relay say to each other: HTTP/2 over TLS, in which the relay asks, over the connection that the box made.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a box is told from a caller, before anything is said.
pub(crate) const PROTOCOL: &[u8] = b"polder-relay/1";
/// What the relay asks first: who are you? The answer has both headers.
pub(crate) const WHO: &str = "/who";
/// The box, as the relay calls it.
pub(crate) const ID: &str = "x-polder-box";
/// Its secret, as its pass has it.
pub(crate) const SECRET: &str = "x-polder-secret";
/// What the relay says then, with a [`Welcome`].
pub(crate) const WELCOME: &str = "/welcome";
/// Or this, with a sentence.
pub(crate) const REFUSED: &str = "/refused";
/// Where a caller connected from, of a `CONNECT`; the authority is the name that they want.
pub(crate) const CALLER: &str = "x-polder-caller";
/// What it asks again and again: are you still there?
pub(crate) const PING_PATH: &str = "/ping";
/// How much the box would rather have callers over another line, from 0: said with who it is and in every answer to a ping.
pub(crate) const RANK: &str = "x-polder-rank";
/// Said in answers to a ping by a box that wants to know whether callers come through to it without a relay: the port, and the SHA-256
/// of the certificate that answers there. The relay knocks at the address that the line comes from, and nowhere else.
pub(crate) const TRY: &str = "x-polder-try";
/// What came of it, said with the next ping: the port, and `open` or `closed`.
pub(crate) const TRIED: &str = "x-polder-tried";
/// How often it knocks, and at least how long after the last time where the box wants it done elsewhere.
pub(crate) const KNOCK: Duration = Duration::from_secs(20);
pub(crate) const KNOCK_ELSEWHERE: Duration = Duration::from_secs(2);
/// How often it asks that, and how long after the box's last answer it gives the line up. The box waits a question longer for the relay.
pub(crate) const PING: Duration = Duration::from_secs(1);
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// Bytes that may be on their way of one caller, and of all together: who takes nothing holds up nobody else.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
pub(crate) const LINE_WINDOW: u32 = 256 << 20;
/// Longest sentence or list that either side reads.
pub(crate) const LONGEST: usize = 64 << 10;

/// What a relay tells a box that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Names that callers find it by.
    pub names: Vec<String>,
    /// Where its line comes from, as the relay sees it.
    pub seen: SocketAddr,
}
