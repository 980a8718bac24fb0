use std::io;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use zbus::connection::Builder;
use zbus::{Connection, MatchRule, Message, MessageStream, Type, fdo, message};

/// How long the other side may take to answer. Asking polkit is part of it.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two tries to reach a bus that is away.
const AGAIN: Duration = Duration::from_millis(250);
/// Waiting signals; they say nothing but "look again", so that few are plenty.
const QUEUE: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// Somebody to call on the bus.
pub(crate) struct Place<'a> {
    pub(crate) service: &'static str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'static str,
}

/// The manager of units.
pub(crate) const MANAGER: Place<'static> = Place {
    service: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

type Connecting = Pin<Box<dyn Future<Output = zbus::Result<Connection>> + Send>>;

/// A line to the system's message bus, laid again whenever it broke. Cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    connect: Box<dyn Fn() -> Connecting + Send + Sync>,
    line: Mutex<Option<Line>>,
    bell: watch::Sender<u64>,
}

struct Line {
    connection: Connection,
    listening: Vec<JoinHandle<()>>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

impl Bus {
    /// The bus of this machine. Nothing is connected before the first call.
    pub fn system() -> Self {
        Self::over(|| Builder::system().method_timeout(ANSWER).build())
    }

    /// A bus that is reached in another way.
    pub fn over<C>(connect: impl Fn() -> C + Send + Sync + 'static) -> Self
    where
        C: Future<Output = zbus::Result<Connection>> + Send + 'static,
    {
        let connect = Box::new(move || -> Connecting { Box::pin(connect()) });
        Self(Arc::new(Inner { connect, line: Mutex::default(), bell: watch::Sender::new(0) }))
    }

    /// Rings when something that we look after may have changed, also because the line broke.
    pub(crate) fn bell(&self) -> watch::Receiver<u64> {
        self.0.bell.subscribe()
    }

    /// Calls a method and reads its answer.
    pub(crate) async fn ask<B, R>(
        &self,
        place: &Place<'_>,
        method: &str,
        body: &B,
        patience: Duration,
    ) -> zbus::Result<R>
    where
        B: serde::Serialize + Type + Sync,
        R: DeserializeOwned + Type,
    {
        self.call(place, method, body, patience).await?.body().deserialize()
    }

    /// Calls a method. As long as the bus is away it is tried again, until `patience` is over.
    pub(crate) async fn call<B>(
        &self,
        place: &Place<'_>,
        method: &str,
        body: &B,
        patience: Duration,
    ) -> zbus::Result<Message>
    where
        B: serde::Serialize + Type + Sync,
    {
        let begun = Instant::now();
        let mut told = false;
        loop {
            let error = match self.call_once(place, method, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) if !is_away(&error) || begun.elapsed() >= patience => return Err(error),
                Err(error) => error,
            };
            if !told {
                log::warn!("the message bus does not answer ({error}); trying until it does");
                told = true;
            }
            sleep(AGAIN).await;
        }
    }

    async fn call_once<B>(&self, place: &Place<'_>, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + Type + Sync,
    {
        let Place { service, path, interface } = *place;
        let connection = self.line().await?;
        // Without the flag that lets somebody be asked for a password: nobody sits there.
        connection.call_method(Some(service), path, Some(interface), method, body).await
    }

    /// The connection that there is, or a new one.
    async fn line(&self) -> zbus::Result<Connection> {
        let mut line = self.0.line.lock().await;
        if let Some(Line { connection, .. }) = &*line
            && !connection.is_closed()
        {
            return Ok(connection.clone());
        }
        *line = None;
        let late = |_| zbus::Error::from(io::Error::from(io::ErrorKind::TimedOut));
        let connecting = tokio::time::timeout(ANSWER, (self.0.connect)());
        let connection = connecting.await.map_err(late)??;
        let mut listening = Vec::new();
        for rule in worth_a_look()? {
            let news = MessageStream::for_match_rule(rule, &connection, Some(QUEUE)).await?;
            listening.push(tokio::spawn(ring(news, self.clone())));
        }
        *line = Some(Line { connection: connection.clone(), listening });
        drop(line);
        // systemd sends no signals to those who did not ask for them; looking now and then still
        // works where it refuses.
        let Place { service, path, interface } = MANAGER;
        let asked =
            connection.call_method(Some(service), path, Some(interface), "Subscribe", &()).await;
        if let Err(error) = asked {
            log::debug!("systemd sends no news: {error}");
        }
        Ok(connection)
    }
}

/// What the bell rings for: a unit changed, the machine is about to go down.
fn worth_a_look() -> zbus::Result<[MatchRule<'static>; 2]> {
    let signal = || MatchRule::builder().msg_type(message::Type::Signal);
    Ok([
        signal()
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path_namespace("/org/freedesktop/systemd1/unit")
            .build()?,
        signal()
            .interface("org.freedesktop.login1.Manager")
            .member("PrepareForShutdown")
            .build()?,
    ])
}

async fn ring(mut news: MessageStream, bus: Bus) {
    while let Some(Ok(_)) = news.next().await {
        bus.0.bell.send_modify(|rung| *rung += 1);
    }
    bus.0.bell.send_modify(|rung| *rung += 1);
}

/// Whether an error says something about the bus, and nothing about what was asked.
fn is_away(error: &zbus::Error) -> bool {
    use zbus::Error::{Connection, FDO, Handshake, InputOutput};
    match error {
        InputOutput(_) | Handshake(_) | Connection(..) => true,
        FDO(error) => matches!(
            **error,
            fdo::Error::ServiceUnknown(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::NoServer(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::Disconnected(_)
        ),
        _ => false,
    }
}

/// An error of the bus as the end of a sentence: what it means and what to do.
pub(crate) fn say(error: &zbus::Error) -> String {
    let refused =
        "this user may not do that; are Polder's polkit rules in place, and does polkit run?";
    match error {
        zbus::Error::MethodError(name, words, _) => {
            let words = words.clone().unwrap_or_else(|| name.to_string());
            match name.as_str() {
                "org.freedesktop.systemd1.NoSuchUnit"
                | "org.freedesktop.systemd1.LoadFailed"
                | "org.freedesktop.systemd1.BadUnitSetting"
                | "org.freedesktop.systemd1.UnitMasked" => {
                    format!("{words} Is the unit file in place and untouched?")
                }
                "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => refused.to_owned(),
                _ => words,
            }
        }
        zbus::Error::FDO(error) => match &**error {
            fdo::Error::AccessDenied(_)
            | fdo::Error::AuthFailed(_)
            | fdo::Error::InteractiveAuthorizationRequired(_) => refused.to_owned(),
            other => other.to_string(),
        },
        away if is_away(away) => format!("the message bus is away ({away}); is dbus running?"),
        other => other.to_string(),
    }
}
