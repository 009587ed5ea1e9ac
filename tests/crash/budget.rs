//! Many tasks of many processes that spend from one budget.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use gateway_storage::{File, Storage, usage::Within};

use crate::{report, runtime};

const PROCESSES: usize = 8;
const TASKS: u64 = 64;
const BUDGET: i64 = 100_000;
const MOST: i64 = 9;

/// Spends until nothing is left, and reports what it has spent and how often it was refused.
pub(crate) fn spender(url: &str, seed: u64) {
    runtime().block_on(async {
        let storage = Storage::<File>::open(url).await.unwrap().with_deadline(Duration::from_secs(60));
        report("open");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let tasks = (0..TASKS).map(|task| {
            let (storage, mut random) = (storage.clone(), fastrand::Rng::with_seed(seed * TASKS + task));
            tokio::spawn(async move {
                let (mut spent, mut refused) = (0, 0);
                loop {
                    let delta = random.i64(1..=MOST);
                    match storage.increment_within("budget", "n", delta, BUDGET).await.unwrap() {
                        Within::Counted(total) => {
                            assert!(total <= BUDGET, "{total}");
                            spent += delta;
                        }
                        Within::Refused(total) => {
                            assert!(
                                total <= BUDGET && total + delta > BUDGET,
                                "{delta} to {total} was refused"
                            );
                            refused += 1;
                            if total == BUDGET {
                                return (spent, refused);
                            }
                        }
                    }
                }
            })
        });
        let spent = join_all(tasks).await.into_iter().map(Result::unwrap);
        let (spent, refused) = spent.fold((0, 0), |sum, (spent, refused)| (sum.0 + spent, sum.1 + refused));
        report(&format!("{spent} {refused}"));
    });
}

pub(crate) fn many_processes_stay_within() {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("file:{}?shared=multi-writer", folder.path().join("store").display());
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|n| {
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--spend", &url, &n.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
            assert_eq!(lines.next().expect("the process opens the store").unwrap(), "open");
            (process, lines)
        })
        .collect();
    for (process, _) in &mut processes {
        process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
    let (mut spent, mut spenders) = (0, 0);
    for (mut process, mut lines) in processes {
        let line = lines.next().expect("the process ends by itself").unwrap();
        let numbers: Vec<i64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        assert!(process.wait().unwrap().success() && numbers[1] >= TASKS as i64);
        spent += numbers[0];
        spenders += usize::from(numbers[0] > 0);
    }
    assert_eq!(spent, BUDGET);
    let total = runtime().block_on(async {
        let storage = Storage::<File>::open(url.as_str()).await.unwrap();
        storage.get_counter("budget", "n").await.unwrap()
    });
    assert_eq!(total, BUDGET);
    println!("{spenders} processes have spent the budget");
    assert!(spenders > 1);
}
