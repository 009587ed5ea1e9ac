//! Kills a process, or its server, at each step of a plan: before and after each piece that it sends.
//!
//! A turnstile between the two counts the pieces. It does not parse them: a piece may be part of a command.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use gateway_storage::{ConfigBatch, Open};

use crate::{
    plans::{self, Expected, Visible, open_when_ready},
    runtime,
};
#[cfg(feature = "mongodb")]
use testkit::servers::mongodb;
#[cfg(feature = "postgres")]
use testkit::servers::postgres;
#[cfg(feature = "redis")]
use testkit::servers::redis;

/// The moment of the kill: before or after the last piece is passed on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Before,
    After,
}

#[derive(Default)]
struct State {
    /// Connections of earlier rounds pass nothing.
    round: u64,
    /// The number of pieces that still pass, and the moment of the kill; none while it is open.
    left: Option<(usize, Moment)>,
    is_shut: bool,
}

struct Turnstile {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Turnstile {
    /// In front of the server at this port. A piece has at most this many bytes.
    fn start(server: u16, piece: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                // The server may be dead.
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let round = shared.0.lock().unwrap().round;
                let (back, forth) = (shared.clone(), shared.clone());
                let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || pass(from, to, piece, || is_open(&back, round)));
                thread::spawn(move || pass(client, server, piece, || count(&forth, round)));
            }
        });
        Self { port, state }
    }

    /// The server's URL, with the turnstile's port.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    fn url(&self, direct: &str, port: u16) -> String {
        direct.replace(&format!(":{port}"), &format!(":{}", self.port))
    }

    /// Starts a new round, in which every piece passes.
    fn open(&self) {
        let mut state = self.state.0.lock().unwrap();
        *state = State { round: state.round + 1, left: None, is_shut: false };
    }

    /// Passes this many pieces, then shuts.
    fn let_pass(&self, pieces: usize, moment: Moment) {
        self.state.0.lock().unwrap().left = Some((pieces, moment));
    }

    /// Waits until it is shut. False if that takes longer than `within`.
    fn is_shut(&self, within: Duration) -> bool {
        let (state, changed) = &*self.state;
        let state =
            changed.wait_timeout_while(state.lock().unwrap(), within, |state| !state.is_shut).unwrap().0;
        state.is_shut
    }
}

fn is_open((state, _): &(Mutex<State>, Condvar), round: u64) -> bool {
    let state = state.lock().unwrap();
    state.round == round && !state.is_shut
}

