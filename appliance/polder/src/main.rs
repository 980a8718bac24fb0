//! `polder`: everything that runs on one box, and everything that somebody at the machine types.
//! One file per subcommand; what they do is in the crates that they call.

mod audit;
mod backup;
mod bakeoff;
mod boxes;
mod certificate;
mod claim;
mod console;
mod engine;
mod follow;
mod foreign;
mod gateway;
mod greeting;
mod health;
mod image;
mod install;
mod kernels;
mod notify;
mod part;
mod plan;
mod ports;
mod power;
mod recipes;
mod relay;
mod screen;
mod seal;
mod seed;
mod shell;
mod site;
mod slots;
mod spare;
mod state;
mod status;
mod supervise;
mod support;
mod synthetic;
mod takeover;
mod up;
mod update;
mod wan;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Turns one machine into an inference box that 5 to 50 people own together.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100)]
#[command(
    after_help = "Example:\n  polder up            start a box here; it prints where to go next"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Status(status::Status),
    Health(health::Health),
    Support(support::Support),
    Claim(claim::Claim),
    Plan(plan::Plan),
    Ports(ports::Ports),
    Power(power::Power),
    Bakeoff(bakeoff::Bakeoff),
    Recipes(recipes::Recipes),
    Boxes(boxes::Boxes),
    Weights(weights::Weights),
    Site(site::Site),
    Audit(audit::Audit),
    Backup(backup::Backup),
    Spare(spare::Spare),
    Supervise(supervise::Supervise),
    Gateway(gateway::Gateway),
    Engine(engine::Engine),
    Wan(wan::Wan),
    Relay(relay::Relay),
    Screen(screen::Screen),
    Update(update::Update),
    Slots(slots::Slots),
    Shell(shell::Shell),
    Certificate(certificate::Certificate),
    Seal(seal::Seal),
    Image(image::Image),
    Install(install::Install),
    Seed(seed::Seed),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(up) => up.run(),
        Command::Status(status) => status.run(),
        Command::Health(health) => health.run(),
        Command::Support(support) => support.run(),
        Command::Claim(claim) => claim.run(),
        Command::Plan(plan) => plan.run(),
        Command::Ports(ports) => ports.run(),
        Command::Power(power) => power.run(),
        Command::Bakeoff(bakeoff) => bakeoff.run(),
        Command::Recipes(recipes) => recipes.run(),
        Command::Boxes(boxes) => boxes.run(),
        Command::Weights(weights) => weights.run(),
        Command::Site(site) => site.run(),
        Command::Audit(audit) => audit.run(),
        Command::Backup(backup) => backup.run(),
        Command::Spare(spare) => spare.run(),
        Command::Supervise(supervise) => supervise.run(),
        Command::Gateway(gateway) => gateway.run(),
        Command::Engine(engine) => engine.run(),
        Command::Wan(wan) => wan.run(),
        Command::Relay(relay) => relay.run(),
        Command::Screen(screen) => screen.run(),
        Command::Update(update) => update.run(),
        Command::Slots(slots) => slots.run(),
        Command::Shell(shell) => shell.run(),
        Command::Certificate(certificate) => certificate.run(),
        Command::Seal(seal) => seal.run(),
        Command::Image(image) => image.run(),
        Command::Install(install) => install.run(),
        Command::Seed(seed) => seed.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let sentence = console::sentence(&error);
            console::complain(format!("error: {sentence}"));
            notify::failed(&sentence);
            // An engine says by it what it ended of.
            exit_status(&error).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn exit_status(error: &anyhow::Error) -> Option<u8> {
    use polder_engine_server::EngineError;
    if error.is::<polder_planner::ShareError>() {
        return Some(EngineError::DOES_NOT_FIT);
    }
    error.downcast_ref().map(EngineError::exit_status)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn an_engine_whose_budget_is_too_small_ends_as_one_that_does_not_fit() {
        let (title, what) = ("A model".to_owned(), "weights".to_owned());
        let name = "fast".to_owned();
        let small = polder_planner::ShareError::Small { name, title, what, needed: 2, budget: 1 };
        assert_eq!(exit_status(&small.into()), Some(78));
        assert_eq!(exit_status(&anyhow::anyhow!("something else")), None);
    }

    #[test]
    fn every_command_has_a_sentence_and_an_example() {
        Cli::command().debug_assert();
        fn check(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no sentence");
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains("Example"), "{path} has no example");
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                check(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        check(&Cli::command(), "polder");
    }
}
