//! `storage lease`.

use std::{
    ffi::OsString,
    io::{IsTerminal, stdin},
    os::unix::process::ExitStatusExt,
    pin::pin,
    process::ExitStatus,
    time::Duration,
};

use clap::{Args, Subcommand};
use futures_util::future::{Either, select};
use gateway_storage::{
    Error, Key, Storage,
    lease::{Claim, Holder, Lease, LeaseState, Leases, MAX_LEASE_TTL},
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;
use signal_hook::consts::SIGINT;
use tokio::{
    process::Child,
    sync::mpsc::UnboundedReceiver,
    time::{Instant, sleep, timeout},
};

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::term::{failure::with_causes, interrupt, output::say, text::time_left};

/// Run a command on one of many machines; list leases
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a command while this process holds a lease
    #[command(after_help = "\
The lease is claimed before, renewed meanwhile and released afterwards. The command finds its name in
STORAGE_LEASE_NAME and its number in STORAGE_LEASE_NUMBER, and inherits the rest of the environment.
SIGINT, SIGTERM and SIGHUP are passed on to the command. If the lease is lost, for example because the
store can't be reached for as long as the lease lasts, the command gets SIGTERM, and after 10 s SIGKILL.

Exit codes: that of the command, or 128 and the number of the signal that ended it; 75 if the lease is
not free; 76 if it was lost; 126 or 127 if the command can't be started. Errors of the store have the
codes in `storage --help`, also if the command succeeded and its rest could not be stored.

Examples:
  storage lease run nightly --ttl 30s --rest 20h -- ./nightly.sh    # once a day, on one of many machines
  storage lease run migration --ttl 30s --wait 5m -- ./migrate.sh")]
    Run(RunHeld),
    /// List leases that are held or rest, one per line: NAME, tab, holder or `resting`, tab, time left, tab,
    /// number
    #[command(after_help = "\
Examples:
  storage lease list
  storage lease list --output json | jq '.[] | select(.holder == null)'    # those that rest")]
    List,
}

#[derive(Args)]
pub(crate) struct RunHeld {
    /// The lease's name
    name: Key,
    /// Time until it ends, should this process be killed: 30s, 1m 30s
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Wait so long for a lease that is not free
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// After success, keep all others from the lease for this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    rest: Duration,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long a command that was asked to end may take before it is killed.
const KILL_AFTER: Duration = Duration::from_secs(10);

/// The pause before a failed release is repeated.
const RELEASE_AGAIN: Duration = Duration::from_secs(1);

impl<B: CliBackend + Leases> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Run(held) => {
                // The store checks it only at the end.
                if held.rest > MAX_LEASE_TTL {
                    return Err(Failure::usage("--rest is not valid: it must be at most 31 days"));
                }
                held.run(session.open().await?).await
            }
            Self::List => Ok(listed(&session.read().await?.list_leases().await?)),
        }
    }
}

impl RunHeld {
    async fn run<B: Leases>(&self, storage: &Storage<B>) -> Result<Answer, Failure> {
        let mut signals = interrupt::received()?;
        let holder = holder()?;
        let claim = pin!(storage.wait_for_lease(&self.name, &holder, self.ttl, self.wait));
        let lease = match select(claim, pin!(signals.recv())).await {
            Either::Left((claim, _)) => match claim? {
                Claim::Yours(lease) => lease,
                Claim::Theirs { left } => return Err(Failure::lease_not_free(left)),
            },
            Either::Right(_) => return Err(Failure::interrupted()),
        };
        let ended = match Running::start(&self.command, &lease) {
            Ok(running) => running.keep(storage, &lease, self.ttl, &mut signals).await,
            Err(failure) => Err(failure),
        };
        let rest = match &ended {
            Ok(status) if status.success() => self.rest,
            _ => Duration::ZERO,
        };
        let released = release(storage, &lease, rest, self.ttl).await;
        let status = ended?;
        match released {
            Ok(()) => Ok(Answer::Exited(code_of(status))),
            Err(error) if rest.is_zero() => {
                let error = with_causes(&error);
                say(&format!("warning: the lease was not released, and ends by itself: {error}"));
                Ok(Answer::Exited(code_of(status)))
            }
            // Another machine may run the command again.
            Err(error) => Err(Failure::from(error)),
        }
    }
}

