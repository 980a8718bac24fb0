use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use anyhow::{Context, bail};
use polder_control::{
    Actor, Client, Reply, Request, SecretText, Sockets, SpareReply, SpareRequest, SpareStatus,
};
use polder_site::{SiteChange, Spare as Wanted, SpareRole};
use polder_spare::Mounts;
use polder_supervisor::Part;

use crate::console::{bytes, complain, say};
use crate::follow::Follower;
use crate::part;
use crate::state::{State, runtime, unexpected};
use crate::takeover::Serving;

/// The part may have to find out first that the other box is away.
const PATIENT: Duration = Duration::from_secs(15);

/// Have a second box that keeps what is precious of this one and can go on in its place; or be that box.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder spare be                  on the second box: be a spare, and show a code\n  polder spare pair ash.local      on the main box: then type that code\n  polder spare status"
)]
pub(crate) struct Spare {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Be the spare of another box, and show a code that it can pair with.
    #[command(
        after_help = "Examples:\n  polder spare be\n  polder spare be --disk-percent 30 --port 9444\n\nThe code is good for ten minutes and three tries, on the local network."
    )]
    Be {
        /// Most of the disk that backups may take. [default: as it was, at first 50]
        #[arg(long, value_name = "N")]
        disk_percent: Option<u8>,
        /// Where the main box finds this one. [default: as it was, at first 8444]
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        #[command(flatten)]
        state: State,
    },
    /// Pair this box with the spare at this address. The code is read from the terminal or standard input.
    #[command(
        after_help = "Examples:\n  polder spare pair ash.local\n  polder spare pair 192.168.1.20:9444 < code.txt"
    )]
    Pair {
        /// The spare, as HOST or HOST:PORT.
        #[arg(value_name = "HOST[:PORT]")]
        address: String,
        #[command(flatten)]
        state: State,
    },
    /// Say how the two boxes are to each other.
    #[command(after_help = "Examples:\n  polder spare status\n  polder spare status --json")]
    Status {
        #[command(flatten)]
        state: State,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Part with the other box: both forget each other, and backups stay where they are.
    #[command(
        after_help = "Examples:\n  polder spare unpair\n  polder spare unpair --plan\n  polder spare unpair --stay      on a spare: forget the main box and be ready for another"
    )]
    Unpair {
        /// On a spare: stay one.
        #[arg(long, conflicts_with = "plan")]
        stay: bool,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
    #[command(flatten)]
    Serving(Serving),
    /// Keep the link between a box and its spare, on either side (its supervisor starts this).
    #[command(after_help = "Example:\n  polder spare serve --state /var/lib/polder")]
    Serve {
        #[command(flatten)]
        state: State,
    },
}

impl Spare {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Be { disk_percent, port, state } => be(&state, disk_percent, port),
            Command::Pair { address, state } => pair(&state, address),
            Command::Status { state, json } => status(&state, json),
            Command::Unpair { stay, plan, state } => unpair(&state, stay, plan),
            Command::Serving(serving) => serving.run(),
            Command::Serve { state } => serve(&state),
        }
    }
}

fn serve(state: &State) -> anyhow::Result<()> {
    let state = state.folder()?;
    let site = part::site(&state)?;
    part::run(part::one_thread()?, Part::Spare, &state, |told| {
        let at = state.clone();
        let mounts = Mounts { hand: polder_takeover::hand(&at) };
        async move { polder_spare::serve(&at, &site, mounts, told).await }
    })
}

fn be(state: &State, disk_percent: Option<u8>, port: Option<u16>) -> anyhow::Result<()> {
    let Reply::Status(status) = state.ask(&Request::Status)? else { return Err(unexpected()) };
    let mut wanted = match status.site.spare {
        Some(spare) if spare.role == SpareRole::ForAnother => spare,
        Some(_) => bail!("this box has a spare; part with it first, with `polder spare unpair`"),
        None => Wanted::of(SpareRole::ForAnother),
    };
    wanted.disk_percent = disk_percent.unwrap_or(wanted.disk_percent);
    wanted.port = port.unwrap_or(wanted.port);
    let folder = state.folder()?;
    runtime()?.block_on(Follower::of(&folder).apply(SiteChange::Spare(wanted)))?;
    match ask(state, &SpareRequest::ShowCode)? {
        SpareReply::Code { code, seconds } => {
            say(&code);
            complain(format!(
                "type it on the main box within {} minutes, on its page Spare or with `polder spare pair`; this box listens at port {}",
                seconds / 60,
                wanted.port
            ));
            Ok(())
        }
        _ => Err(unexpected()),
    }
}

fn pair(state: &State, address: String) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        complain("Type the code that the spare shows, such as 4821-otter-lamp:");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read the code")?;
    let request = Request::PairSpare { address, code: SecretText::new(&line), by: Actor::Console };
    let folder = state.folder()?;
    runtime()?.block_on(Follower::of(&folder).follow(&request))?;
    status(state, false)
}

