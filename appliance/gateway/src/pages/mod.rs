//! Pages for people: sign-in, a member's own pages, the chat, and what stewards look after.
//!
//! Every page is drawn here on the server and works without JavaScript. A stranger is sent to sign
//! in; a member who is no steward is told so. What a person changes goes into the audit trail.

mod account;
mod agree;
mod alerts;
mod answer;
mod apps;
mod arrive;
mod audit;
mod backup;
mod certificate;
mod chat;
mod client_apps;
mod collective;
mod connect;
mod dashboard;
mod dynamic_dns;
mod elsewhere;
mod ending;
mod engine;
mod frame;
mod handbook;
mod health;
mod home;
mod identity;
mod invite;
mod leave;
mod locked_out;
mod markdown;
mod metrics;
mod models;
mod money;
mod moving;
mod outside;
mod people;
mod ports;
mod power;
mod provider;
mod registries;
mod runs;
mod samples;
mod sheets;
mod shell;
mod sign_in;
mod spare;
mod status;
mod stewards;
mod succession;
mod takeover;
mod uplinks;
mod usage;
mod verifier;
mod versions;
mod who;

#[cfg(test)]
mod collective_tests;
#[cfg(test)]
mod health_tests;
#[cfg(test)]
mod life_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use polder_page::Asset;

use crate::Gateway;
pub(crate) use frame::{answer as bare, problem, problem_elsewhere, sentence};
pub(crate) use locked_out::follow as follow_recovery;
use samples::Samples;
pub(crate) use takeover::anyway;
pub(crate) use who::{own_path, percent};

/// No form here is longer; the chat has its own limit.
const LONGEST_FORM: usize = 64 << 10;

