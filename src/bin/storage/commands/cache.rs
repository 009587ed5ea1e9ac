//! `storage cache`.

use std::time::Duration;

use clap::Subcommand;
use gateway_storage::{CacheStore, Key};

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::io::input::Input;

/// Manage the cache: bytes that expire
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a value until it expires
    #[command(after_help = "\
Examples:
  storage cache set models @models.json --ttl 90s
  storage cache set quota:alice 7 --ttl 1h
  storage cache set nightly:done yes --ttl 20h --if-absent    # exit code 1 if there is a value")]
    Set {
        /// The key
        key: Key,
        /// Any bytes
        #[arg(value_name = "VALUE|@FILE|-", allow_negative_numbers = true)]
        value: Input,
        /// Time until it expires: 90s, 50ms, 1h 30m
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Store it only if there is no value yet
        #[arg(long)]
        if_absent: bool,
    },
    /// Write a value to stdout, byte for byte
    #[command(after_help = "\
Examples:
  storage cache get models > models.json
  storage cache get models --output json    # {\"text\": ...}, or {\"hex\": ...} if it is not UTF-8")]
    Get {
        /// The key
        key: Key,
    },
    /// Delete a value
    #[command(after_help = "\
Example:
  storage cache delete models")]
    Delete {
        /// The key
        key: Key,
    },
}

impl<B: CliBackend + CacheStore> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { key, value, ttl, if_absent } => {
                let (value, storage) = (value.bytes()?, session.create().await?);
                let is_stored = match if_absent {
                    true => storage.set_cache_if_absent(key, value, *ttl).await?,
                    false => storage.set_cache(key, value, *ttl).await.map(|()| true)?,
                };
                if is_stored { Ok(Answer::Done) } else { Err(Failure::cached()) }
            }
            Self::Get { key } => Ok(Answer::Bytes(session.open().await?.get_cache(key).await?)),
            Self::Delete { key } => {
                session.open().await?.delete_cache(key).await?;
                Ok(Answer::Done)
            }
        }
    }
}
