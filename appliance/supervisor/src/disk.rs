//! The disk, by way of the part that may touch it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polder_control::{Actor, Client, Disk, RecoveryKey};
use polder_seal::{Answer, Ask, Reset, SOCKET};

use crate::parts::Parts;
use crate::work::{Refusal, Work};

/// Keys are made slow on purpose, on a machine that may be busy.
const LIMIT: Duration = Duration::from_secs(240);

impl<P: Parts> Work<P> {
    /// How the disk is kept shut; nothing where there is nobody to ask.
    pub(crate) async fn disk(&self) -> Result<Option<Disk>, Refusal> {
        if !Path::new(SOCKET).exists() {
            return Ok(None);
        }
        let mut known = self.disk.lock().await;
        if known.is_none() {
            let Answer::Disk(disk) = ask(&Ask::Look).await? else { return Err(odd()) };
            *known = Some(disk);
        }
        Ok(*known)
    }

    /// Seals it; until that is confirmed it also opens as before.
    pub(crate) async fn seal(self: &Arc<Self>, by: Actor) -> Result<RecoveryKey, Refusal> {
        self.record(by, "began to seal", "the disk").await?;
        match ask(&Ask::Seal).await? {
            Answer::RecoveryKey(key) => Ok(key),
            _ => Err(odd()),
        }
    }

    /// From now on only the machine and this key open it.
    pub(crate) async fn confirm_seal(
        self: &Arc<Self>,
        key: RecoveryKey,
        by: Actor,
    ) -> Result<(), Refusal> {
        let answer = ask(&Ask::Confirm(key)).await;
        *self.disk.lock().await = None;
        match answer? {
            Answer::Done => self.record(by, "sealed", "the disk").await.map(drop),
            _ => Err(odd()),
        }
    }
}

/// Has the disk forget after a box was ended: the machine then starts again by itself. What became of it, in words; nothing where the disk
/// is its owner's affair.
pub(crate) async fn reset(reset: Reset) -> Option<String> {
    if !Path::new(SOCKET).exists() {
        return None;
    }
    Some(match ask(&Ask::Reset(reset)).await {
        Ok(_) => "the disk forgets at the start that follows".to_owned(),
        Err(why) => {
            log::error!("the disk's own key could not be destroyed: {why}");
            format!(
                "the disk's own key could not be destroyed ({why}); press f at the machine's own screen, then e"
            )
        }
    })
}

async fn ask(question: &Ask) -> Result<Answer, Refusal> {
    let socket = Path::new(SOCKET);
    let mut client: Client<Ask, Answer> =
        Client::connect(socket).await.map_err(|error| error.to_string())?;
    match client.ask_within(LIMIT, question).await.map_err(|error| error.to_string())? {
        Answer::Refused(why) => Err(why),
        answer => Ok(answer),
    }
}

fn odd() -> Refusal {
    "the part that keeps the disk shut answered something else than was asked; start the machine again"
        .to_owned()
}
