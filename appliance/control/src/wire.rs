use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// The longest line either side takes: a status with many engines is a few KiB.
const LONGEST_LINE: u64 = 4 << 20;
/// Connections one server takes at once.
const MOST_CONNECTIONS: usize = 64;

/// A socket could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("nobody answers at {}: is the box running? start it with `polder up`", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket could not be made.
    #[error("could not listen at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other side closed before it answered.
    #[error("the other side closed the connection before it answered")]
    Closed,
    /// The other side did not answer in time.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// Not a message that we know: the two sides are of different versions.
    #[error("a message could not be understood ({0}); are both sides of one version?")]
    Message(#[from] serde_json::Error),
}

/// One connection that asks `Q` and hears `A`.
pub struct Client<Q, A> {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    kinds: PhantomData<fn(Q) -> A>,
}

impl<Q: Serialize, A: DeserializeOwned> Client<Q, A> {
    /// Connects.
    pub async fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| ControlError::Connect { path: path.to_owned(), source })?;
        let (read, write) = stream.into_split();
        Ok(Self { read: BufReader::new(read), write, kinds: PhantomData })
    }

    /// Asks and waits for the answer.
    pub async fn ask(&mut self, question: &Q) -> Result<A, ControlError> {
        send(&mut self.write, question).await?;
        self.next().await?.ok_or(ControlError::Closed)
    }

    /// Asks, and gives up after `limit`.
    pub async fn ask_within(&mut self, limit: Duration, question: &Q) -> Result<A, ControlError> {
        tokio::time::timeout(limit, self.ask(question))
            .await
            .unwrap_or(Err(ControlError::Slow(limit)))
    }

    /// The next message of a stream; `None` when the other side is done.
    pub async fn next(&mut self) -> Result<Option<A>, ControlError> {
        receive(&mut self.read).await
    }
}

/// Where a handler writes its answers.
pub struct Outlet<A> {
    write: OwnedWriteHalf,
    kinds: PhantomData<fn(A)>,
}

impl<A: Serialize> Outlet<A> {
    /// Sends one message. An error means that the asker has gone.
    pub async fn send(&mut self, answer: &A) -> Result<(), ControlError> {
        send(&mut self.write, answer).await
    }
}

/// What a server does with a question.
pub trait Handler<Q, A>: Send + Sync + 'static {
    /// Answers one question: sends one message, or, for a stream, as many as there are.
    fn handle(
        &self,
        question: Q,
        outlet: &mut Outlet<A>,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;
}

/// Listens at `path` (0600, replacing a dead socket) and answers until the future is dropped.
///
/// The socket is bound before the first `await`, so that a caller who polls once and then says
/// "ready" says the truth.
pub async fn serve<Q, A, H>(path: &Path, handler: Arc<H>) -> Result<(), ControlError>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
    H: Handler<Q, A>,
{
    let listener =
        bind(path).map_err(|source| ControlError::Listen { path: path.to_owned(), source })?;
    let _named = Named(path.to_owned());
    let places = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
    // Dropping the set ends every conversation with the server.
    let mut conversations = tokio::task::JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!("{}: could not take a connection: {error}", path.display());
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        conversations.spawn(async move {
            if let Err(error) = converse::<Q, A, H>(stream, &*handler).await {
                log::debug!("a control connection ended: {error}");
            }
            drop(place);
        });
        while conversations.try_join_next().is_some() {}
    }
}

async fn converse<Q, A, H>(stream: UnixStream, handler: &H) -> Result<(), ControlError>
where
    Q: DeserializeOwned,
    A: Serialize,
    H: Handler<Q, A>,
{
    let (read, write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut outlet = Outlet { write, kinds: PhantomData };
    while let Some(question) = receive(&mut read).await? {
        handler.handle(question, &mut outlet).await?;
    }
    Ok(())
}

/// A socket's name, which ends with its server. A process that is being started elsewhere may hold the socket
/// itself a moment longer, and nobody should reach that.
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    // A socket file that nobody listens on is left over from a crash; one that answers is not ours to take.
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another polder is running on this state folder",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn send<M: Serialize>(write: &mut OwnedWriteHalf, message: &M) -> Result<(), ControlError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(write.write_all(&line).await?)
}

async fn receive<M: DeserializeOwned>(
    read: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<M>, ControlError> {
    let mut line = Vec::new();
    let read = read.take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(ControlError::Closed);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_ended_leaves_no_name_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/c.sock");
        let (serving, stop) = (path.clone(), tokio::sync::oneshot::channel::<()>());
        let server = tokio::spawn(async move {
            tokio::select! {
                ended = serve::<u32, u32, _>(&serving, Arc::new(Counter)) => panic!("{ended:?}"),
                _ = stop.1 => {}
            }
        });
        while Client::<u32, u32>::connect(&path).await.is_err() {
            tokio::task::yield_now().await;
        }
        // As a child that is just being started: it has the listener, but nobody accepts.
        stop.0.send(()).unwrap();
        server.await.unwrap();
        assert!(!path.exists());
    }

    struct Counter;
    impl Handler<u32, u32> for Counter {
        async fn handle(
            &self,
            question: u32,
            outlet: &mut Outlet<u32>,
        ) -> Result<(), ControlError> {
            for i in 0..question.max(1) {
                outlet.send(&i).await?;
            }
            Ok(())
        }
    }

    async fn server(path: PathBuf) -> tokio::task::JoinHandle<()> {
        let at = path.clone();
        let task = tokio::spawn(async move {
            let _ = serve(&at, Arc::new(Counter)).await;
        });
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        task
    }

    #[tokio::test]
    async fn a_question_gets_its_answers_in_order_and_the_socket_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/c.sock");
        let _server = server(path.clone()).await;
        let mut client: Client<u32, u32> = Client::connect(&path).await.unwrap();
        assert_eq!(client.ask(&3).await.unwrap(), 0);
        assert_eq!(client.next().await.unwrap(), Some(1));
        assert_eq!(client.next().await.unwrap(), Some(2));
        assert_eq!(client.ask(&1).await.unwrap(), 0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _server = server(path.clone()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let second = serve::<u32, u32, _>(&path, Arc::new(Counter)).await;
        assert!(matches!(second, Err(ControlError::Listen { .. })));
    }

    #[tokio::test]
    async fn garbage_ends_the_connection_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        let _server = server(path.clone()).await;
        let mut raw = UnixStream::connect(&path).await.unwrap();
        raw.write_all(b"{]\n").await.unwrap();
        assert_eq!(raw.read(&mut [0; 8]).await.unwrap(), 0);
        let mut client: Client<u32, u32> = Client::connect(&path).await.unwrap();
        assert_eq!(client.ask(&0).await.unwrap(), 0);
    }
}
