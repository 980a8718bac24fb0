//! A steward gives a network port an address of its own on the page Uplinks, and it stays only where they say in time that it is good.
//!
//! What the supervisor asks of root is done by the code that root runs on the image, into a folder of the story's; networkd, who reads it there,
//! is in the stories for virtual machines.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use polder_members::{Members, NewMember, Role, Secret};
use polder_site::Site;
use polder_stories::{Browser, free_port, need};
use polder_supervisor::{
    Children, Chore, Ending, Helper, Options, Part, Parts, PartsError, Patience, Places, Weights,
};
use tokio::sync::watch;

const PASSWORD: &str = "the cable is behind the shelf";

/// Does root's part.
struct Root {
    places: Places,
    state: PathBuf,
    networks: PathBuf,
}

impl Root {
    fn gives(&self) -> Result<(), String> {
        let ports = polder_seed::ports_to_give(&self.state).map_err(|error| error.to_string())?;
        polder_address::give(&self.networks, &ports).map(drop).map_err(|error| error.to_string())
    }

    /// What networkd would read of ports.
    fn given(&self) -> String {
        let files = std::fs::read_dir(&self.networks).unwrap().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap()).collect()
    }
}

impl Helper for Root {
    fn places(&self) -> Places {
        self.places.clone()
    }

    fn does(&self, chore: Chore) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            match chore {
                Chore::GiveAddresses => self.gives(),
                _ => Ok(()),
            }
        })
    }
}

/// Parts as child processes, as on a machine that runs from the image.
struct OnAnImage(Children, Arc<Root>);

impl Parts for OnAnImage {
    type Process = <Children as Parts>::Process;

    async fn start(&self, part: &Part) -> Result<Self::Process, PartsError> {
        self.0.start(part).await
    }

    fn helper(&self) -> Option<Arc<dyn Helper>> {
        Some(self.1.clone())
    }
}

/// A box that runs until it is told to end.
struct Box_ {
    end: watch::Sender<Ending>,
    ended: tokio::task::JoinHandle<Result<(), polder_supervisor::SupervisorError>>,
}

impl Box_ {
    fn start(root: &Arc<Root>, port: u16, confirm: Duration) -> Self {
        let state = root.state.clone();
        let parts = OnAnImage(Children::of(&need("POLDER_BIN"), &state), root.clone());
        let shelf = Arc::new(Weights::of(&state).unwrap());
        let patience = Patience { confirm, ..Patience::default() };
        let first = Site::unclaimed(port);
        let options = Options { state, first, port: None, listen: None, patience };
        let (end, ending) = watch::channel(Ending::No);
        let ended = tokio::spawn(polder_supervisor::run(options, parts, shelf, ending));
        Self { end, ended }
    }

    async fn ends(self) {
        self.end.send_replace(Ending::Now);
        self.ended.await.unwrap().unwrap();
    }
}

fn with_a_steward(folder: &Path) -> Arc<Root> {
    let place = |name: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let places = Places {
        told: place("told"),
        disks: place("disks"),
        keys: place("keys"),
        nut: place("nut"),
        ports: place("ports"),
        ..Places::default()
    };
    std::fs::create_dir_all(places.ports.join("enp1s0/device")).unwrap();
    for (name, text) in [("type", "1\n"), ("carrier", "1\n")] {
        std::fs::write(places.ports.join("enp1s0").join(name), text).unwrap();
    }
    let state = place("state");
    let members = Members::open(&state.join("polder.db")).unwrap();
    let password = Secret::new(PASSWORD.into());
    let new = NewMember { name: "Ada".into(), email: None, password };
    members.add_member(&new, Role::Steward).unwrap();
    Arc::new(Root { places, state, networks: place("networks") })
}

async fn until(what: &str, look: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !look() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Fills the form, and has it done.
async fn give(browser: &Browser, home: &str, port: &str, address: &str) {
    browser.visit(&format!("{home}/uplinks")).await;
    browser.hear("Give a port a fixed address").await;
    let form = "form[action='/uplinks/ports']";
    for (name, value) in [("port", port), ("addresses", address)] {
        browser.fill_first(&format!("{form} [name='{name}']"), value).await;
    }
    browser.press_first(&format!("{form} button")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_an_address_of_a_port_is_kept_where_somebody_says_so_and_undone_where_nobody_does()
{
    let folder = tempfile::tempdir().unwrap();
    let root = with_a_steward(folder.path());
    let port = free_port();
    let home = format!("http://localhost:{port}");
    let box_ = Box_::start(&root, port, Duration::from_secs(60));
    until("the door", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;

    let browser = Browser::open(1000, 1400, false, true).await;
    browser.visit(&format!("{home}/sign-in?next=/uplinks")).await;
    browser.fill("name", "Ada").await;
    browser.fill("password", PASSWORD).await;
    browser.press("Sign in").await;
    browser.hear("Addresses of this machine").await;
    browser.is_usable_by_ear_and_keyboard().await;
    browser.picture("ports-1-page").await;

    give(&browser, &home, "enp9s0", "192.168.9.10/24").await;
    browser.hear("no network port called enp9s0").await;
    give(&browser, &home, "enp1s0", "192.168.9.10").await;
    browser.hear("is not an address with the length of its network").await;
    assert_eq!(root.given(), "");

    give(&browser, &home, "enp1s0", "192.168.9.10/24").await;
    browser.at("/runs/").await;
    browser.hear("Say that it is good, or it is undone in").await;
    assert!(root.given().contains("192.168.9.10/24"), "{}", root.given());
    browser.picture("ports-2-question").await;
    browser.press("Keep it").await;
    browser.at("/dashboard").await;
    browser.visit(&format!("{home}/uplinks")).await;
    browser.hear("It always has 192.168.9.10/24").await;
    box_.ends().await;

    // Whoever has less time says nothing.
    let box_ = Box_::start(&root, port, Duration::from_secs(1));
    until("the door", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    give(&browser, &home, "enp1s0", "192.168.9.77/24").await;
    browser.hear("Nobody confirmed it in time; the change was undone").await;
    until("the address before", || {
        let given = root.given();
        given.contains("192.168.9.10/24") && !given.contains("192.168.9.77")
    })
    .await;
    browser.visit(&format!("{home}/uplinks")).await;
    browser.hear("It always has 192.168.9.10/24").await;
    assert!(!browser.words().await.contains("192.168.9.77"));
    browser.close().await;
    box_.ends().await;
}