/// Releases the lease. Repeats it as long as the lease lasts: a rest that is not stored lets another machine
/// run the command again.
async fn release<B: Leases>(
    storage: &Storage<B>,
    lease: &Lease,
    rest: Duration,
    ttl: Duration,
) -> gateway_storage::Result<()> {
    let begun = Instant::now();
    loop {
        match storage.release_lease(lease, rest).await {
            Err(error) if error.is_retryable() && begun.elapsed() < ttl => sleep(RELEASE_AGAIN).await,
            released => return released,
        }
    }
}

/// The command of `lease run`.
struct Running {
    child: Child,
    /// It is in a process group of its own, so that its own children get the signals, too.
    is_group: bool,
}

impl Running {
    fn start(command: &[OsString], lease: &Lease) -> Result<Self, Failure> {
        // Another group than the terminal's can't read from it.
        let is_group = !stdin().is_terminal();
        let mut line = tokio::process::Command::new(&command[0]);
        line.args(&command[1..])
            .env("STORAGE_LEASE_NAME", lease.name().as_str())
            .env("STORAGE_LEASE_NUMBER", lease.number().to_string());
        if is_group {
            line.process_group(0);
        }
        let child = line.spawn().map_err(|error| Failure::not_started(&error))?;
        Ok(Self { child, is_group })
    }

    /// Waits for the command, keeps the lease and passes signals on.
    async fn keep<B: Leases>(
        mut self,
        storage: &Storage<B>,
        lease: &Lease,
        ttl: Duration,
        signals: &mut UnboundedReceiver<i32>,
    ) -> Result<ExitStatus, Failure> {
        let mut lost = pin!(storage.keep_lease(lease, ttl));
        loop {
            let event =
                match select(select(pin!(self.child.wait()), lost.as_mut()), pin!(signals.recv())).await {
                    Either::Left((Either::Left((status, _)), _)) => Event::Ended(status),
                    Either::Left((Either::Right((error, _)), _)) => Event::Lost(error),
                    Either::Right((signal, _)) => Event::Signal(signal),
                };
            match event {
                Event::Ended(status) => return status.map_err(|error| Failure::not_started(&error)),
                Event::Lost(error) => {
                    self.stop().await;
                    return Err(Failure::lease_lost(&error));
                }
                // The terminal sends it to its whole group, so the command has it already.
                Event::Signal(Some(SIGINT)) if !self.is_group => {}
                Event::Signal(signal) => self.send(signal.and_then(Signal::from_named_raw)),
            }
        }
    }

    /// Ends the command.
    async fn stop(&mut self) {
        self.send(Some(Signal::TERM));
        if timeout(KILL_AFTER, self.child.wait()).await.is_err() {
            self.send(Some(Signal::KILL));
            drop(self.child.wait().await);
        }
    }

    fn send(&self, signal: Option<Signal>) {
        // None: it has ended, and the number may be another process's.
        let id = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let (Some(id), Some(signal)) = (id, signal) {
            let _ = if self.is_group { kill_process_group(id, signal) } else { kill_process(id, signal) };
        }
    }
}

enum Event {
    Ended(std::io::Result<ExitStatus>),
    Lost(Error),
    Signal(Option<i32>),
}

/// The exit code of a command, as a shell reports it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Names this process: the host, and the number of the process.
fn holder() -> Result<Holder, Failure> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    let host: String = host.chars().filter(char::is_ascii_graphic).take(64).collect();
    Ok(Holder::labelled(&format!("{host}:{}", std::process::id()))?)
}

fn listed(states: &[LeaseState]) -> Answer {
    let line = |state: &LeaseState| {
        let holder = state.holder.as_ref().map_or("resting", Holder::as_str);
        format!("{}\t{holder}\t{}\t{}", state.name.as_str(), time_left(state.left), state.number)
    };
    Answer::Lines { lines: states.iter().map(line).collect(), json: json!(states) }
}
