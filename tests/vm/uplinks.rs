//! Two networks, each with a way out: when the cable of one is pulled, the box goes out by the other.

use std::time::{Duration, Instant};

use polder_stories::{Client, free_port, scaled};

use crate::claimed::{MODEL, claimed};
use crate::machine::PATIENCE;

/// By which interface the machine would go out, whenever that changes. QEMU's networks name no router to a machine that may not go out,
/// so it is told.
const WATCH: &str = r#"[Unit]
After=systemd-networkd.service
[Service]
StandardOutput=append:/dev/ttyS0
ExecStart=/bin/sh -c 'for nic in /sys/class/net/e*; do echo "cable $(cat $nic/address) is $(basename $nic)"; done; \
    for leg in 2 3; do until nic=$(ip -4 -o addr show to 10.0.$leg.0/24 | cut -d" " -f2) && [ -n "$nic" ] && \
    ip route replace default via 10.0.$leg.2 dev $nic metric 102$leg; do sleep 1; done; done; \
    while sleep 0.05; do now=$(ip -4 route get 198.51.100.7 2>/dev/null | sed -n "s/.* dev \\([^ ]*\\).*/\\1/p"); \
    [ "$now" = "$before" ] || echo "way out: $now."; before=$now; done'
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_a_box_whose_first_cable_is_pulled_goes_out_by_the_second() {
    let (disks, owned) = claimed().await;
    let door = free_port();
    // Where nothing is but two places that take connections: somebody to ask whether the uplink works.
    let second = format!(
        "user,id=second,net=10.0.3.0/24,restrict=on,hostfwd=tcp:127.0.0.1:{door}-:443,guestfwd=tcp:10.0.3.100:7-cmd:cat,guestfwd=tcp:10.0.3.100:8-cmd:cat"
    );
    let more = [
        "-netdev",
        &second,
        "-device",
        "virtio-net-pci,netdev=second,id=second,mac=52:54:00:00:00:02,romfile=",
    ];
    let mut machine = disks.switch_on_with_services_and(&[("watch", WATCH)], &more);
    machine.says("Everything runs.");
    let second = machine.says("cable 52:54:00:00:00:02 is ");
    let first = machine.says("cable 52:54:00:12:34:56 is ");
    let home = format!("https://localhost:{}", machine.port);
    let browser = owned.browser(&machine).await;
    for (name, interface, target) in [
        ("fibre", &first, "10.0.2.100:7 10.0.2.100:8"),
        ("mobile", &second, "10.0.3.100:7 10.0.3.100:8"),
    ] {
        browser.visit(&format!("{home}/uplinks")).await;
        browser.fill("name", name).await;
        browser.fill("interface", interface).await;
        browser.fill("targets", target).await;
        browser.press("Do it").await;
        browser.press("Keep it").await;
        browser.hear("It stays.").await;
    }
    browser.close().await;
    machine.says(&format!("way out: {first}."));
    // Let both have been seen to work.
    tokio::time::sleep(scaled(Duration::from_secs(10))).await;
    let before = machine.said(&format!("way out: {second}."));

    let cut = Instant::now();
    machine.order("set_link first off");
    while machine.said(&format!("way out: {second}.")) == before {
        assert!(cut.elapsed() < scaled(PATIENCE), "{}", machine.serial());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!(
        "uplinks: out by the second {:.2} s after the first cable was pulled",
        cut.elapsed().as_secs_f64()
    );
    // Whoever comes by the second is answered.
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &owned.ca).unwrap();
    let by_second = Client::new(&format!("https://localhost:{door}"), &ca, Some(&owned.key));
    let answer = by_second.chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    machine.order("set_link first on");
    machine.power_button();
    machine.goes_off();
}
