//! No orphan outlives the supervisor, however the supervisor dies.
//!
//! A child process has a pipe from its supervisor as standard input. Nothing is ever written into
//! it; when the supervisor is gone, the operating system closes it, and a thread that does nothing
//! but wait for that ends the process. (`PR_SET_PDEATHSIG` was not used: it follows the *thread*
//! that started the child, and those come and go in an async runtime.)

use std::io::Read;

/// Set in the environment of a child that has a lifeline.
pub(crate) const MARK: &str = "POLDER_LIFELINE";

/// Ends this process, whatever it is doing, as soon as its supervisor is gone. Does nothing in a
/// process that was started by hand.
pub fn hold() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    std::thread::Builder::new()
        .name("lifeline".to_owned())
        .spawn(|| {
            // Every kind of ending, also an error, means that nobody holds the other end.
            while matches!(std::io::stdin().lock().read(&mut [0; 64]), Ok(1..)) {}
            // Not `exit`: that runs what libraries left to be run at the end, which could wait
            // for a thread that never comes.
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        })
        .expect("a process that is just starting can have one more thread");
}
