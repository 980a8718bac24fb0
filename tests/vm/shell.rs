//! A steward opens a remote shell for somebody's key, and closes it again.

use std::path::Path;
use std::process::{Command, Output};

use crate::claimed::claimed;
use crate::machine::Machine;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_a_shell_opens_for_one_key_as_the_boxs_user_and_closes_with_whoever_is_inside() {
    let (disks, owned) = claimed().await;
    let folder = tempfile::tempdir().unwrap();
    let [key, other] = ["key", "other"].map(|name| {
        let path = folder.path().join(name);
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
        assert!(make.status().expect("ssh is installed (make test-vm-all installs it)").success());
        path
    });
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    assert!(!ssh(&machine, &key, "true").status.success(), "no shell is open by itself");

    let browser = owned.browser(&machine).await;
    browser.visit(&format!("https://localhost:{}/shell", machine.port)).await;
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    browser.fill("key", public.trim()).await;
    browser.press("Open it").await;
    browser.hear("A remote shell is open").await;
    browser.picture("vm-shell-open").await;
    let mut tries = 0;
    let inside = loop {
        let inside = ssh(&machine, &key, "id -un; polder status; sudo -n true; cat /etc/shadow");
        tries += 1;
        if inside.status.code() != Some(255) || tries == 20 {
            break inside;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    };
    let said = String::from_utf8_lossy(&inside.stdout).into_owned();
    assert!(said.starts_with("polder\n"), "{inside:?}");
    assert!(said.contains("gateway"), "{said}");
    assert!(!inside.status.success(), "the box's user reads what only root may: {said}");
    let stranger = ssh(&machine, &other, "true");
    assert!(
        String::from_utf8_lossy(&stranger.stderr).contains("Permission denied"),
        "{stranger:?}"
    );

    let mut there = command(&machine, &key, "sleep 600").spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(there.try_wait().unwrap().is_none());
    browser.press("Close it now").await;
    browser.hear("Open a shell").await;
    assert!(!there.wait().unwrap().success());
    assert!(!ssh(&machine, &key, "true").status.success());
    browser.visit(&format!("https://localhost:{}/audit", machine.port)).await;
    browser.hear("opened a shell for 1 h for the key").await;
    browser.hear("closed the shell for the key").await;
    browser.close().await;
}

fn ssh(machine: &Machine, key: &Path, what: &str) -> Output {
    command(machine, key, what).output().unwrap()
}

fn command(machine: &Machine, key: &Path, what: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]);
    ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    ssh.args(["-o", "ConnectTimeout=60", "-p", &machine.shell.to_string(), "-i"]).arg(key);
    ssh.args(["polder@127.0.0.1", what]);
    ssh
}