/// Every page, to be merged into the door's router.
pub fn routes() -> Router<Arc<Gateway>> {
    let samples = Samples::new();
    let pages = Router::new()
        .route("/", get(home::show))
        .route("/sign-in", get(sign_in::show).post(sign_in::take))
        .route("/sign-in/with", get(arrive::with))
        .route("/sign-in/back", get(arrive::back))
        .route("/sign-out", post(sign_in::out))
        .route("/.well-known/openid-configuration", get(provider::describe))
        .route("/oidc/keys", get(provider::keys))
        .route("/oidc/authorize", get(provider::authorize))
        .route("/oidc/agree", post(agree::agree))
        .route("/oidc/token", post(provider::token))
        .route("/oidc/userinfo", get(provider::who).post(provider::who))
        .route("/oidc/end", get(provider::end))
        .route("/invite/{token}", get(invite::show).post(invite::accept))
        .route("/keys", post(home::mint))
        .route("/keys/{id}/revoke", post(home::revoke))
        .route("/sharing", post(models::share))
        .route("/common", post(models::add_common))
        .route("/common/remove", post(models::remove_common))
        .route("/keeping", post(models::keep))
        .route("/usage", get(usage::show).post(usage::decide))
        .route("/usage/forget", post(usage::forget))
        .route("/moving", get(moving::show).post(moving::settle))
        .route("/moving/sheet", get(moving::sheet))
        .route("/money", get(money::show))
        .route("/money.csv", post(money::all))
        .route("/money/mine.csv", get(money::mine))
        .route("/money/agree", post(money::agree))
        .route("/money/currency", post(money::currency))
        .route("/money/enter", post(money::enter))
        .route("/money/dues", post(money::dues))
        .route("/money/fund", post(money::fund))
        .route("/money/correct", post(money::correct))
        .route("/money/split", post(money::split_month))
        .route("/money/bring-in", post(money::bring_in))
        .route("/money/name-off", post(money::name_off))
        .route("/connect", get(connect::show))
        .route("/handbook", get(handbook::contents))
        .route("/handbook/{chapter}", get(handbook::show))
        .route("/ca", get(connect::ca))
        .route("/ca.crt", get(connect::ca_file))
        .route("/account", get(account::show))
        .route("/account/password", post(account::password))
        .route("/account/link", post(arrive::link))
        .route("/account/unlink", post(arrive::unlink))
        .route("/account/apps/take-back", post(agree::take_back))
        .route("/account/forget", post(account::forget))
        .route("/account/leaving", post(account::leaving))
        .route("/account/sign-out-everywhere", post(account::out_everywhere))
        .route("/account/leave", get(leave::show).post(leave::leave))
        .route("/account/export", post(leave::export))
        .route("/collective", get(collective::show))
        .route("/collective/read", post(collective::read))
        .route("/collective/announce", post(collective::announce))
        .route("/collective/stewards", get(stewards::show))
        .route("/collective/stewards/propose", post(stewards::propose))
        .route("/collective/stewards/{id}/agree", post(stewards::agree))
        .route("/collective/stewards/{id}/refuse", post(stewards::refuse))
        .route("/collective/recovery/refuse", post(stewards::refuse_recovery))
        .route("/collective/sheets", get(sheets::show))
        .route("/collective/sheets/make", post(sheets::make))
        .route("/collective/sheets/show", post(sheets::write_down))
        .route("/collective/sheets/confirm", post(sheets::confirm))
        .route("/collective/end", get(ending::show))
        .route("/collective/end/ask", post(ending::ask))
        .route("/collective/end/back", post(ending::take_back))
        .route("/collective/end/agree", post(ending::agree))
        .route("/collective/end/sheets", post(ending::with_sheets))
        .route("/collective/end/record", get(ending::record_before))
        .route("/ended", get(ending::ended))
        .route("/locked-out", get(locked_out::show).post(locked_out::ask))
        .route("/dashboard", get(dashboard::show))
        .route("/dashboard/live", get(dashboard::live))
        .route("/members", get(people::show))
        .route("/members/invite", post(people::invite))
        .route("/members/invite/{id}/withdraw", post(people::withdraw))
        .route("/members/{id}/role", post(people::role))
        .route("/members/{id}/disable", post(people::disable))
        .route("/members/{id}/groups", post(people::groups))
        .route("/members/{id}/password", post(people::password))
        .route("/members/{id}/share", post(people::share))
        .route("/members/{id}/leave", get(leave::of_member))
        .route("/members/{id}/remove", post(people::remove))
        .route("/models", get(models::list))
        .route("/models/change", get(succession::show).post(succession::step))
        .route("/models/change/testers", post(succession::testing))
        .route("/models/names", post(succession::name))
        .route("/models/names/remove", post(succession::remove_name))
        .route("/trial", post(succession::under_alias))
        .route("/models/{recipe}", get(models::show))
        .route("/models/{recipe}/use", post(models::put_to_use))
        .route("/models/{recipe}/import", post(models::import))
        .route("/elsewhere", get(elsewhere::show).post(elsewhere::set))
        .route("/elsewhere/{name}", post(elsewhere::change))
        .route("/elsewhere/{name}/model", post(elsewhere::set_model))
        .route("/elsewhere/{name}/model/remove", post(elsewhere::remove_model))
        .route("/elsewhere/{name}/test", post(elsewhere::test))
        .route("/elsewhere/{name}/remove", post(elsewhere::remove))
        .route("/registries", get(registries::show).post(registries::keep))
        .route("/registries/forget", post(registries::forget))
        .route("/engines/{name}", get(engine::show))
        .route("/engines/{name}/memory", post(engine::save))
        .route("/engines/{name}/remove", post(models::remove_engine))
        .route("/apps", get(apps::list).post(apps::add))
        .route("/apps/{name}/remove", post(apps::remove))
        .route("/apps/{name}/enter", get(apps::enter))
        .route("/power", get(power::show).post(power::set))
        .route("/power/live", get(power::live))
        .route("/power/use", post(power::take))
        .route("/power/remove", post(power::remove))
        .route("/clients", post(client_apps::add))
        .route("/clients/{id}/remove", post(client_apps::remove))
        .route("/identity", get(identity::show).post(identity::set))
        .route("/identity/look", post(identity::look))
        .route("/identity/remove", post(identity::remove))
        .route("/verifier", post(verifier::set))
        .route("/verifier/remove", post(verifier::remove))
        .route("/certificate", get(certificate::show).post(certificate::set))
        .route("/certificate/again", post(certificate::again))
        .route("/certificate/remove", post(certificate::remove))
        .route("/versions", get(versions::show))
        .route("/versions/check", post(versions::check))
        .route("/versions/fetch", post(versions::fetch))
        .route("/versions/apply", post(versions::apply))
        .route("/versions/back", post(versions::back))
        .route("/versions/from", post(versions::from))
        .route("/backup", get(backup::show))
        .route("/backup/kit", post(backup::kit))
        .route("/backup/confirm", post(backup::confirm))
        .route("/backup/to", post(backup::to))
        .route("/backup/now", post(backup::back_up))
        .route("/backup/drill", post(backup::drill))
        .route("/spare/takeover", get(takeover::show).post(takeover::take))
        .route("/spare/takeover/back", post(takeover::back))
        .route("/spare/takeover/stay", post(takeover::stay))
        .route("/spare/takeover/send", post(takeover::send))
        .route("/spare/takeover/silence", post(takeover::silence))
        .route("/spare", get(spare::show))
        .route("/spare/pair", post(spare::pair))
        .route("/spare/be", post(spare::be))
        .route("/spare/none", post(spare::none))
        .route("/spare/code", post(spare::code))
        .route("/spare/hide", post(spare::hide))
        .route("/spare/unpair", post(spare::unpair))
        .route("/spare/remove-old", post(spare::remove_old))
        .route("/outside", get(outside::show).post(outside::set))
        .route("/outside/live", get(outside::live))
        .route("/outside/name", post(outside::answer_to))
        .route("/outside/port", post(outside::port))
        .route("/outside/remove", post(outside::remove))
        .route("/uplinks", get(uplinks::show).post(uplinks::set))
        .route("/uplinks/dns", post(dynamic_dns::set))
        .route("/uplinks/live", get(uplinks::live))
        .route("/uplinks/ports", post(ports::set))
        .route("/uplinks/ports/{port}/dhcp", post(ports::by_dhcp))
        .route("/uplinks/{name}/remove", post(uplinks::remove))
        .route("/uplinks/{name}/prefer", post(uplinks::prefer))
        .route("/shell", get(shell::show).post(shell::open))
        .route("/shell/close", post(shell::close))
        .route("/runs/{id}", get(runs::show))
        .route("/runs/{id}/live", get(runs::live))
        .route("/runs/{id}/cancel", post(runs::cancel))
        .route("/runs/{id}/confirm", post(runs::confirm))
        .route("/audit", get(audit::show))
        .route("/status", get(status::show))
        .route("/issues", get(health::show))
        .route("/issues/look", post(health::look))
        .route("/issues/again", post(health::again))
        .route("/issues/fix", post(health::fix))
        .route("/issues/alerts", post(alerts::save))
        .route("/issues/test", post(alerts::test))
        .route("/support", post(health::support_text))
        .layer(DefaultBodyLimit::max(LONGEST_FORM));
    let chat = Router::new()
        .route("/chat", get(chat::show).post(chat::whole))
        .route("/chat/stream", post(chat::stream))
        .layer(DefaultBodyLimit::max(chat::LONGEST_TALK));
    let mut all = pages.merge(chat);
    for asset in polder_page::ASSETS.iter().chain([chat::script()]) {
        all = all.route(&asset.path, get(move || async move { serve(asset) }));
    }
    all.layer(axum::Extension(samples)).layer(middleware::from_fn(not_kept))
}

/// A page shows what is so now, and some of them a secret: no cache keeps it, unless it says so
/// itself. (The other headers that protect people are put on every answer by the door.)
async fn not_kept(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let no = HeaderValue::from_static("no-store");
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(no);
    response
}

fn serve(asset: &'static Asset) -> Response {
    let kept = if asset.path == "/icon.svg" {
        "public, max-age=86400"
    } else {
        // The name changes with the content.
        "public, max-age=31536000, immutable"
    };
    ([(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, kept)], asset.body)
        .into_response()
}
