//! `GET /auth` behind the real nginx and the real Caddy, each before a little web app.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::house::{House, say, status_of};

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A web app that answers with the head of every request it gets.
async fn app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 16384];
                let mut n = 0;
                while !head[..n].windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut head[n..]).await {
                        Ok(0) | Err(_) => return,
                        Ok(more) => n += more,
                    }
                }
                let text = String::from_utf8_lossy(&head[..n]).to_lowercase();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn listens(port: u16) {
    for _ in 0..500 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nothing listens on port {port}");
}

async fn nginx(folder: &Path, door: u16, app: u16) -> (Running, u16) {
    let port = free_port();
    let at = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off;\n\
         client_body_temp_path {at}/n1; proxy_temp_path {at}/n2; fastcgi_temp_path {at}/n3;\n\
         uwsgi_temp_path {at}/n4; scgi_temp_path {at}/n5;\n\
         server {{ listen 127.0.0.1:{port};\n\
           location / {{ auth_request /_auth;\n\
             auth_request_set $user $upstream_http_x_auth_request_user;\n\
             auth_request_set $email $upstream_http_x_auth_request_email;\n\
             auth_request_set $groups $upstream_http_x_auth_request_groups;\n\
             proxy_set_header X-Auth-Request-User $user;\n\
             proxy_set_header X-Auth-Request-Email $email;\n\
             proxy_set_header X-Auth-Request-Groups $groups;\n\
             proxy_pass http://127.0.0.1:{app}; }}\n\
           location = /_auth {{ internal; proxy_pass http://127.0.0.1:{door}/auth$is_args$args;\n\
             proxy_pass_request_body off; proxy_set_header Content-Length \"\";\n\
             proxy_set_header Host localhost; proxy_set_header X-Original-URI $request_uri; }}\n\
         }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let child = Command::new("nginx")
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is installed (Debian: nginx-light)");
    let running = Running(child);
    listens(port).await;
    (running, port)
}

async fn caddy(folder: &Path, door: u16, app: u16) -> (Running, u16) {
    let port = free_port();
    let text = format!(
        "{{\n admin off\n auto_https off\n}}\n\
         http://127.0.0.1:{port} {{\n\
           forward_auth 127.0.0.1:{door} {{\n  uri /auth\n  header_up Host localhost\n\
             copy_headers X-Auth-Request-User X-Auth-Request-Email X-Auth-Request-Groups\n }}\n\
           reverse_proxy 127.0.0.1:{app}\n}}\n"
    );
    let file = folder.join("Caddyfile");
    std::fs::write(&file, text).unwrap();
    let child = Command::new("caddy")
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file)
        .env("HOME", folder)
        .env("XDG_DATA_HOME", folder)
        .env("XDG_CONFIG_HOME", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("caddy is installed (Debian: caddy)");
    let running = Running(child);
    listens(port).await;
    (running, port)
}

async fn visit(port: u16, headers: &str) -> String {
    let text = format!(
        "GET /page?x=1 HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n{headers}\r\n"
    );
    say(TcpStream::connect(("127.0.0.1", port)).await.unwrap(), text.as_bytes()).await
}

/// What every web server in front must make of it.
async fn holds(house: &House, port: u16) {
    let stranger = visit(port, "").await;
    assert_eq!(status_of(&stranger), 401, "{stranger}");
    let lower = stranger.to_lowercase();
    assert!(lower.contains("www-authenticate: bearer realm=\"polder\""), "{stranger}");

    let liar = visit(port, "x-auth-request-user: ada\r\nx-auth-request-groups: steward\r\n").await;
    assert_eq!(status_of(&liar), 401, "{liar}");

    let spoof = "x-auth-request-user: mallory\r\nx-auth-request-email: m@evil\r\n\
                 x-auth-request-groups: root\r\n";
    for credential in [
        format!("cookie: polder={}\r\n", house.session),
        format!("cookie: other=1; __Host-polder={}\r\n", house.session),
        format!("authorization: Bearer {}\r\n", house.key),
    ] {
        let seen = visit(port, &format!("{credential}{spoof}")).await;
        assert_eq!(status_of(&seen), 200, "{seen}");
        assert!(seen.contains("get /page?x=1 "), "{seen}");
        assert!(seen.contains("x-auth-request-user: ada\r\n"), "{seen}");
        // Not the address that she typed: nobody has proven that it is hers.
        assert!(seen.contains("x-auth-request-email: member-"), "{seen}");
        assert!(!seen.contains("ada@example.org"), "{seen}");
        assert!(seen.contains("x-auth-request-groups: steward,member\r\n"), "{seen}");
        assert!(!seen.contains("mallory") && !seen.contains("m@evil"), "{seen}");
        assert!(!seen.contains("groups: root"), "{seen}");
    }
    let bad = visit(port, "authorization: Bearer plk_no_no\r\n").await;
    assert_eq!(status_of(&bad), 401, "{bad}");
}

#[tokio::test]
async fn nginx_auth_request_lets_members_in_and_tells_the_app_who_they_are() {
    let house = House::open().await;
    let (_nginx, port) = nginx(house.folder.path(), house.port, app().await).await;
    holds(&house, port).await;
}

#[tokio::test]
async fn caddy_forward_auth_lets_members_in_and_tells_the_app_who_they_are() {
    let house = House::open().await;
    let (_caddy, port) = caddy(house.folder.path(), house.port, app().await).await;
    holds(&house, port).await;
}

#[tokio::test]
async fn both_fail_closed_while_the_door_is_away() {
    let mut house = House::open().await;
    let app = app().await;
    let (_nginx, nginx) = nginx(house.folder.path(), house.port, app).await;
    let (_caddy, caddy) = caddy(house.folder.path(), house.port, app).await;
    house.stop();
    crate::house::soon("the door closed", || house.gateway.is_finished()).await;
    let cookie = format!("cookie: polder={}\r\n", house.session);
    for port in [nginx, caddy] {
        let status = status_of(&visit(port, &cookie).await);
        assert!((500..600).contains(&status), "{status}");
    }
}

#[tokio::test]
async fn a_group_can_be_asked_for() {
    let house = House::open().await;
    let ask = async |query: &str| {
        let head = format!("GET /auth{query}\ncookie: polder={}", house.session);
        status_of(&house.ask(&head, "").await)
    };
    assert_eq!(ask("").await, 202);
    assert_eq!(ask("?allowed_groups=steward").await, 202);
    assert_eq!(ask("?allowed_groups=root,admins").await, 403);
}
