//! Somebody installs in a browser: the code from the machine's screen, the disks, and nothing without a name.
//! The machine is this one, none of whose disks is large enough for the box that this pretends to install.

use std::process::Command;

use polder_install::{Face, Installer, RootHash, Source};
use polder_stories::{Browser, free_port};

fn source() -> Source {
    let line = format!("roothash={}", "ab".repeat(32));
    let root_hash = RootHash::of_command_line(&line).unwrap();
    Source { version: "9.9.9".into(), root_hash, root_bytes: 1, needs: u64::MAX }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_installs_with_the_code_from_the_screen_and_a_second_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let installer = Installer::new(source());
    installer.look();
    let face = Face::open(installer.clone(), folder.path()).unwrap();
    let port = free_port();
    let serving = face.clone();
    tokio::spawn(async move { serving.serve(port).await.unwrap() });
    let shown = || installer.view().borrow().web.clone().unwrap();
    let (code, fingerprint) = (shown().code.unwrap(), shown().fingerprint);
    let url = format!("https://localhost:{port}");

    let browser = Browser::open_whatever_the_certificate(1000, 900).await;
    browser.visit(&format!("{url}/disk/sda")).await;
    browser.hear("Whoever shows the code from its screen may do that.").await;
    browser.picture("install-1-code").await;
    browser.fill("code", "AAAAA-AAAAA-AAAAA").await;
    browser.press("Go on").await;
    browser.hear("That is not the code, or it was used already.").await;
    browser.fill("code", &code.to_lowercase()).await;
    browser.press("Go on").await;
    browser.hear("Everything on that disk is lost.").await;
    browser.hear("Not this one: ").await;
    browser.is_usable_by_ear_and_keyboard().await;
    browser.picture("install-2-disks").await;
    assert_eq!(shown().code, None, "a used code is still shown");

    // The same code in another browser; then a new one from the machine, which sends the first away.
    let other = Browser::open_whatever_the_certificate(320, 700).await;
    other.visit(&url).await;
    other.hear("The code was used, or its time is over.").await;
    other.fits_its_window().await;
    face.new_code().unwrap();
    other.visit(&url).await;
    other.fill("code", &shown().code.unwrap()).await;
    other.press("Go on").await;
    other.hear("Everything on that disk is lost.").await;
    other.fits_its_window().await;
    other.close().await;
    browser.visit(&url).await;
    browser.hear("The code was used, or its time is over.").await;
    browser.close().await;

    // The certificate is of the authority whose fingerprint is on the screen; to a name that is somebody
    // else's it does not answer.
    let ca = folder.path().join("pki/ca.pem");
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let ca = ca.to_str().unwrap();
    let digest = said("openssl", &["x509", "-in", ca, "-noout", "-fingerprint", "-sha256"]);
    assert!(digest.trim().ends_with(&fingerprint), "{digest}");
    let asked = ["-s", "--max-time", "10", "--cacert", ca, &url];
    assert!(said("curl", &asked).contains("Install Polder"));
    let foreign = said("curl", &[&asked[..], &["-H", "Host: evil.example"]].concat());
    assert!(foreign.contains("not called"), "{foreign}");
}
