//! What a part tells the init system that started it: that it answers, how it is, that it lives,
//! and what it failed of. Where no init system listens, all of this does nothing.
//!
//! A part asks itself what its supervisor asks it, over its own socket. The answer proves more than
//! a timer would: a part whose runtime or socket hangs says nothing, and its watchdog ends it.

use std::path::Path;
use std::time::Duration;

use polder_control::{Client, Reply, Request, Sockets};
use polder_supervisor::{Health, Part};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::sleep;

use polder_supervisor::Ending;

/// Between two questions to itself while a part is not ready.
const SOON: Duration = Duration::from_millis(250);
/// The same once it is ready, where no watchdog asks for more.
const NOW_AND_THEN: Duration = Duration::from_secs(10);
/// What a part needs at most, from the moment that it is told to end.
const LAST_WORK: Duration = Duration::from_secs(45);

/// Who is asked how it is.
#[derive(Debug, Clone)]
pub(crate) enum Who {
    /// The supervisor.
    Supervisor,
    /// A part of it.
    Part(Part),
}

/// Tells the init system how this process is, until it ends. To be spawned by it.
pub(crate) async fn keep_telling(who: Who, state: &Path, ending: watch::Receiver<Ending>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let sockets = Sockets::of(state);
    // Half of the time is what systemd recommends; a late answer must fit as well.
    let third = sd_notify::watchdog_enabled().map(|limit| limit / 3);
    let rhythm = third.unwrap_or(NOW_AND_THEN).min(NOW_AND_THEN);
    let (mut ready, mut said) = (false, String::new());
    loop {
        let mut over = ending.clone();
        let health = tokio::select! {
            biased;
            _ = over.wait_for(|e| *e != Ending::No) => break,
            health = ask(&who, &sockets, rhythm) => health,
        };
        let status = words(&health);
        let mut news = Vec::new();
        if !matches!(health, Health::Silent(_)) {
            news.push(NotifyState::Watchdog);
            if !ready {
                news.push(NotifyState::Ready);
                ready = true;
            }
        }
        if status != said {
            news.push(NotifyState::Status(&status));
        }
        tell(&news);
        said.clone_from(&status);
        let pause = if matches!(health, Health::Ready(_)) { rhythm } else { SOON.min(rhythm) };
        tokio::select! {
            _ = over.wait_for(|e| *e != Ending::No) => break,
            () = sleep(pause) => {}
        }
    }
    // A supervisor that ends because its machine does is ended by systemd soon after; one that calls itself stopping
    // before that is never sent the signal, and is waited for in vain.
    if matches!(who, Who::Part(_)) {
        tell(&[NotifyState::Stopping]);
    }
    tell(&[
        NotifyState::Status("finishing what it has"),
        NotifyState::ExtendTimeoutUsec(LAST_WORK.as_micros() as u32),
    ]);
    // Its door is closed by now; that this goes on proves that the rest does.
    loop {
        tell(&[NotifyState::Watchdog]);
        sleep(rhythm).await;
    }
}

/// What the process failed of, for whoever started it.
pub(crate) fn failed(sentence: &str) {
    tell(&[NotifyState::Status(&format!("error: {}", sentence.replace('\n', " ")))]);
}

fn tell(news: &[NotifyState<'_>]) {
    if news.is_empty() {
        return;
    }
    if let Err(error) = sd_notify::notify(news) {
        log::debug!("the init system could not be told anything: {error}");
    }
}

async fn ask(who: &Who, sockets: &Sockets, limit: Duration) -> Health {
    match who {
        Who::Part(part) => polder_supervisor::ask(part, sockets, limit).await,
        Who::Supervisor => {
            let asked = async {
                let path = sockets.control();
                let mut client: Client<Request, Reply> = Client::connect(&path).await?;
                client.ask_within(limit, &Request::Status).await
            };
            match asked.await {
                Ok(_) => Health::Ready(None),
                Err(error) => Health::Silent(error.to_string()),
            }
        }
    }
}

/// In words for whoever looks at the unit.
fn words(health: &Health) -> String {
    match health {
        Health::Ready(None) => "answering".to_owned(),
        Health::Ready(Some(note)) => format!("answering; {note}"),
        Health::Loading(Some(progress)) => format!("{} {} %", progress.phase, progress.done),
        Health::Loading(None) => "getting ready".to_owned(),
        Health::Silent(_) => "not answering".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_words_and_a_percentage_where_there_is_one() {
        let progress = polder_control::Progress {
            phase: "loading".into(),
            done: 41,
            total: Some(100),
            unit: polder_control::Unit::Items,
            rate: None,
            eta_seconds: None,
        };
        assert_eq!(words(&Health::Loading(Some(progress))), "loading 41 %");
        assert_eq!(words(&Health::Ready(None)), "answering");
    }
}