/// Counts one piece. True if it passes.
fn count((state, changed): &(Mutex<State>, Condvar), round: u64) -> bool {
    let mut state = state.lock().unwrap();
    if state.round != round || state.is_shut {
        return false;
    }
    match &mut state.left {
        None => true,
        Some((left @ 1.., _)) => {
            *left -= 1;
            true
        }
        Some((_, moment)) => {
            let passes = *moment == Moment::After;
            state.is_shut = true;
            changed.notify_all();
            passes
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, piece: usize, may_pass: impl Fn() -> bool) {
    let mut bytes = vec![0; piece];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if may_pass() && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // One side is closed, so the other side is closed, too.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}

/// A process that has its store open and waits for a line on stdin before it applies a plan.
struct Applier {
    process: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Applier {
    fn start(url: &str, n: u64) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--one", url, &n.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().expect("the store opens").unwrap(), format!("open {n}"));
        Self { process, input, lines }
    }

    fn go(&mut self) {
        self.input.write_all(b"go\n").unwrap();
    }

    fn kill(mut self) {
        drop(self.process.kill());
        self.process.wait().unwrap();
    }
}

/// Does at once what a server does itself some time after a client died.
type Cleanup<'c> = &'c dyn Fn();

/// The process or server that is killed.
enum Victim<'v> {
    Process,
    Server { kill: &'v dyn Fn(), restart: &'v dyn Fn() },
}

/// `url` leads through the turnstile, and `direct` does not.
fn kill_at_each<B: Open + ConfigBatch>(
    turnstile: &Turnstile,
    (url, direct): (&str, &str),
    victim: &Victim<'_>,
    visible: Visible,
    cleanup: Cleanup<'_>,
) {
    let (runtime, mut expected, mut n, mut unapplied) = (runtime(), Expected::default(), 0, 0);
    let mut kills = 0;
    for moment in [Moment::Before, Moment::After] {
        for step in 0.. {
            n += 1;
            turnstile.open();
            let mut applier = Applier::start(url, n);
            turnstile.let_pass(step, moment);
            applier.go();
            let mut done = false;
            while !turnstile.is_shut(Duration::from_millis(5)) && !done {
                done = applier.process.try_wait().unwrap().is_some();
            }
            if done {
                assert_eq!(applier.lines.next().expect("it reports a line").unwrap(), format!("applied {n}"));
                runtime.block_on(async {
                    let storage = open_when_ready::<B>(direct).await;
                    expected.read(&format!("applied {n}"));
                    expected.check(&storage, &format!("applied {n}"), visible).await;
                    storage.close().await.unwrap();
                });
                assert!(step > 0, "nothing passed the turnstile");
                println!("{moment:?}: {step} steps");
                break;
            }
            if let Victim::Server { kill, .. } = victim {
                kill();
            }
            applier.kill();
            if let Victim::Server { restart, .. } = victim {
                restart();
            }
            kills += 1;
            cleanup();
            runtime.block_on(async {
                let storage = open_when_ready::<B>(direct).await;
                unapplied += u64::from(expected.check(&storage, &format!("apply {n}"), visible).await);
                storage.close().await.unwrap();
            });
        }
    }
    println!("{kills} kills, {unapplied} plans were not applied at the kill");
    assert!(unapplied > 0, "no kill came before its plan was applied");
}

fn nothing() {}

/// The maximum size of a piece: small if processes are killed, large if servers are, which restart slowly.
const SMALL: usize = 512;
const LARGE: usize = 1 << 16;

#[cfg(feature = "redis")]
pub(crate) fn on_redis() {
    let server = redis::Server::start(plans::REDIS);
    let turnstile = Turnstile::start(server.port, SMALL);
    let urls = (&*turnstile.url(&server.url(), server.port), &*server.url());
    kill_at_each::<gateway_storage::Redis>(&turnstile, urls, &Victim::Process, Visible::Later, &nothing);
}

#[cfg(feature = "redis")]
pub(crate) fn on_redis_that_dies() {
    let server = RefCell::new(redis::Server::start(plans::REDIS));
    let (port, direct) = (server.borrow().port, server.borrow().url());
    let turnstile = Turnstile::start(port, LARGE);
    let urls = (&*turnstile.url(&direct, port), &*direct);
    let (kill, restart) = (|| server.borrow_mut().kill(), || server.borrow_mut().restart());
    let victim = Victim::Server { kill: &kill, restart: &restart };
    kill_at_each::<gateway_storage::Redis>(&turnstile, urls, &victim, Visible::Now, &nothing);
}

#[cfg(feature = "postgres")]
pub(crate) fn on_postgres() {
    let server = postgres::Server::start(&[]);
    let turnstile = Turnstile::start(server.port, SMALL);
    let urls = (&*turnstile.url(&server.url(), server.port), &*server.url());
    kill_at_each::<gateway_storage::Postgres>(&turnstile, urls, &Victim::Process, Visible::Later, &nothing);
}

#[cfg(feature = "postgres")]
pub(crate) fn on_postgres_that_dies() {
    let server = RefCell::new(postgres::Server::start(&[]));
    let (port, direct) = (server.borrow().port, server.borrow().url());
    let turnstile = Turnstile::start(port, LARGE);
    let urls = (&*turnstile.url(&direct, port), &*direct);
    let (kill, restart) = (|| server.borrow_mut().kill_nine(), || server.borrow_mut().restart());
    let victim = Victim::Server { kill: &kill, restart: &restart };
    kill_at_each::<gateway_storage::Postgres>(&turnstile, urls, &victim, Visible::Now, &nothing);
}

/// With a direct connection the driver uses only this address; those of a set's members bypass the turnstile.
#[cfg(feature = "mongodb")]
fn directly(port: u16) -> String {
    format!("mongodb://127.0.0.1:{port}/plans?directConnection=true&deadline=60s")
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb() {
    let set = plans::replica_set();
    let server = &set.members[0];
    let turnstile = Turnstile::start(server.port, SMALL);
    let urls = (&*directly(turnstile.port), &*directly(server.port));
    let cleanup = || plans::end_sessions(server);
    kill_at_each::<gateway_storage::MongoDb>(&turnstile, urls, &Victim::Process, Visible::Later, &cleanup);
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_that_dies() {
    let set = RefCell::new(plans::replica_set());
    let port = set.borrow().members[0].port;
    let turnstile = Turnstile::start(port, LARGE);
    let urls = (&*directly(turnstile.port), &*directly(port));
    let kill = || set.borrow_mut().members[0].kill();
    let restart = || {
        set.borrow_mut().members[0].restart();
        set.borrow().primary();
    };
    let victim = Victim::Server { kill: &kill, restart: &restart };
    kill_at_each::<gateway_storage::MongoDb>(&turnstile, urls, &victim, Visible::Now, &nothing);
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_alone() {
    let server = mongodb::Server::start(&[]);
    let turnstile = Turnstile::start(server.port, SMALL);
    let urls = (&*directly(turnstile.port), &*directly(server.port));
    let cleanup = || plans::end_lease(&server);
    kill_at_each::<gateway_storage::MongoDb>(&turnstile, urls, &Victim::Process, Visible::Staged, &cleanup);
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_alone_that_dies() {
    let server = RefCell::new(mongodb::Server::start(&[]));
    let port = server.borrow().port;
    let turnstile = Turnstile::start(port, LARGE);
    let urls = (&*directly(turnstile.port), &*directly(port));
    let (kill, restart) = (|| server.borrow_mut().kill(), || server.borrow_mut().restart());
    let victim = Victim::Server { kill: &kill, restart: &restart };
    let cleanup = || plans::end_lease(&server.borrow());
    kill_at_each::<gateway_storage::MongoDb>(&turnstile, urls, &victim, Visible::Staged, &cleanup);
}
