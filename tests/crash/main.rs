//! kill -9 in the middle of writes, many times, on one store.
//!
//! This program runs itself as the writer that is killed. The writer reports each operation on a pipe before
//! and after it; these lines are compared with the records in the store afterwards.
//!
//! `CRASH_ROUNDS=200 cargo test --all-features --test crash plan` kills 200 times instead of a few times.

mod budget;
mod compact;
mod plans;
mod processes;
mod shares;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
mod steps;
mod stopped;
mod upgrade;
mod writes;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

const TESTS: &[testkit::runner::Test] = &[
    ("kill_nine_loses_nothing_acknowledged", writes::exclusive),
    ("kill_nine_of_a_single_writer_loses_nothing_acknowledged", writes::single_writer),
    ("kill_nine_where_others_may_write_loses_nothing_acknowledged", writes::multi_writer),
    ("kill_nine_of_a_compaction_loses_nothing", compact::kill_nine_of_a_compaction_loses_nothing),
    (
        "kill_nine_of_either_of_two_processes_loses_nothing_acknowledged",
        processes::kill_nine_of_either_of_two_processes,
    ),
    ("writes_wait_for_a_stopped_process_and_reads_do_not", stopped::writes_wait_and_reads_do_not),
    ("two_processes_get_their_shares_of_commits", shares::two_processes_get_their_shares),
    ("many_processes_stay_within_a_budget", budget::many_processes_stay_within),
    ("a_store_is_upgraded_or_as_before_after_kill_nine", upgrade::killed),
    ("a_plan_on_a_file_is_whole_after_kill_nine", plans::on_file),
    #[cfg(feature = "redis")]
    ("a_plan_on_redis_is_whole_after_kill_nine", plans::on_redis),
    #[cfg(feature = "redis")]
    ("a_plan_on_redis_is_whole_after_kill_nine_of_the_server", plans::on_redis_that_dies),
    #[cfg(feature = "postgres")]
    ("a_plan_on_postgres_is_whole_after_kill_nine", plans::on_postgres),
    #[cfg(feature = "postgres")]
    ("a_plan_on_postgres_is_whole_after_kill_nine_of_the_server", plans::on_postgres_that_dies),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_is_whole_after_kill_nine", plans::on_mongodb),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_is_whole_after_kill_nine_of_the_server", plans::on_mongodb_that_dies),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_alone_is_finished_after_kill_nine", plans::on_mongodb_alone),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_alone_is_finished_after_kill_nine_of_the_server", plans::on_mongodb_alone_that_dies),
    #[cfg(feature = "redis")]
    ("a_plan_on_redis_is_whole_wherever_its_process_dies", steps::on_redis),
    #[cfg(feature = "redis")]
    ("a_plan_on_redis_is_whole_wherever_its_server_dies", steps::on_redis_that_dies),
    #[cfg(feature = "postgres")]
    ("a_plan_on_postgres_is_whole_wherever_its_process_dies", steps::on_postgres),
    #[cfg(feature = "postgres")]
    ("a_plan_on_postgres_is_whole_wherever_its_server_dies", steps::on_postgres_that_dies),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_is_whole_wherever_its_process_dies", steps::on_mongodb),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_is_whole_wherever_its_server_dies", steps::on_mongodb_that_dies),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_alone_is_whole_wherever_its_process_dies", steps::on_mongodb_alone),
    #[cfg(feature = "mongodb")]
    ("a_plan_on_mongodb_alone_is_whole_wherever_its_server_dies", steps::on_mongodb_alone_that_dies),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--writer") => {
            writes::writer(&arguments.next().unwrap(), arguments.next().unwrap().parse().unwrap());
        }
        Some("--compacter") => {
            let mut next = || arguments.next().unwrap();
            compact::compacter(&next(), next().parse().unwrap(), &next());
        }
        Some("--beside") => {
            let [url, me, first] = std::array::from_fn(|_| arguments.next().unwrap());
            processes::writer(&url, &me, first.parse().unwrap());
        }
        Some("--large") => stopped::writer(&arguments.next().unwrap()),
        Some("--count") => {
            let [url, me, tasks] = std::array::from_fn(|_| arguments.next().unwrap());
            shares::writer(&url, &me, tasks.parse().unwrap());
        }
        Some("--spend") => {
            budget::spender(&arguments.next().unwrap(), arguments.next().unwrap().parse().unwrap())
        }
        Some("--open") => upgrade::opener(&arguments.next().unwrap()),
        Some("--applier") => {
            plans::applier(&arguments.next().unwrap(), arguments.next().unwrap().parse().unwrap(), false);
        }
        Some("--one") => {
            plans::applier(&arguments.next().unwrap(), arguments.next().unwrap().parse().unwrap(), true);
        }
        first => testkit::runner::run(TESTS, first.map(str::to_owned).into_iter().chain(arguments)),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Writes one line with one `write` to the pipe: it arrives even if this process dies right after it.
fn report(line: &str) {
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).expect("the parent reads the pipe");
}

/// Runs this program as a writer, kills it this long after its first line, and returns its lines.
fn run_and_kill(arguments: &[&str], delay: Duration) -> Vec<String> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let first = lines.next().expect("the writer begins").unwrap();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(delay);
        writer.kill().unwrap();
        writer.wait().unwrap()
    });
    let lines = std::iter::once(first).chain(lines.map(Result::unwrap)).collect();
    let status = killer.join().unwrap();
    assert!(!status.success() && status.code().is_none(), "the writer ended by itself: {status}");
    lines
}
