//! The installer in a browser, guarded as a box guards its claim: TLS from the first byte, a code from the
//! machine's own screen that works once, local networks and the machine's own names only.

mod pages;
mod server;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polder_members::{ClaimRefused, Members, MembersError, Secret};
use polder_pki::{Clock, Keeper, Names, PkiError, machine_addresses};
use polder_site::Site;
use tokio_rustls::TlsAcceptor;

use crate::installer::Installer;
use crate::paint::Web;

/// Where browsers look.
pub const PORT: u16 = 443;
/// A code is good for so long; the machine's own screen gives a new one.
const WINDOW: Duration = Duration::from_secs(30 * 60);
/// Addresses come and go; the certificate follows.
const REFRESH: Duration = Duration::from_secs(10);

/// The installer cannot be opened in a browser.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Where the code's hash is kept.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// No port.
    #[error("could not listen on port {port}; is another program using it?")]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
}

/// The face that browsers see.
#[derive(Clone)]
pub struct Face(Arc<Inner>);

struct Inner {
    installer: Arc<Installer>,
    /// Keeps the hash of the code and of the one cookie that it gave; nobody is a member here.
    members: Members,
    keeper: Keeper,
    site: Site,
}

impl Face {
    /// Makes keys and a first code; both are gone when the machine goes off.
    pub fn open(installer: Arc<Installer>, folder: &Path) -> Result<Self, WebError> {
        let site = Site::unclaimed(PORT);
        let members = Members::open(&folder.join("code.db"))?;
        let keeper = Keeper::open(&folder.join("pki"), &names(&site), Clock::here())?;
        let face = Self(Arc::new(Inner { installer, members, keeper, site }));
        face.new_code()?;
        Ok(face)
    }

    /// Shows a new code on the machine's own screen; earlier ones, and the browser that used one, are out.
    pub fn new_code(&self) -> Result<(), WebError> {
        let members = &self.0.members;
        members.end_setup()?;
        let code = members.open_claim(WINDOW)?;
        let fingerprint = self.0.keeper.ca().fingerprint;
        let web = Web { code: Some(code.expose().to_owned()), fingerprint };
        self.0.installer.change(|view| view.web = Some(web));
        Ok(())
    }

    /// Serves browsers for as long as this is waited for.
    pub async fn serve(&self, port: u16) -> Result<(), WebError> {
        let tls = TlsAcceptor::from(self.0.keeper.server_config(&["http/1.1"])?);
        let listener = server::listen(port).map_err(|source| WebError::Listen { port, source })?;
        let follow = async {
            loop {
                tokio::time::sleep(REFRESH).await;
                if let Err(error) = self.follow() {
                    log::warn!("{error}");
                }
            }
        };
        tokio::select! {
            () = server::serve(listener, tls, pages::routes(self.clone())) => Ok(()),
            () = follow => Ok(()),
        }
    }

    /// Another address needs another certificate, and a code that is over is not shown any more.
    fn follow(&self) -> Result<(), WebError> {
        let Inner { installer, members, keeper, site } = &*self.0;
        keeper.refresh(&names(site), Clock::here())?;
        let fingerprint = keeper.ca().fingerprint;
        let open = matches!(members.setup_window()?, polder_members::SetupWindow::Open { .. });
        installer.change(|view| {
            if let Some(web) = &mut view.web {
                web.fingerprint = fingerprint;
                web.code = web.code.take().filter(|_| open);
            }
        });
        Ok(())
    }

    /// Takes the code, once, and gives a cookie for it.
    async fn claim(&self, code: String, from: IpAddr) -> Result<Secret, ClaimRefused> {
        let code = Secret::new(code);
        let token = self.0.members.ask(move |members| members.claim(code.expose(), from)).await?;
        log::info!(from:%; "somebody installs in a browser");
        self.0.installer.change(|view| {
            if let Some(web) = &mut view.web {
                web.code = None;
            }
        });
        Ok(token.0)
    }

    async fn holds(&self, cookie: String) -> bool {
        let held = self.0.members.ask(move |members| members.setup_session(&cookie)).await;
        held.unwrap_or_else(|error| {
            log::warn!("{error}");
            false
        })
    }
}

impl std::fmt::Debug for Face {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Face")
    }
}

fn names(site: &Site) -> Names {
    Names::of(site, machine_addresses())
}