fn status(state: &State, json: bool) -> anyhow::Result<()> {
    let Reply::Status(site) = state.ask(&Request::Status)? else { return Err(unexpected()) };
    if site.site.spare.is_none() {
        if json {
            say("null");
        } else {
            say("this box has no spare and is none; see `polder spare --help`");
        }
        return Ok(());
    }
    let SpareReply::Status(status) = ask(state, &SpareRequest::Status)? else {
        return Err(unexpected());
    };
    say(if json { serde_json::to_string_pretty(&status)? } else { text(&status) });
    Ok(())
}

fn unpair(state: &State, stay: bool, plan: bool) -> anyhow::Result<()> {
    if stay {
        let what = "ended the pairing with the main box".to_owned();
        let on = "(spare)".to_owned();
        state.ask(&Request::Record { by: Actor::Console, what, on })?;
        ask(state, &SpareRequest::Unpair)?;
        say("this box has forgotten its main box and is ready for another");
        return Ok(());
    }
    if plan {
        let Reply::Preview { plan, .. } = state.ask(&Request::Preview(SiteChange::RemoveSpare))?
        else {
            return Err(unexpected());
        };
        say(plan);
        return Ok(());
    }
    let folder = state.folder()?;
    runtime()?.block_on(Follower::of(&folder).apply(SiteChange::RemoveSpare))?;
    say("this box has no spare any more and is none");
    Ok(())
}

pub(crate) fn ask(state: &State, request: &SpareRequest) -> anyhow::Result<SpareReply> {
    let path = Sockets::of(&state.folder()?).spare();
    let asked = runtime()?.block_on(async {
        let mut part: Client<SpareRequest, SpareReply> = Client::connect(&path).await?;
        part.ask_within(PATIENT, request).await
    });
    match asked? {
        SpareReply::Refused(why) => bail!(why),
        reply => Ok(reply),
    }
}

fn text(status: &SpareStatus) -> String {
    let mut lines = Vec::new();
    let what = if status.is_spare { "the spare of" } else { "kept by the spare" };
    match &status.peer {
        None if status.is_spare => {
            lines.push("this box is a spare, and nobody has paired with it".to_owned())
        }
        None if !status.formers.is_empty() => {
            lines.push("this box is the main box, and is paired with no spare".to_owned());
        }
        None => lines.push("this box is to have a spare and is paired with none".to_owned()),
        Some(peer) => {
            let at = peer.address.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
            lines.push(format!("this box is {what} {}{at}", peer.name));
            lines.push(format!("  its fingerprint     {}", peer.fingerprint));
        }
    }
    lines.push(format!("  this box's own      {}", status.own));
    if status.peer.is_some() {
        lines.push(match status.silent {
            None => "  last heard          never yet".to_owned(),
            Some(seconds) => format!("  last heard          {seconds} s ago"),
        });
        let all = status.revoked.map(|all| format!(" of {all}")).unwrap_or_default();
        lines.push(format!("  revoked there       {}{all}", status.confirmed));
        if let Some((used, most, free)) = status.room {
            lines.push(format!(
                "  room for backups    {} of {}, {} free on the disk",
                bytes(used),
                bytes(most),
                bytes(free)
            ));
        }
        lines.push(match &status.drill {
            Some((_, Ok(found))) => format!("  last trial restore  {found}"),
            Some((_, Err(why))) => format!("  last trial restore  not good: {why}"),
            None => "  last trial restore  none yet".to_owned(),
        });
    }
    lines.extend(
        status
            .formers
            .iter()
            .map(|(name, _)| format!("  out for good        the former machine of {name}")),
    );
    lines.extend(status.formers_aside.iter().map(|path| {
        format!("  look after          the list of machines that are out for good could not be read and lies in {path}; never say `polder spare serve-anyway` at one of them")
    }));
    lines.extend(status.tries.iter().map(|failed| format!("  a try that failed   {failed}")));
    lines.extend(status.wrong().into_iter().map(|wrong| format!("  look after          {wrong}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use polder_control::SparePeer;

    use super::*;

    #[test]
    fn the_status_says_who_the_other_box_is_and_what_to_look_after() {
        let mut status = SpareStatus { own: "aaaa".into(), ..SpareStatus::default() };
        assert!(text(&status).starts_with("this box is to have a spare"));
        status.peer = Some(SparePeer {
            name: "ash".into(),
            fingerprint: "bbbb".into(),
            address: Some("ash.local:8444".into()),
            paired_at: 1,
            settled: true,
        });
        status.silent = Some(900);
        status.drill = Some((1, Err("it has no site.toml".into())));
        let text = text(&status);
        for said in [
            "kept by the spare ash at ash.local:8444",
            "bbbb",
            "900 s ago",
            "look after",
            "no site.toml",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}
