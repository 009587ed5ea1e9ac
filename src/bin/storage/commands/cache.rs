//! `storage cache`.

use std::time::Duration;

use clap::Subcommand;
use gateway_storage::{CacheStore, Key};

use super::Run;
use crate::{backends::Operated, door::Door, failure::Failure, input::Input, output::Answer};

/// Cache: bytes that expire
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a value for a while
    #[command(after_help = "\
Examples:
  storage cache set models @models.json --ttl 90s
  storage cache set health ok --ttl 50ms")]
    Set {
        /// Its key
        key: Key,
        /// Any bytes
        #[arg(value_name = "VALUE|@FILE|-", allow_negative_numbers = true)]
        value: Input,
        /// How long it is kept: 90s, 50ms, 1h 30m
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
    /// Write a value to stdout, byte for byte
    #[command(after_help = "\
Examples:
  storage cache get models > models.json
  storage cache get models --output json    # {\"text\": ...}, or {\"hex\": ...} if it is not UTF-8")]
    Get {
        /// Its key
        key: Key,
    },
    /// Delete a value
    #[command(after_help = "\
Example:
  storage cache delete models")]
    Delete {
        /// Its key
        key: Key,
    },
}

impl<B: Operated + CacheStore> Run<B> for Command {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { key, value, ttl } => {
                let value = value.bytes()?;
                door.create().await?.set_cache(key, value, *ttl).await?;
                Ok(Answer::Done)
            }
            Self::Get { key } => Ok(Answer::Bytes(door.open().await?.get_cache(key).await?)),
            Self::Delete { key } => {
                door.open().await?.delete_cache(key).await?;
                Ok(Answer::Done)
            }
        }
    }
}
