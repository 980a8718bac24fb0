//! A connection to upsd: [`crate::protocol`] over TCP.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use polder_site::UpsAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::protocol::{Answer, Ask, Garbled, Listener};
use crate::reading::Reading;

/// upsd answers from memory.
const WITHIN: Duration = Duration::from_secs(3);

/// upsd could not be asked, or did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum UpsdError {
    /// It cannot be reached.
    #[error("nobody answers at {host} port {port} ({source}); is upsd running there?")]
    Connect {
        /// Which machine.
        host: String,
        /// Which port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to upsd broke ({0})")]
    Io(#[from] io::Error),
    /// No answer.
    #[error("upsd does not answer")]
    Slow,
    /// Not an answer.
    #[error("what answers is no upsd: {0}")]
    Garbled(#[from] Garbled),
    /// It said no.
    #[error("{}", refusal(.0))]
    Refused(String),
}

/// upsd's word for a refusal, in words that say what to do.
fn refusal(word: &str) -> String {
    match word {
        "UNKNOWN-UPS" => "upsd has no UPS of that name; look at its ups.conf".to_owned(),
        "DATA-STALE" => "the driver does not hear the UPS; is its cable in?".to_owned(),
        "DRIVER-NOT-CONNECTED" => "the driver of the UPS does not run".to_owned(),
        "ACCESS-DENIED" | "INVALID-PASSWORD" | "INVALID-USERNAME" | "PASSWORD-REQUIRED"
        | "USERNAME-REQUIRED" => {
            "upsd does not let this box do that; check power.user, the password and upsd.users"
                .to_owned()
        }
        "CMD-NOT-SUPPORTED" | "VAR-NOT-SUPPORTED" => "the UPS cannot do that".to_owned(),
        other => format!("upsd said {other}"),
    }
}

/// A connection to one upsd, about one UPS.
#[derive(Debug)]
pub struct Upsd {
    stream: TcpStream,
    ups: String,
}

impl Upsd {
    /// Connects.
    pub async fn connect(at: &UpsAddress) -> Result<Self, UpsdError> {
        let fail =
            |source| UpsdError::Connect { host: at.host().to_owned(), port: at.port(), source };
        let connecting = TcpStream::connect((at.host(), at.port()));
        let stream = tokio::time::timeout(WITHIN, connecting).await.map_err(|_| UpsdError::Slow)?;
        let stream = stream.map_err(fail)?;
        let _ = stream.set_nodelay(true);
        Ok(Self { stream, ups: at.name().to_owned() })
    }

    /// Asks one question.
    pub async fn ask(&mut self, ask: &Ask) -> Result<Answer, UpsdError> {
        let asked = async {
            self.stream.write_all(ask.line().as_bytes()).await?;
            let (mut listener, mut buffer) = (Listener::to(ask), [0; 4096]);
            loop {
                let n = self.stream.read(&mut buffer).await?;
                if n == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                match listener.hear(&buffer[..n])? {
                    Some(Answer::Refused(word)) => return Err(UpsdError::Refused(word)),
                    Some(answer) => return Ok(answer),
                    None => {}
                }
            }
        };
        tokio::time::timeout(WITHIN, asked).await.unwrap_or(Err(UpsdError::Slow))
    }

    /// Says who asks.
    pub async fn sign_in(&mut self, user: &str, password: &str) -> Result<(), UpsdError> {
        self.ask(&Ask::Username(user.to_owned())).await?;
        self.ask(&Ask::Password(password.to_owned())).await.map(drop)
    }

    /// What the UPS says about itself.
    pub async fn reading(&mut self) -> Result<Reading, UpsdError> {
        Reading::of(&self.variables().await?)
            .ok_or_else(|| UpsdError::Refused("DATA-STALE".to_owned()))
    }

    /// The same in upsd's own words.
    pub async fn variables(&mut self) -> Result<BTreeMap<String, String>, UpsdError> {
        self.list(&Ask::ListVar(self.ups.clone())).await
    }

    /// The commands that it takes.
    pub async fn commands(&mut self) -> Result<Vec<String>, UpsdError> {
        Ok(self.list(&Ask::ListCmd(self.ups.clone())).await?.into_keys().collect())
    }

    /// Counts on this UPS from now on, until the connection ends or [`Self::log_out`].
    pub async fn log_in(&mut self) -> Result<(), UpsdError> {
        self.ask(&Ask::Login(self.ups.clone())).await.map(drop)
    }

    /// Counts on it no more: this machine is done.
    pub async fn log_out(mut self) -> Result<(), UpsdError> {
        self.ask(&Ask::Logout).await.map(drop)
    }

    /// How many machines count on it.
    pub async fn logins(&mut self) -> Result<u32, UpsdError> {
        match self.ask(&Ask::NumLogins(self.ups.clone())).await? {
            Answer::Value(number) => Ok(number.trim().parse().unwrap_or(0)),
            other => Err(Garbled::Line(format!("{other:?}")).into()),
        }
    }

    /// Tells everybody that its power goes. There is no way back but a restart of upsd.
    pub async fn force(&mut self) -> Result<(), UpsdError> {
        match self.ask(&Ask::Primary(self.ups.clone())).await {
            // Before 2.8 it was called otherwise.
            Err(UpsdError::Refused(word)) if word == "UNKNOWN-COMMAND" => {
                self.ask(&Ask::Master(self.ups.clone())).await?;
            }
            other => drop(other?),
        }
        self.ask(&Ask::Fsd(self.ups.clone())).await.map(drop)
    }

    /// Has the UPS do something.
    pub async fn command(&mut self, name: &str) -> Result<(), UpsdError> {
        self.ask(&Ask::InstCmd(self.ups.clone(), name.to_owned())).await.map(drop)
    }

    /// Sets one of its variables.
    pub async fn set(&mut self, name: &str, value: &str) -> Result<(), UpsdError> {
        let ask = Ask::SetVar(self.ups.clone(), name.to_owned(), value.to_owned());
        self.ask(&ask).await.map(drop)
    }

    /// Every UPS that this upsd has, with what it is.
    pub async fn list_ups(&mut self) -> Result<BTreeMap<String, String>, UpsdError> {
        self.list(&Ask::ListUps).await
    }

    async fn list(&mut self, ask: &Ask) -> Result<BTreeMap<String, String>, UpsdError> {
        match self.ask(ask).await? {
            Answer::List(list) => Ok(list),
            other => Err(Garbled::Line(format!("{other:?}")).into()),
        }
    }
}
