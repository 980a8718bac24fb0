//! `make bench`, first table: Polder's door beside Debian's nginx, same run, same upstream.
//!
//! Both terminate TLS 1.3, ask who the caller is (nginx by `auth_request` to a trivial verifier,
//! Polder by its key table), and pass the request to one small HTTP server on a Unix socket. The
//! load comes from this process over kept-alive HTTP/1.1 connections. Rounds alternate between the
//! two doors and the bare upstream, so that a slow moment of the machine meets all three.

mod doors;
mod load;
mod upstream;

use std::time::Duration;

use doors::{Nginx, Polder};
use load::{Samples, Target};

const ROUNDS: usize = 6;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let socket = folder.path().join("upstream.sock");
    upstream::serve(&socket);
    let polder = Polder::start(folder.path(), &socket).await;
    let nginx = Nginx::start(folder.path(), &socket).await;
    let bare = Target::unix(&socket);
    let doors = [("bare upstream", &bare), ("nginx", &nginx.target), ("polder", &polder.target)];

    println!("\ndoor: requests (JSON, not streamed)");
    println!(
        "{:<16} {:>4} {:>10} {:>10} {:>12} {:>12}",
        "", "conn", "p50 us", "p99 us", "requests/s", "cpu us/req"
    );
    let busy = |door: &str| match door {
        "nginx" => nginx.busy(),
        "polder" => polder.busy(),
        _ => f64::NAN,
    };
    let mut verdicts = Vec::new();
    for connections in [1, 64] {
        let mut samples: Vec<Samples> = doors.iter().map(|_| Samples::default()).collect();
        let mut used = vec![0.0; doors.len()];
        for round in 0..=ROUNDS {
            for (((name, target), into), used) in doors.iter().zip(&mut samples).zip(&mut used) {
                let before = busy(name);
                let some = load::requests(target, connections, Duration::from_millis(1000)).await;
                // The first round warms caches and connections up.
                if round > 0 {
                    into.add(some);
                    *used += busy(name) - before;
                }
            }
        }
        for (((name, _), sample), used) in doors.iter().zip(&mut samples).zip(&used) {
            println!(
                "{name:<16} {connections:>4} {:>10.0} {:>10.0} {:>12.0} {:>12.1}",
                sample.percentile(50.0),
                sample.percentile(99.0),
                sample.per_second(),
                used / sample.count() as f64 * 1e6,
            );
        }
        let [direct, rival, ours] = &mut samples[..] else { unreachable!("three doors") };
        verdicts.push((
            format!("processor time a request, {connections} connections"),
            used[2] / ours.count() as f64 / (used[1] / rival.count() as f64),
        ));
        for percentile in [50.0, 99.0] {
            let added = |s: &mut Samples, d: &mut Samples| {
                s.percentile(percentile) - d.percentile(percentile)
            };
            verdicts.push((
                format!("added latency p{percentile:.0}, {connections} connections"),
                added(ours, direct) / added(rival, direct).max(1.0),
            ));
        }
        verdicts.push((
            format!("requests/s, {connections} connections"),
            ours.per_second() / rival.per_second(),
        ));
    }

    println!("\ndoor: streams (an event every 20 ms; delay from the upstream's write to our read)");
    println!("{:<16} {:>4} {:>10} {:>10}", "", "open", "p50 us", "p99 us");
    for streams in [1, 64] {
        let mut samples: Vec<Samples> = doors.iter().map(|_| Samples::default()).collect();
        for _ in 0..3 {
            for (target, into) in doors.iter().map(|d| d.1).zip(&mut samples) {
                into.add(load::streams(target, streams, 100).await);
            }
        }
        for ((name, _), sample) in doors.iter().zip(&mut samples) {
            println!(
                "{name:<16} {streams:>4} {:>10.0} {:>10.0}",
                sample.percentile(50.0),
                sample.percentile(99.0)
            );
        }
        let [direct, rival, ours] = &mut samples[..] else { unreachable!("three doors") };
        for percentile in [50.0, 99.0] {
            let added = |s: &mut Samples, d: &mut Samples| {
                s.percentile(percentile) - d.percentile(percentile)
            };
            verdicts.push((
                format!("added delay of an event p{percentile:.0}, {streams} streams"),
                added(ours, direct) / added(rival, direct).max(1.0),
            ));
        }
    }

    let held = load::hold(&polder.target, 200).await;
    let ours = polder.resident_mib();
    drop(held);
    let held = load::hold(&nginx.target, 200).await;
    let rival = nginx.resident_mib();
    drop(held);
    println!(
        "\ndoor: resident memory with 200 open streams: polder {ours:.1} MiB, nginx {rival:.1} MiB (goal: polder under 60)"
    );

    println!(
        "\ndoor: polder / nginx (latency goals: p50 <= 1.0, p99 <= 1.2; below 1 is faster, for requests/s above 1)"
    );
    for (what, ratio) in verdicts {
        println!("{what:<45} {ratio:>6.2}");
    }
}
