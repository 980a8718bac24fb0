//! Serves the wizard's pages over a box in memory, to look at them in a browser:
//! `cargo run -p polder-firstboot --example pages`. The code is in the printed link.
//!
//! The import moves a little with every look at it.

#[path = "../tests/fake/mod.rs"]
mod fake;

use std::net::Ipv4Addr;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::routing::get;
use fake::{CODE, Fake, fetching};
use http::header::CONTENT_TYPE;
use polder_control::{RunState, StepState};
use polder_firstboot::{Distance, Setup, Visitor};

const TOTAL: u64 = 98_362_432;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let fake = Fake::new().with_gpu();
    let moving = fake.clone();
    let mut door: Router = Setup::new(fake)
        .routes()
        .route("/", get(|| async { axum::response::Redirect::to("/setup") }))
        .layer(from_fn(move |mut request: Request, next: Next| {
            advance(&moving);
            let here = Ipv4Addr::LOCALHOST.into();
            let visitor =
                Visitor { from: here, distance: Distance::ThisMachine, reached: here, tls: false };
            request.extensions_mut().insert(visitor);
            next.run(request)
        }));
    for asset in polder_page::ASSETS.iter() {
        door =
            door.route(&asset.path, get(|| async { ([(CONTENT_TYPE, asset.kind)], asset.body) }));
    }
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("http://{}/setup#claim={CODE}", listener.local_addr()?);
    axum::serve(listener, door).await
}

/// One look further.
fn advance(fake: &Fake) {
    let steps = match fake.state().runs.first().map(|run| (&run.state, run.steps.clone())) {
        Some((RunState::Running, steps)) => steps,
        _ => return,
    };
    match steps.first() {
        Some(StepState::Running(Some(progress))) if progress.done < TOTAL - 9_000_000 => {
            let next = fetching(progress.done + 3_100_000, TOTAL);
            fake.run_is(RunState::Running, vec![next, StepState::Waiting, StepState::Waiting]);
        }
        Some(StepState::Running(_)) => fake.run_is(
            RunState::Running,
            vec![StepState::Done, StepState::Running(None), StepState::Waiting],
        ),
        _ => fake.run_is(RunState::Done, vec![StepState::Done; 3]),
    }
}
