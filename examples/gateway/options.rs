//! Parses the command line.

use std::{ffi::OsString, path::PathBuf};

pub(crate) const HELP: &str = "\
A small gateway: serves simulated requests on real storage, then proves that every count is exact.

usage: gateway [CREDENTIALS_FOLDER] [OPTIONS]

  CREDENTIALS_FOLDER   OAuth credentials, one JSON file each [a sample]
  --requests N         number of requests, up to 10000000 [5000]
  --concurrency N      number of concurrent requests, up to 10000 [64]
  --data DIR           directory of the store, which is kept and continued [temporary]
  --help               show this help

Exit codes: 0 every count is exact, 1 a count is wrong or the storage failed, 2 no usable credentials or a wrong option.
";

/// The sample credentials. The path is absolute, so that they are found from any working directory.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/credentials");

pub(crate) enum Command {
    Help,
    Run(Options),
}

pub(crate) struct Options {
    pub(crate) folder: PathBuf,
    pub(crate) requests: u64,
    pub(crate) concurrency: u64,
    pub(crate) data: Option<PathBuf>,
}

pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let (mut folder, mut data, mut requests, mut concurrency) = (None, None, None, None);
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        // `--name value` or `--name=value`
        let (text, mut given) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (&*text, None),
        };
        let mut value = |what| match given.take().or_else(|| arguments.next()) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(format!("{text} needs {what}")),
        };
        match text {
            "--help" | "-h" => return Ok(Command::Help),
            "--requests" => once(text, &mut requests, count(text, value("a number")?, 10_000_000)?)?,
            "--concurrency" => once(text, &mut concurrency, count(text, value("a number")?, 10_000)?)?,
            "--data" => once(text, &mut data, PathBuf::from(value("a directory")?))?,
            option if option.starts_with('-') => return Err(format!("there is no option {option:?}")),
            "" => return Err("the folder's name is empty".into()),
            _ => once("the folder", &mut folder, PathBuf::from(&argument))?,
        }
    }
    Ok(Command::Run(Options {
        folder: folder.unwrap_or_else(|| SAMPLE.into()),
        requests: requests.unwrap_or(5000),
        concurrency: concurrency.unwrap_or(64),
        data,
    }))
}

fn once<T>(name: &str, slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{name} is given twice")),
    }
}

fn count(name: &str, value: OsString, max: u64) -> Result<u64, String> {
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("{name} needs a number from 1 to {max}, not {value:?}")),
    }
}
