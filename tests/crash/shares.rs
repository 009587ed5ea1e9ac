//! Two processes that write to one store as fast as they can: neither keeps the other one out.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use gateway_storage::{File, OptionalExt, Storage};

use crate::{report, runtime};

/// Counts its writes, each of which is a commit if there is one task.
pub(crate) fn writer(url: &str, me: &str, tasks: usize) {
    runtime().block_on(async {
        let storage = Storage::<File>::open(url).await.unwrap();
        report("open");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                let (storage, me) = (storage.clone(), me.to_owned());
                tokio::spawn(async move {
                    loop {
                        storage.increment_usage(&me, "n", 1).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn start(url: &str, me: &str, tasks: usize) -> Child {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--count", url, me, &tasks.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(process.stdout.as_mut().unwrap());
    std::io::BufRead::read_line(&mut output, &mut String::new()).unwrap();
    process
}

pub(crate) fn two_processes_get_their_shares() {
    let runtime = runtime();
    for tasks in [[1, 1], [1, 64], [64, 64]] {
        let folder = tempfile::TempDir::new().unwrap();
        let url = format!("file:{}", folder.path().join("store").display());
        let mut processes = ["a", "b"].map(|me| start(&url, me, tasks[usize::from(me == "b")]));
        for process in &mut processes {
            std::io::Write::write_all(process.stdin.as_mut().unwrap(), b"go\n").unwrap();
        }
        std::thread::sleep(LASTS);
        for process in &mut processes {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let written = runtime.block_on(async {
            let storage = Storage::<File>::open(url.as_str()).await.unwrap();
            let mut written = [0; 2];
            for (me, written) in ["a", "b"].iter().zip(&mut written) {
                let record = storage.get_usage(me).await.optional().unwrap();
                *written = record.and_then(|record| record.get("n")).unwrap_or(0);
            }
            written
        });
        println!("{tasks:?} tasks: {written:?} writes in {LASTS:?}");
        // By commits: one of 64 tasks has 64 writes.
        let commits = [written[0] / tasks[0] as i64, written[1] / tasks[1] as i64];
        assert!(commits[0] * 5 > commits[1] && commits[1] * 5 > commits[0], "one is kept out: {commits:?}");
    }
}

const LASTS: Duration = Duration::from_secs(1);
